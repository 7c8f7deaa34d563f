// exp and log in f32 whose bits are the same on every machine: only IEEE additions and
// multiplications of f32 (never fused), conversions and integer operations, in the order written.
// What must come out equal on the CPU and on a GPU (sampling, router scores) is made of these.
//
// REQUIRES compiling with -ffp-contract=off (the whole project is) or nvcc's -fmad=false; device
// code reaches constexpr functions through --expt-relaxed-constexpr.
// Free of branches, so loops over arrays vectorise. The functions are static, so that code compiled
// for different instruction sets never shares a copy (kernels/cpu/simd/f32x16.h).
#pragma once

#include <stdint.h>

namespace sluice::portable {

// Up to 2 units in the last place off. 0 below -87, the value at 88 above 88; NaN gives some finite
// value.
static constexpr float Exp(float x) {
  const float bounded = x > 88.0f ? 88.0f : (x > -87.0f ? x : -87.0f);
  // Adding and taking away 1.5 * 2^23 rounds to the nearest integer.
  const float n = (bounded * 1.44269504f + 12582912.0f) - 12582912.0f;
  float r = bounded - n * 0.693359375f;  // exact: ln 2 to 10 bits
  r = r + n * 2.12194440e-4f;
  float q = 0.00139504918f;
  q = q * r + 0.00836888935f;
  q = q * r + 0.0416662058f;
  q = q * r + 0.166665188f;
  q = q * r + 0.50000001f;
  const float e = ((r * r) * q + r) + 1.0f;
  const int32_t power = static_cast<int32_t>(n);
  const float scaled = e * __builtin_bit_cast(float, (power + 127) << 23);
  return x < -87.0f ? 0.0f : scaled;
}

// log(2^exponent * (1 + f)), f in [sqrt(1/2) - 1, sqrt(2) - 1].
static constexpr float LogOfParts(int32_t exponent, float f) {
  float p = -0.0785961371f;
  p = p * f + 0.128816471f;
  p = p * f - 0.131287538f;
  p = p * f + 0.14181192f;
  p = p * f - 0.166245542f;
  p = p * f + 0.200022863f;
  p = p * f - 0.250008104f;
  p = p * f + 0.333333167f;
  const float n = static_cast<float>(exponent);
  const float square = f * f;
  float tail = (square * f) * p;
  tail = tail - n * 2.12194440e-4f;
  tail = tail - square * 0.5f;
  return (f + tail) + n * 0.693359375f;
}

// x = 2^LogExponent(x) * LogMantissa(x), the mantissa in [sqrt(1/2), sqrt(2)); x positive, finite
// and normal.
static constexpr int32_t LogExponent(float x) {
  return (__builtin_bit_cast(int32_t, x) - 0x3f3504f3) >> 23;
}
static constexpr float LogMantissa(float x, int32_t exponent) {
  return __builtin_bit_cast(float, __builtin_bit_cast(int32_t, x) - exponent * (1 << 23));
}

// x positive, finite and normal. Up to 2 units in the last place off.
static constexpr float Log(float x) {
  const int32_t exponent = LogExponent(x);
  return LogOfParts(exponent, LogMantissa(x, exponent) - 1.0f);
}

}  // namespace sluice::portable
