// AMX tiles, for kernels compiled with AMX-BF16; the rules of f32x16.h apply.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace sluice {
namespace simd_avx512 {

// Eight tiles of 16 rows of 64 bytes. A constant in memory: GCC 12's _tile_loadconfig tells the
// compiler of the first 8 bytes only, so that it may drop stores to the rest.
struct TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
alignas(64) static constexpr TileConfig kTileConfig = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

static inline void ConfigureTiles() { _tile_loadconfig(&kTileConfig); }
static inline void ReleaseTiles() { _tile_release(); }

// To be called before loading tiles: GCC 12's _tile_loadd does not say that it reads memory, so
// that the compiler could move what was stored past it.
static inline void FinishStores() { __asm__ volatile("" ::: "memory"); }

}  // namespace simd_avx512
}  // namespace sluice
