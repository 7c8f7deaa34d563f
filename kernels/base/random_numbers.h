// Normally distributed numbers as a pure function of a key and an index: any element of a matrix
// can be computed by itself, the same on every backend.
//
//   mix(x)   = the finaliser of splitmix64
//   bits(i)  = mix(key + i * 0x9E3779B97F4A7C15)
//   s(i)     = sum of the four 16-bit quarters of bits(i), minus 131070
//   value(i) = f32(s) * f32(stddev / sqrt((2^32 - 1) / 3)) + mean     (Irwin-Hall of four)
// The product is rounded before the sum. |value - mean| <= 3.47 stddev.
#pragma once

#include <stdint.h>

namespace sluice {

struct RandomNumbers {
  uint64_t key;  // well mixed (MixBits) where keys are to be independent
  float scale;   // NormalNumbers
  float mean;
};

inline constexpr uint64_t kRandomStep = 0x9E3779B97F4A7C15;

static constexpr uint64_t MixBits(uint64_t x) {
  uint64_t z = x + kRandomStep;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

static constexpr RandomNumbers NormalNumbers(uint64_t key, double stddev, double mean = 0) {
  constexpr double kIrwinHall = 37837.22723720648;  // sqrt((2^32 - 1) / 3), that of s(i)
  return {key, static_cast<float>(stddev / kIrwinHall), static_cast<float>(mean)};
}

static constexpr float RandomNumber(const RandomNumbers& numbers, uint64_t index) {
  const uint64_t bits = MixBits(numbers.key + index * kRandomStep);
  const uint32_t sum =
      static_cast<uint32_t>(bits & 0xffff) + static_cast<uint32_t>((bits >> 16) & 0xffff) +
      static_cast<uint32_t>((bits >> 32) & 0xffff) + static_cast<uint32_t>(bits >> 48);
  return static_cast<float>(static_cast<int32_t>(sum) - 131070) * numbers.scale + numbers.mean;
}

}  // namespace sluice
