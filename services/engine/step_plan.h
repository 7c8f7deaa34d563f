// One step of an instance as a rank gets it, and what comes back.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "services/engine/sampling_params.h"

namespace sluice::engine {

// In a chunk's tokens: the token that the chunk's slot sampled last. A step may be submitted before
// the step that samples it has been read, or even run.
inline constexpr int32_t kSampledToken = -1;

// One request's share of a step: `tokens` at positions first_position, first_position + 1, …
// Everything a span points to must stay until Submit returns.
struct StepChunk {
  int32_t slot = 0;  // the request's place in the batch, 0 .. slots_max - 1
  int64_t first_position = 0;
  absl::Span<const int32_t> tokens;  // at least one
  absl::Span<const int32_t> pages;   // of the whole sequence, in order; cover every position so far
  // Sample a token after the chunk's last one; null: this chunk only fills the cache.
  const SamplingParams* sampling = nullptr;
  int64_t output_position = 0;  // index of that token among the outputs of the request
};

// Before the step runs, forget what the slot counted for penalties, then count these tokens.
struct SlotReset {
  int32_t slot = 0;
  absl::Span<const int32_t> prompt;
  absl::Span<const int32_t> output;
};

struct StepPlan {
  uint64_t number = 0;  // 1, 2, 3, …
  absl::Span<const SlotReset> resets;
  absl::Span<const StepChunk> chunks;  // at most one per slot
};

struct TokenLogprob {
  int32_t token_id = 0;
  float logprob = 0;
};

// One sampled token.
struct SampledToken {
  int32_t token_id = 0;
  float logprob = 0;        // when asked for
  bool not_finite = false;  // logits were NaN or infinite: the model or the device is damaged
  std::vector<TokenLogprob> top_logprobs;  // most probable first
};

struct SlotResult {
  int32_t slot = 0;
  // 0 .. k tokens in order. One per sampling chunk today; speculation will yield more.
  std::vector<SampledToken> tokens;
};

struct StepResult {
  uint64_t number = 0;
  std::vector<SlotResult> slots;  // of the chunks that sample, in their order
};

}  // namespace sluice::engine
