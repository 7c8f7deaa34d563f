// The passes over a row of the vocabulary that sampling is made of, one table per instruction set;
// all give the same bits. Plain pointers and integers only: see kernels/cpu/simd/f32x16.h.
#pragma once

#include <stdint.h>

#include "kernels/cpu/simd/dispatch.h"

namespace sluice {

// A token and its log-probability up to a constant: (logit - largest logit) / temperature, so the
// most probable one has 0.
struct SampleCandidate {
  float y;
  int32_t id;
};

// Buckets of probability: bucket b holds y in (-(b + 1) / 16, -b / 16], the last one all the rest
// but minus infinity.
inline constexpr int kSampleBuckets = 512;

// Probability relative to the most probable token, in units of 2^-40. Integers: sums of them do not
// depend on order. A vocabulary of 2^23 tokens cannot overflow 64 bits.
inline constexpr float kSampleMassUnit = 0x1p40f;

struct SamplingKernels {
  // out = x with NaN made minus infinity and infinity the largest finite number; returns the
  // largest.
  float (*sanitize)(const float* x, int64_t n, float* out);
  // Sum of the masses of exp(x - max).
  uint64_t (*mass)(const float* x, int64_t n, float max);
  // Repetition, frequency and presence penalties; prompt_mask u8 and output_counts i32 of length n.
  void (*penalize)(float* x, int64_t n, const uint8_t* prompt_mask, const int32_t* output_counts,
                   float repetition, float presence, float frequency);
  // The lowest index of the largest element; 0 if all are minus infinity.
  int64_t (*argmax)(const float* x, int64_t n);
  // x = (x - max) / temperature.
  void (*scale)(float* x, int64_t n, float max, float temperature);
  // Adds the elements with y >= y_min to the counts, or the masses, of their buckets.
  void (*count_buckets)(const float* y, int64_t n, float y_min, int64_t* counts);
  void (*weigh_buckets)(const float* y, int64_t n, float y_min, uint64_t* masses);
  // The elements with low <= y <= high, in order of id; returns how many.
  int64_t (*gather)(const float* y, int64_t n, float low, float high, SampleCandidate* out);
  // The id with the largest y + Gumbel noise, ties to the lowest, among those with y > cut.y or
  // y == cut.y and id <= cut.id. One with y = 0 must be among them.
  int64_t (*gumbel_argmax)(const float* y, int64_t n, SampleCandidate cut, uint64_t seed,
                           uint32_t position);
};

SLUICE_DECLARE_KERNELS(SamplingKernels, GetSamplingKernels);

}  // namespace sluice
