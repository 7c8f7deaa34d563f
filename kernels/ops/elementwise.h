// What happens to activations between the matrix products.
// Threads, ownership and errors as in kernels/ops/linear.h.
#pragma once

#include "absl/status/status.h"
#include "kernels/base/tensor_view.h"
#include "kernels/ops/stream.h"

namespace sluice {

// out[t] = table[ids[t]], widened to f32. Every id must lie in [0, rows of table): the engine
// checks requests before they are planned. A negative id -(slot + 1) stands for "the token that
// slot sampled last": tokens_by_slot[slot]. That is how a step refers to the tokens of a step that
// has not been read yet. The ids that were meant are written to resolved_ids.
struct EmbedParams {
  TensorView ids;             // i32 [T]
  TensorView tokens_by_slot;  // i32 [slots]
  WeightView table;           //     [vocab, hidden]
  TensorView out;             // f32 [T, hidden]
  TensorView resolved_ids;    // i32 [T]
};

// out = x * rsqrt(mean(x^2) + eps) * weight, over each row.
struct RmsNormParams {
  TensorView x;       // f32 [T, D]
  TensorView weight;  // f32 [D]
  float eps = 1e-6f;
  TensorView out;  // f32 [T, D], may be x itself
};

// out[i] = x[rows[i]].
struct GatherRowsParams {
  TensorView x;     // f32 [T, D]
  TensorView rows;  // i32 [R], each in [0, T)
  TensorView out;   // f32 [R, D]
};

class ElementwiseOps {
 public:
  virtual ~ElementwiseOps() = default;
  virtual absl::Status Embed(const EmbedParams& params, StreamId stream) = 0;
  virtual absl::Status RmsNorm(const RmsNormParams& params, StreamId stream) = 0;
  virtual absl::Status GatherRows(const GatherRowsParams& params, StreamId stream) = 0;
};

}  // namespace sluice
