// A look inside a step, for tests that compare with other implementations.
#pragma once

#include <cstdint>

#include "kernels/base/tensor_view.h"

namespace sluice::engine {

// Views are valid during the call only. Rows are the step's tokens in the order of its chunks;
// where prompts are not absorbed, the chunks that are go first. Behind them may be rows of padding
// (decode_bucket.h). Called on the engine's thread.
class StepTap {
 public:
  virtual ~StepTap() = default;
  // The residual stream after a layer: f32 [tokens, hidden]. Layer -1 is the embedding.
  virtual void OnHidden(int64_t layer, const TensorView& hidden) = 0;
  // The choice of experts of an MoE layer: i32 and f32 [tokens, top_k], best first.
  virtual void OnExperts(int64_t layer, const TensorView& ids, const TensorView& weights) = 0;
  // Raw logits before sampling: f32 [sampling chunks, vocab].
  virtual void OnLogits(const TensorView& logits) = 0;
};

}  // namespace sluice::engine
