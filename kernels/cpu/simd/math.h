// Elementary functions over 16 lanes: fixed sequences of operations, so bit-equal on every
// instruction set. Within 2 ulp of the true value.
// Source of the polynomials: Cephes math library, expf and logf (S. L. Moshier).
#pragma once

#include "kernels/cpu/simd/f32x16.h"

namespace sluice {
namespace SLUICE_SIMD {

// 0 below about -103.97 (gradual underflow before), infinity above about 88.72, NaN for NaN.
static inline F32x16 Exp(F32x16 x) {
  // Operand order lets a NaN through.
  x = Min(Set1(89.0f), Max(Set1(-105.0f), x));
  const I32x16 n = ToI32(x * Set1(1.44269504088896341f));
  const F32x16 nf = ToF32(n);
  F32x16 r = NegMulAdd(nf, Set1(0.693359375f), x);
  r = NegMulAdd(nf, Set1(-2.12194440e-4f), r);
  F32x16 p = Set1(1.9875691500e-4f);
  p = MulAdd(p, r, Set1(1.3981999507e-3f));
  p = MulAdd(p, r, Set1(8.3334519073e-3f));
  p = MulAdd(p, r, Set1(4.1665795894e-2f));
  p = MulAdd(p, r, Set1(1.6666665459e-1f));
  p = MulAdd(p, r, Set1(5.0000001201e-1f));
  p = MulAdd(p, r * r, r) + Set1(1.0f);
  // 2^n in two factors, since n reaches beyond the exponents of normal numbers.
  const I32x16 half = ShiftRight<1>(n);
  const F32x16 scale1 = FromBits(ShiftLeft<23>(half + Set1I(127)));
  const F32x16 scale2 = FromBits(ShiftLeft<23>(n - half + Set1I(127)));
  return p * scale1 * scale2;
}

// Minus infinity for 0, NaN for negative numbers.
static inline F32x16 Log(F32x16 x) {
  const F32x16 infinity = FromBits(Set1I(0x7f800000));
  // Subnormal numbers are brought into the normal range first.
  const Mask16 tiny = Lt(x, Set1(0x1p-126f));
  const F32x16 normal = Select(tiny, x * Set1(0x1p24f), x);
  const I32x16 bits = BitsOf(normal);
  // x = m 2^e with m in [sqrt(1/2), sqrt(2)).
  const I32x16 biased = bits - Set1I(0x3f3504f3);
  const I32x16 e = ShiftRight<23>(biased);
  const F32x16 m = FromBits((biased & Set1I(0x007fffff)) + Set1I(0x3f3504f3));
  const F32x16 ef = ToF32(e) - Select(tiny, Set1(24.0f), Zero());
  const F32x16 f = m - Set1(1.0f);
  const F32x16 z = f * f;
  F32x16 p = Set1(7.0376836292e-2f);
  p = MulAdd(p, f, Set1(-1.1514610310e-1f));
  p = MulAdd(p, f, Set1(1.1676998740e-1f));
  p = MulAdd(p, f, Set1(-1.2420140846e-1f));
  p = MulAdd(p, f, Set1(1.4249322787e-1f));
  p = MulAdd(p, f, Set1(-1.6668057665e-1f));
  p = MulAdd(p, f, Set1(2.0000714765e-1f));
  p = MulAdd(p, f, Set1(-2.4999993993e-1f));
  p = MulAdd(p, f, Set1(3.3333331174e-1f));
  F32x16 y = p * f * z;
  y = MulAdd(ef, Set1(-2.12194440e-4f), y);
  y = NegMulAdd(z, Set1(0.5f), y);
  F32x16 result = MulAdd(ef, Set1(0.693359375f), f + y);
  result = Select(Eq(x, Zero()), Neg(infinity), result);
  result = Select(Eq(x, infinity), infinity, result);
  return Select(Ge(x, Zero()), result, FromBits(Set1I(0x7fc00000)));
}

static inline F32x16 Sigmoid(F32x16 x) { return Set1(1.0f) / (Set1(1.0f) + Exp(Neg(x))); }

static inline F32x16 Silu(F32x16 x) { return x / (Set1(1.0f) + Exp(Neg(x))); }

}  // namespace SLUICE_SIMD
}  // namespace sluice
