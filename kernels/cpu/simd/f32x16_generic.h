// The 16-lane vectors as plain arrays: the definition of what the other two must give.
#pragma once

#include <stdint.h>
#include <string.h>

namespace sluice {
namespace simd_generic {

struct F32x16 {
  float lane[16];
};
struct I32x16 {
  int32_t lane[16];
};
struct Mask16 {
  uint32_t bits;
};

#define SLUICE_LANES(Vector, expr) \
  Vector result;                   \
  for (int i = 0; i < 16; ++i) {   \
    result.lane[i] = (expr);       \
  }                                \
  return result
#define SLUICE_LANE_MASK(expr)          \
  Mask16 result{0};                     \
  for (int i = 0; i < 16; ++i) {        \
    result.bits |= uint32_t{expr} << i; \
  }                                     \
  return result

static inline float FloatOfBits(uint32_t bits) { return __builtin_bit_cast(float, bits); }
static inline uint32_t BitsOfFloat(float value) { return __builtin_bit_cast(uint32_t, value); }

static inline I32x16 BitsOf(F32x16 a) { return __builtin_bit_cast(I32x16, a); }
static inline F32x16 FromBits(I32x16 a) { return __builtin_bit_cast(F32x16, a); }

static inline F32x16 Zero() { return F32x16{}; }
static inline F32x16 Set1(float x) { SLUICE_LANES(F32x16, x); }
static inline F32x16 LoadN(const float* p, int n) { SLUICE_LANES(F32x16, i < n ? p[i] : 0.0f); }
static inline F32x16 Load(const float* p) { return LoadN(p, 16); }
static inline void StoreN(float* p, F32x16 a, int n) {
  for (int i = 0; i < n; ++i) p[i] = a.lane[i];
}
static inline void Store(float* p, F32x16 a) { StoreN(p, a, 16); }

static inline float WidenBf16(uint16_t bits) { return FloatOfBits(uint32_t{bits} << 16); }
static inline float WidenF16(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) {
    const uint32_t quiet = magnitude > 0x7c00u ? 0x400000u : 0;
    return FloatOfBits(sign | 0x7f800000u | quiet | ((magnitude & 0x3ffu) << 13));
  }
  return FloatOfBits(BitsOfFloat(FloatOfBits(magnitude << 13) * 0x1p112f) | sign);
}
static inline float WidenF8(uint8_t bits) {
  const uint32_t sign = (bits & 0x80u) << 24;
  const uint32_t magnitude = bits & 0x7fu;
  if (magnitude == 0x7f) return FloatOfBits(sign | 0x7fc00000u);
  return FloatOfBits(BitsOfFloat(FloatOfBits(magnitude << 20) * 0x1p120f) | sign);
}
static inline F32x16 LoadBf16N(const uint16_t* p, int n) {
  SLUICE_LANES(F32x16, i < n ? WidenBf16(p[i]) : 0.0f);
}
static inline F32x16 LoadF16N(const uint16_t* p, int n) {
  SLUICE_LANES(F32x16, i < n ? WidenF16(p[i]) : 0.0f);
}
static inline F32x16 LoadF8N(const uint8_t* p, int n) {
  SLUICE_LANES(F32x16, i < n ? WidenF8(p[i]) : 0.0f);
}
static inline F32x16 LoadBf16(const uint16_t* p) { return LoadBf16N(p, 16); }
static inline F32x16 LoadF16(const uint16_t* p) { return LoadF16N(p, 16); }
static inline F32x16 LoadF8(const uint8_t* p) { return LoadF8N(p, 16); }

static inline void StoreBf16N(uint16_t* p, F32x16 a, int n) {
  for (int i = 0; i < n; ++i) {
    const uint32_t bits = BitsOfFloat(a.lane[i]);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    p[i] = (uint16_t)((nan ? (bits | 0x400000u) : bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
  }
}
static inline void StoreBf16(uint16_t* p, F32x16 a) { StoreBf16N(p, a, 16); }

static inline F32x16 operator+(F32x16 a, F32x16 b) { SLUICE_LANES(F32x16, a.lane[i] + b.lane[i]); }
static inline F32x16 operator-(F32x16 a, F32x16 b) { SLUICE_LANES(F32x16, a.lane[i] - b.lane[i]); }
static inline F32x16 operator*(F32x16 a, F32x16 b) { SLUICE_LANES(F32x16, a.lane[i] * b.lane[i]); }
static inline F32x16 operator/(F32x16 a, F32x16 b) { SLUICE_LANES(F32x16, a.lane[i] / b.lane[i]); }
static inline F32x16 Sqrt(F32x16 a) { SLUICE_LANES(F32x16, __builtin_sqrtf(a.lane[i])); }
static inline F32x16 Neg(F32x16 a) { SLUICE_LANES(F32x16, -a.lane[i]); }
static inline F32x16 Abs(F32x16 a) { SLUICE_LANES(F32x16, __builtin_fabsf(a.lane[i])); }
static inline F32x16 MulAdd(F32x16 a, F32x16 b, F32x16 c) {
  SLUICE_LANES(F32x16, __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]));
}
static inline F32x16 NegMulAdd(F32x16 a, F32x16 b, F32x16 c) {
  SLUICE_LANES(F32x16, __builtin_fmaf(-a.lane[i], b.lane[i], c.lane[i]));
}
static inline F32x16 Max(F32x16 a, F32x16 b) {
  SLUICE_LANES(F32x16, a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]);
}
static inline F32x16 Min(F32x16 a, F32x16 b) {
  SLUICE_LANES(F32x16, a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]);
}

