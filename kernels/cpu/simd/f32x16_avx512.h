// The 16-lane vectors in one AVX-512 register each.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace sluice {
namespace simd_avx512 {

struct F32x16 {
  __m512 v;
};
struct I32x16 {
  __m512i v;
};
struct Mask16 {
  __mmask16 m;
};

static inline __mmask16 LaneMask(int n) { return (__mmask16)((1u << n) - 1); }

static inline I32x16 BitsOf(F32x16 a) { return {_mm512_castps_si512(a.v)}; }
static inline F32x16 FromBits(I32x16 a) { return {_mm512_castsi512_ps(a.v)}; }

static inline F32x16 Zero() { return {_mm512_setzero_ps()}; }
static inline F32x16 Set1(float x) { return {_mm512_set1_ps(x)}; }
static inline F32x16 Load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline F32x16 LoadN(const float* p, int n) {
  return {_mm512_maskz_loadu_ps(LaneMask(n), p)};
}
static inline void Store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
static inline void StoreN(float* p, F32x16 a, int n) { _mm512_mask_storeu_ps(p, LaneMask(n), a.v); }

static inline F32x16 WidenBf16(__m256i bits) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
// e4m3's exponent and mantissa, moved under f16's, are the value times 2^-8; f16 has no NaN there.
static inline F32x16 WidenF8(__m128i bits) {
  const __m256i wide = _mm256_cvtepi8_epi16(bits);
  const __m256i half =
      _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16((int16_t)0xbf80));
  const __mmask16 nan = _mm256_cmpeq_epi16_mask(_mm256_and_si256(wide, _mm256_set1_epi16(0x7f)),
                                                _mm256_set1_epi16(0x7f));
  const __m512 value = _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0f));
  return {_mm512_mask_mov_ps(value, nan, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)))};
}
static inline F32x16 LoadBf16(const uint16_t* p) {
  return WidenBf16(_mm256_loadu_si256((const __m256i*)p));
}
static inline F32x16 LoadBf16N(const uint16_t* p, int n) {
  return WidenBf16(_mm256_maskz_loadu_epi16(LaneMask(n), p));
}
static inline F32x16 LoadF16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))};
}
static inline F32x16 LoadF16N(const uint16_t* p, int n) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(LaneMask(n), p))};
}
static inline F32x16 LoadF8(const uint8_t* p) {
  return WidenF8(_mm_loadu_si128((const __m128i*)p));
}
static inline F32x16 LoadF8N(const uint8_t* p, int n) {
  return WidenF8(_mm_maskz_loadu_epi8(LaneMask(n), p));
}

static inline __m256i RoundBf16(F32x16 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
static inline void StoreBf16(uint16_t* p, F32x16 a) {
  _mm256_storeu_si256((__m256i*)p, RoundBf16(a));
}
static inline void StoreBf16N(uint16_t* p, F32x16 a, int n) {
  _mm256_mask_storeu_epi16(p, LaneMask(n), RoundBf16(a));
}

static inline F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline F32x16 Sqrt(F32x16 a) { return {_mm512_sqrt_ps(a.v)}; }
static inline F32x16 Neg(F32x16 a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }
static inline F32x16 Abs(F32x16 a) { return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.v)}; }
static inline F32x16 MulAdd(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
static inline F32x16 NegMulAdd(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm512_fnmadd_ps(a.v, b.v, c.v)};
}
static inline F32x16 Max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline F32x16 Min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }

static inline Mask16 Lt(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
static inline Mask16 Le(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
static inline Mask16 Gt(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
static inline Mask16 Ge(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
static inline Mask16 Eq(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
static inline Mask16 FirstN(int n) { return {LaneMask(n)}; }
static inline Mask16 And(Mask16 a, Mask16 b) { return {(__mmask16)(a.m & b.m)}; }
static inline Mask16 Or(Mask16 a, Mask16 b) { return {(__mmask16)(a.m | b.m)}; }
static inline Mask16 Not(Mask16 a) { return {(__mmask16)~a.m}; }
static inline bool Any(Mask16 a) { return a.m != 0; }
static inline uint32_t Bits(Mask16 a) { return a.m; }
static inline F32x16 Select(Mask16 m, F32x16 a, F32x16 b) {
  return {_mm512_mask_blend_ps(m.m, b.v, a.v)};
}

static inline float Sum(F32x16 a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
static SLUICE_SIMD_INLINE F32x16 SumEach(const F32x16 (&v)[16]) {
  __m512 fours[4];  // quarter j of fours[g]: v[4 j + g], reduced to four lanes
  for (int g = 0; g < 4; ++g) {
    const __m512 a = v[g].v, b = v[4 + g].v, c = v[8 + g].v, d = v[12 + g].v;
    const __m512 ab =
        _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    const __m512 cd =
        _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    fours[g] =
        _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  }
  __m512 twos[2];
  for (int g = 0; g < 2; ++g) {
    const __m512 p = fours[2 * g], q = fours[2 * g + 1];
    twos[g] = _mm512_add_ps(_mm512_shuffle_ps(p, q, 0x44), _mm512_shuffle_ps(p, q, 0xee));
  }
  return {_mm512_add_ps(_mm512_shuffle_ps(twos[0], twos[1], 0x88),
                        _mm512_shuffle_ps(twos[0], twos[1], 0xdd))};
}
static inline float HMax(F32x16 a) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
static inline float HMin(F32x16 a) {
  const __m256 eight = _mm256_min_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 four = _mm_min_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_min_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)));
}

static inline I32x16 Set1I(int32_t x) { return {_mm512_set1_epi32(x)}; }
static inline I32x16 LoadI(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
static inline I32x16 LoadIN(const int32_t* p, int n) {
  return {_mm512_maskz_loadu_epi32(LaneMask(n), p)};
}
static inline void StoreI(int32_t* p, I32x16 a) { _mm512_storeu_si512(p, a.v); }
static inline void StoreIN(int32_t* p, I32x16 a, int n) {
  _mm512_mask_storeu_epi32(p, LaneMask(n), a.v);
}
static inline I32x16 operator+(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
static inline I32x16 operator-(I32x16 a, I32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
static inline I32x16 operator*(I32x16 a, I32x16 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
static inline I32x16 operator&(I32x16 a, I32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
static inline I32x16 operator|(I32x16 a, I32x16 b) { return {_mm512_or_si512(a.v, b.v)}; }
static inline I32x16 operator^(I32x16 a, I32x16 b) { return {_mm512_xor_si512(a.v, b.v)}; }
template <int kBits>
static inline I32x16 ShiftLeft(I32x16 a) {
  return {_mm512_slli_epi32(a.v, kBits)};
}
template <int kBits>
static inline I32x16 ShiftRight(I32x16 a) {
  return {_mm512_srai_epi32(a.v, kBits)};
}
template <int kBits>
static inline I32x16 ShiftRightLogical(I32x16 a) {
  return {_mm512_srli_epi32(a.v, kBits)};
}
static inline Mask16 EqI(I32x16 a, I32x16 b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
static inline Mask16 GtI(I32x16 a, I32x16 b) { return {_mm512_cmpgt_epi32_mask(a.v, b.v)}; }
static inline I32x16 SelectI(Mask16 m, I32x16 a, I32x16 b) {
  return {_mm512_mask_blend_epi32(m.m, b.v, a.v)};
}
static inline I32x16 ToI32(F32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }
static inline F32x16 ToF32(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }

}  // namespace simd_avx512
}  // namespace sluice
