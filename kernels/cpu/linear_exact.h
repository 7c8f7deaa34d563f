// Exact matrix products, one tile at a time: f32 activations, weights widened to f32, f32 sums.
//
// Each output is one sum in one order, whatever the tile, the instruction set or the rest of the
// batch: 16 partial sums (lane i takes every 16th k) by fused multiply-adds in order of k, added up
// by the fixed tree of simd::Sum. With scales this runs per scale block, from the block's first k,
// and total = fma(partial, scale, total) lane by lane follows each block.
// Design and numbers: kernels/docs/cpu_linear.md.
#pragma once

#include <cstdint>

#include "kernels/cpu/linear_tile.h"
#include "kernels/cpu/simd/dispatch.h"

namespace sluice {

inline constexpr int kExactTileRows = 32;       // outputs per tile at most
inline constexpr int kExactTileTokens = 32;     // rows of x per tile at most
inline constexpr int64_t kExactPanel = 512;     // inputs widened at a time
inline constexpr int64_t kScaleBlockMax = 512;  // kExactPanel holds at least one block

// Per worker, aligned to 64 bytes: widened weights, running totals, two tiles of results.
inline constexpr int64_t kExactScratchFloats = kExactTileRows * kExactPanel +
                                               kExactTileRows * kExactTileTokens * 16 +
                                               2 * kExactTileRows * kExactTileTokens;

struct ExactLinearKernels {
  // out = x w^T, or += when accumulate.
  void (*linear)(const LinearTile& tile, float* scratch);
  // out = silu(x w^T) * (x up^T).
  void (*gated)(const LinearTile& tile, float* scratch);
};

SLUICE_DECLARE_KERNELS(ExactLinearKernels, GetExactLinearKernels);

}  // namespace sluice
