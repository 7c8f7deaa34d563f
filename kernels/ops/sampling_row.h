// What one row of a sampling call wants. Plain data, apart from the op because device code reads it
// too; kernels/ops/sampling.h says what the fields mean.
#pragma once

#include <cstdint>

namespace sluice {

// An array of these lies on the device.
struct SamplingRow {
  float temperature = 1.0f;
  float top_p = 1.0f;               // 1: off
  float min_p = 0.0f;               // 0: off
  int32_t top_k = 0;                // 0: off
  float repetition_penalty = 1.0f;  // 1: off
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  uint64_t seed = 0;
  int32_t position = 0;    // index of this token among the outputs of its request: 0, 1, …
  int32_t slot = 0;        // row of tokens_by_slot and of the two count tables
  int32_t bias_begin = 0;  // logit_bias entries [bias_begin, bias_end)
  int32_t bias_end = 0;
  int32_t banned_begin = 0;  // banned tokens [banned_begin, banned_end)
  int32_t banned_end = 0;
  int32_t num_logprobs = -1;  // -1: none asked for; 0: of the sampled token; n: and of the n best
  // Adds the sampled token to output_counts[slot], when penalties are on for this request.
  bool counts_tokens = false;
};

}  // namespace sluice
