// From logits to tokens, on the device: logits never leave it.
//
// One row per sampled position. In this order:
//   1. logprobs asked for are log_softmax of the raw logits (before everything below, also at
//      temperature 0);
//   2. logit_bias is added; tokens in `banned` become minus infinity (stop tokens while fewer than
//      min_tokens were made);
//   3. repetition penalty on every token of the prompt or the output (positive logits divided,
//      others multiplied), then frequency * count and presence for tokens of the output;
//   4. temperature 0: the largest logit, ties to the lowest id. Otherwise
//      y = (logit - largest) / temperature;
//   5. min_p: tokens whose probability is under min_p times the largest are dropped; then top_k;
//      then top_p: the smallest set, from the most probable down (ties: lowest id first), whose
//      probability reaches top_p of what is left; at least one token always stays;
//   6. the token with the largest y + Gumbel noise, ties to the lowest id. The noise of a token is
//      a pure function of (seed, position, token id), written down in kernels/base/counter_rng.h:
//      neither the batch, nor the backend, nor what happened before matters. Probabilities are
//      summed in fixed point (2^-40 of the largest), so the order does not matter.
// A NaN among the logits counts as minus infinity, infinity as the largest finite number. When no
// logit is left the lowest id that is not banned is taken, or 0.
// Threads, ownership and errors as in kernels/ops/linear.h.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/base/tensor_view.h"
#include "kernels/ops/sampling_row.h"
#include "kernels/ops/stream.h"

namespace sluice {

struct SampleParams {
  TensorView logits;                  // f32 [R, vocab]; overwritten
  const SamplingRow* rows = nullptr;  // [R], on the device
  TensorView bias_ids;                // i32 [B]
  TensorView bias_values;             // f32 [B]
  TensorView banned_ids;              // i32 [N]
  // Per request slot: 1 where the prompt holds the token; how often the output holds it. Rows of
  // requests without penalties are neither read nor written. No data when no request has penalties.
  TensorView prompt_mask;     // u8  [slots, vocab]
  TensorView output_counts;   // i32 [slots, vocab]
  TensorView tokens;          // i32 [R]
  TensorView tokens_by_slot;  // i32 [slots]: the sampled token is also written to [slot]
  TensorView logprobs;        // f32 [R]: of the sampled token, for rows that ask
  TensorView top_ids;         // i32 [R, top_max]: most probable first, ties: lowest id first
  TensorView top_logprobs;    // f32 [R, top_max]
  // u8 [R], or no data: 1 where some raw logit is NaN or infinite; the row's token means nothing
  // then.
  TensorView not_finite;
};

class SamplingOps {
 public:
  virtual ~SamplingOps() = default;
  virtual absl::Status Sample(const SampleParams& params, StreamId stream) = 0;
};

}  // namespace sluice
