// FP8 weights (e4m3fn) 64 at a time, for kernels with AVX-512 VBMI and GFNI.
#pragma once

#include "kernels/cpu/simd/f32x16.h"

namespace sluice {
namespace simd_avx512 {

// Which of 64 elements are read; the others are 0 and their memory is not touched.
struct All64 {};
struct First64 {
  uint64_t mask;
  explicit First64(int64_t n) : mask(n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1) {}
};

static inline __m512i LoadBytes(All64, const void* p) { return _mm512_loadu_si512(p); }
static inline __m512i LoadBytes(First64 n, const void* p) {
  return _mm512_maskz_loadu_epi8(n.mask, p);
}
// The high and the low byte of the bf16 value of each e4m3 magnitude.
struct F8Tables {
  alignas(64) uint8_t high[128];
  alignas(64) uint8_t low[128];
};
static constexpr F8Tables MakeF8Tables() {
  F8Tables tables{};
  for (int code = 0; code < 128; ++code) {
    int exponent = code >> 3, mantissa = code & 7;
    int bits = 0;
    if (code == 127) {
      bits = 0x7fc0;  // NaN
    } else if (exponent > 0) {
      bits = ((exponent + 120) << 7) | (mantissa << 4);
    } else if (mantissa > 0) {  // subnormal here, normal in bf16
      exponent = 121;
      while (mantissa < 8) {
        mantissa *= 2;
        --exponent;
      }
      bits = (exponent << 7) | ((mantissa & 7) << 4);
    }
    tables.high[code] = (uint8_t)(bits >> 8);
    tables.low[code] = (uint8_t)bits;
  }
  return tables;
}
static constexpr F8Tables kF8Tables = MakeF8Tables();

// A matrix for GF2P8AFFINEQB: bit i of the result is bit sources[i] of the operand, or 0 (-1).
static constexpr uint64_t BitMatrix(const int (&sources)[8]) {
  uint64_t matrix = 0;
  for (int i = 0; i < 8; ++i) {
    if (sources[i] >= 0) matrix |= (uint64_t{1} << sources[i]) << (8 * (7 - i));
  }
  return matrix;
}

// 64 codes as bf16, low and high bytes apart.
struct F8Bytes {
  __m512i low, high;
};
static inline F8Bytes WidenF8Bytes(__m512i codes) {
  // A normal number s eeee mmm is s (eeee + 120) mmm0000 in bf16, and eeee + 120 has the bits
  // e3 !e3 !e3 !e3 !e3 e2 e1 e0: each byte of the result is a linear function of the code's bits.
  constexpr uint64_t kHigh = BitMatrix({4, 5, 6, 6, 6, 6, 6, 7});
  constexpr uint64_t kLow = BitMatrix({-1, -1, -1, -1, 0, 1, 2, 3});
  __m512i high = _mm512_gf2p8affine_epi64_epi8(codes, _mm512_set1_epi64((long long)kHigh), 0x3c);
  __m512i low = _mm512_gf2p8affine_epi64_epi8(codes, _mm512_set1_epi64((long long)kLow), 0);
  // Zeros, subnormals and NaNs are looked up. They are rare in weights that fill their range (and
  // what is not read comes last in a row).
  const __m512i magnitudes = _mm512_and_si512(codes, _mm512_set1_epi8(0x7f));
  const __mmask64 special = _mm512_cmpge_epu8_mask(_mm512_sub_epi8(magnitudes, _mm512_set1_epi8(8)),
                                                   _mm512_set1_epi8(127 - 8));
  if (__builtin_expect(special != 0, 0)) {
    const __m512i magnitude_high = _mm512_permutex2var_epi8(
        _mm512_load_si512(kF8Tables.high), codes, _mm512_load_si512(kF8Tables.high + 64));
    // magnitude_high | (codes & 0x80)
    high = _mm512_ternarylogic_epi32(magnitude_high, codes, _mm512_set1_epi8((char)0x80), 0xf8);
    low = _mm512_permutex2var_epi8(_mm512_load_si512(kF8Tables.low), codes,
                                   _mm512_load_si512(kF8Tables.low + 64));
  }
  return {low, high};
}

// Orders of bytes that interleaving low and high bytes (within quarters) undoes: so that 64 words
// follow each other; or so that the words of 16 elements lie in the high halves of 16 dwords, and
// those of the next 16 elements in the low halves.
struct ByteOrder {
  alignas(64) uint8_t at[64];
};
static constexpr ByteOrder MakePairOrder() {
  ByteOrder order{};
  for (int quarter = 0; quarter < 4; ++quarter) {
    for (int i = 0; i < 8; ++i) {
      order.at[quarter * 16 + i] = (uint8_t)(quarter * 8 + i);
      order.at[quarter * 16 + 8 + i] = (uint8_t)(32 + quarter * 8 + i);
    }
  }
  return order;
}
static constexpr ByteOrder MakeHalvesOrder() {
  ByteOrder order{};
  for (int quarter = 0; quarter < 4; ++quarter) {
    for (int i = 0; i < 4; ++i) {
      order.at[quarter * 16 + 2 * i] = (uint8_t)(16 + quarter * 4 + i);
      order.at[quarter * 16 + 2 * i + 1] = (uint8_t)(quarter * 4 + i);
      order.at[quarter * 16 + 8 + 2 * i] = (uint8_t)(48 + quarter * 4 + i);
      order.at[quarter * 16 + 8 + 2 * i + 1] = (uint8_t)(32 + quarter * 4 + i);
    }
  }
  return order;
}
static constexpr ByteOrder kPairOrder = MakePairOrder();
static constexpr ByteOrder kHalvesOrder = MakeHalvesOrder();

static inline void LoadF8x64(const uint8_t* p, F32x16 (&out)[4]) {
  const F8Bytes bytes = WidenF8Bytes(
      _mm512_permutexvar_epi8(_mm512_load_si512(kHalvesOrder.at), LoadBytes(All64{}, p)));
  const __m512i first = _mm512_unpacklo_epi8(bytes.low, bytes.high);
  const __m512i second = _mm512_unpackhi_epi8(bytes.low, bytes.high);
  const __m512i high_half = _mm512_set1_epi32((int)0xffff0000);
  out[0].v = _mm512_castsi512_ps(_mm512_and_si512(first, high_half));
  out[1].v = _mm512_castsi512_ps(_mm512_slli_epi32(first, 16));
  out[2].v = _mm512_castsi512_ps(_mm512_and_si512(second, high_half));
  out[3].v = _mm512_castsi512_ps(_mm512_slli_epi32(second, 16));
}

}  // namespace simd_avx512
}  // namespace sluice
