// Weights of any type as bf16, 64 at a time, for kernels on AVX512-BF16, VBMI and GFNI.
#pragma once

#include "kernels/cpu/linear_tile.h"
#include "kernels/cpu/simd/f8_avx512.h"

namespace sluice {
namespace simd_avx512 {

struct Bf16x64 {
  __m512i lo, hi;  // elements 0-31, 32-63
};

// Half 0 or 1 of 64 words, and quarters of 64 floats or halves, of which p is the first.
static inline __m512i LoadWords(All64, const uint16_t* p, int half) {
  return _mm512_loadu_si512(p + 32 * half);
}
static inline __m512i LoadWords(First64 n, const uint16_t* p, int half) {
  return _mm512_maskz_loadu_epi16((__mmask32)(n.mask >> (32 * half)), p + 32 * half);
}
static inline __m512 LoadQuarter(All64, const float* p, int quarter) {
  return _mm512_loadu_ps(p + 16 * quarter);
}
static inline __m512 LoadQuarter(First64 n, const float* p, int quarter) {
  return _mm512_maskz_loadu_ps((__mmask16)(n.mask >> (16 * quarter)), p + 16 * quarter);
}
static inline __m512 LoadQuarter(All64, const uint16_t* p, int quarter) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(p + 16 * quarter)));
}
static inline __m512 LoadQuarter(First64 n, const uint16_t* p, int quarter) {
  return _mm512_cvtph_ps(
      _mm256_maskz_loadu_epi16((__mmask16)(n.mask >> (16 * quarter)), p + 16 * quarter));
}

static inline __m512i RoundPair(__m512 first, __m512 second) {
  return (__m512i)_mm512_cvtne2ps_pbh(second, first);
}

template <typename Which>
static inline Bf16x64 WidenTo64(Bf16Weights, const uint16_t* p, Which which) {
  return {LoadWords(which, p, 0), LoadWords(which, p, 1)};
}
template <typename Which>
static inline Bf16x64 WidenTo64(F32Weights, const float* p, Which which) {
  return {RoundPair(LoadQuarter(which, p, 0), LoadQuarter(which, p, 1)),
          RoundPair(LoadQuarter(which, p, 2), LoadQuarter(which, p, 3))};
}
template <typename Which>
static inline Bf16x64 WidenTo64(F16Weights, const uint16_t* p, Which which) {
  return {RoundPair(LoadQuarter(which, p, 0), LoadQuarter(which, p, 1)),
          RoundPair(LoadQuarter(which, p, 2), LoadQuarter(which, p, 3))};
}

template <typename Which>
static inline Bf16x64 WidenTo64(F8Weights, const uint8_t* p, Which which) {
  const F8Bytes bytes =
      WidenF8Bytes(_mm512_permutexvar_epi8(_mm512_load_si512(kPairOrder.at), LoadBytes(which, p)));
  return {_mm512_unpacklo_epi8(bytes.low, bytes.high), _mm512_unpackhi_epi8(bytes.low, bytes.high)};
}

}  // namespace simd_avx512
}  // namespace sluice
