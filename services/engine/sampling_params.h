// What a request asks of sampling, and when it ends. Field by field as in kernels/ops/sampling.h.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace sluice::engine {

struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy
  float top_p = 1.0f;
  int32_t top_k = 0;  // 0: off
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  uint64_t seed = 0;  // whoever admits a request without a seed draws one
  std::vector<std::pair<int32_t, float>> logit_bias;  // token id, what is added to its logit

  int64_t max_tokens = 0;               // > 0; the sequence limit may end the request earlier
  int64_t min_tokens = 0;               // stop tokens cannot be sampled before so many tokens
  std::vector<int32_t> stop_token_ids;  // eos ids included, unless the client ignores eos

  int32_t num_logprobs = -1;  // -1: none; 0: of each sampled token; n: and of the n most probable

  bool has_penalties() const {
    return repetition_penalty != 1.0f || presence_penalty != 0.0f || frequency_penalty != 0.0f;
  }
};

inline constexpr int32_t kLogprobsMax = 20;
inline constexpr size_t kLogitBiasMax = 1024;
inline constexpr size_t kStopTokensMax = 128;

// InvalidArgument naming the field, its value and what is allowed.
absl::Status ValidateSamplingParams(const SamplingParams& params, int64_t vocab_size);

}  // namespace sluice::engine