static inline Mask16 Lt(F32x16 a, F32x16 b) { SLUICE_LANE_MASK(a.lane[i] < b.lane[i]); }
static inline Mask16 Le(F32x16 a, F32x16 b) { SLUICE_LANE_MASK(a.lane[i] <= b.lane[i]); }
static inline Mask16 Gt(F32x16 a, F32x16 b) { SLUICE_LANE_MASK(a.lane[i] > b.lane[i]); }
static inline Mask16 Ge(F32x16 a, F32x16 b) { SLUICE_LANE_MASK(a.lane[i] >= b.lane[i]); }
static inline Mask16 Eq(F32x16 a, F32x16 b) { SLUICE_LANE_MASK(a.lane[i] == b.lane[i]); }
static inline Mask16 FirstN(int n) { return Mask16{(1u << n) - 1}; }
static inline Mask16 And(Mask16 a, Mask16 b) { return Mask16{a.bits & b.bits}; }
static inline Mask16 Or(Mask16 a, Mask16 b) { return Mask16{a.bits | b.bits}; }
static inline Mask16 Not(Mask16 a) { return Mask16{~a.bits & 0xffffu}; }
static inline bool Any(Mask16 a) { return a.bits != 0; }
static inline uint32_t Bits(Mask16 a) { return a.bits; }
static inline F32x16 Select(Mask16 m, F32x16 a, F32x16 b) {
  SLUICE_LANES(F32x16, (m.bits >> i & 1) != 0 ? a.lane[i] : b.lane[i]);
}

static inline float Sum(F32x16 a) {
  for (int half = 8; half >= 1; half /= 2) {
    for (int i = 0; i < half; ++i) a.lane[i] += a.lane[i + half];
  }
  return a.lane[0];
}
static SLUICE_SIMD_INLINE F32x16 SumEach(const F32x16 (&v)[16]) { SLUICE_LANES(F32x16, Sum(v[i])); }
static inline float HMax(F32x16 a) {
  for (int half = 8; half >= 1; half /= 2) {
    for (int i = 0; i < half; ++i) {
      a.lane[i] = a.lane[i] > a.lane[i + half] ? a.lane[i] : a.lane[i + half];
    }
  }
  return a.lane[0];
}
static inline float HMin(F32x16 a) {
  for (int half = 8; half >= 1; half /= 2) {
    for (int i = 0; i < half; ++i) {
      a.lane[i] = a.lane[i] < a.lane[i + half] ? a.lane[i] : a.lane[i + half];
    }
  }
  return a.lane[0];
}

static inline I32x16 Set1I(int32_t x) { SLUICE_LANES(I32x16, x); }
static inline I32x16 LoadIN(const int32_t* p, int n) { SLUICE_LANES(I32x16, i < n ? p[i] : 0); }
static inline I32x16 LoadI(const int32_t* p) { return LoadIN(p, 16); }
static inline void StoreIN(int32_t* p, I32x16 a, int n) {
  for (int i = 0; i < n; ++i) p[i] = a.lane[i];
}
static inline void StoreI(int32_t* p, I32x16 a) { StoreIN(p, a, 16); }
static inline I32x16 operator+(I32x16 a, I32x16 b) {
  SLUICE_LANES(I32x16, (int32_t)((uint32_t)a.lane[i] + (uint32_t)b.lane[i]));
}
static inline I32x16 operator-(I32x16 a, I32x16 b) {
  SLUICE_LANES(I32x16, (int32_t)((uint32_t)a.lane[i] - (uint32_t)b.lane[i]));
}
static inline I32x16 operator*(I32x16 a, I32x16 b) {
  SLUICE_LANES(I32x16, (int32_t)((uint32_t)a.lane[i] * (uint32_t)b.lane[i]));
}
static inline I32x16 operator&(I32x16 a, I32x16 b) { SLUICE_LANES(I32x16, a.lane[i] & b.lane[i]); }
static inline I32x16 operator|(I32x16 a, I32x16 b) { SLUICE_LANES(I32x16, a.lane[i] | b.lane[i]); }
static inline I32x16 operator^(I32x16 a, I32x16 b) { SLUICE_LANES(I32x16, a.lane[i] ^ b.lane[i]); }
template <int kBits>
static inline I32x16 ShiftLeft(I32x16 a) {
  SLUICE_LANES(I32x16, (int32_t)((uint32_t)a.lane[i] << kBits));
}
template <int kBits>
static inline I32x16 ShiftRight(I32x16 a) {
  SLUICE_LANES(I32x16, a.lane[i] >> kBits);
}
template <int kBits>
static inline I32x16 ShiftRightLogical(I32x16 a) {
  SLUICE_LANES(I32x16, (int32_t)((uint32_t)a.lane[i] >> kBits));
}
static inline Mask16 EqI(I32x16 a, I32x16 b) { SLUICE_LANE_MASK(a.lane[i] == b.lane[i]); }
static inline Mask16 GtI(I32x16 a, I32x16 b) { SLUICE_LANE_MASK(a.lane[i] > b.lane[i]); }
static inline I32x16 SelectI(Mask16 m, I32x16 a, I32x16 b) {
  SLUICE_LANES(I32x16, (m.bits >> i & 1) != 0 ? a.lane[i] : b.lane[i]);
}
static inline I32x16 ToI32(F32x16 a) {
  SLUICE_LANES(I32x16, a.lane[i] >= -0x1p31f && a.lane[i] < 0x1p31f
                           ? (int32_t)__builtin_lrintf(a.lane[i])
                           : INT32_MIN);
}
static inline F32x16 ToF32(I32x16 a) { SLUICE_LANES(F32x16, (float)a.lane[i]); }

#undef SLUICE_LANES
#undef SLUICE_LANE_MASK

}  // namespace simd_generic
}  // namespace sluice
