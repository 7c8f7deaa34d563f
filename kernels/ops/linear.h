// Matrix products with weights: dense, gated (SwiGLU) and grouped by expert.
//
// All activations are f32 [rows, features], row-major; a row may be part of a wider matrix
// (TensorView::row_stride). Weights are [outputs, inputs] as checkpoints store them.
// Threads: one call at a time per stream. Ops own nothing; views must outlive the work on the
// stream. Errors: InvalidArgument when types or shapes disagree, before anything is computed.
#pragma once

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/base/tensor_view.h"
#include "kernels/ops/stream.h"

namespace sluice {

enum class Precision {
  kBackend,  // what the backend's numerics give (CPU `exact`: f32; `fast`: may round x to bf16)
  kF32,      // f32 products and sums always: the router of a mixture of experts
};

// out = x w^T, or out += x w^T.
struct LinearParams {
  TensorView x;    // f32 [M, K]
  WeightView w;    //     [N, K]
  TensorView out;  // f32 [M, N], must not alias x
  bool accumulate = false;
  Precision precision = Precision::kBackend;
};

// outs[i] = x weights[i]^T: products of the same x, which is prepared once.
struct MultiLinearParams {
  TensorView x;                          // f32 [M, K]
  absl::Span<const WeightView> weights;  // of [N_i, K]
  absl::Span<const TensorView> outs;     // of f32 [M, N_i], must alias neither x nor each other
};

// out = silu(x gate^T) * (x up^T).
struct GatedLinearParams {
  TensorView x;     // f32 [M, K]
  WeightView gate;  //     [N, K]
  WeightView up;    //     [N, K]
  TensorView out;   // f32 [M, N], must not alias x
};

// Rows sorted by group: rows [offsets[g], offsets[g + 1]) of x meet the weights of group g.
// Offsets lie on the device, so no group size is ever read back; offsets[0] = 0, and rows of x
// beyond offsets[G] are neither read nor written in out.
struct GroupedLinearParams {
  TensorView x;                          // f32 [R, K]
  absl::Span<const WeightView> weights;  // G of [N, K]
  TensorView offsets;                    // i32 [G + 1]
  TensorView out;                        // f32 [R, N]
};

struct GroupedGatedLinearParams {
  TensorView x;                        // f32 [R, K]
  absl::Span<const WeightView> gates;  // G of [N, K]
  absl::Span<const WeightView> ups;    // G of [N, K]
  TensorView offsets;                  // i32 [G + 1]
  TensorView out;                      // f32 [R, N]
  // i32 [T, P], or no data. x is [T, K] then, and row pair_rows[t, p] stands for x[t]; -1 is no
  // row. Every row of a group must stand for some x.
  TensorView pair_rows;
};

class LinearOps {
 public:
  virtual ~LinearOps() = default;
  virtual absl::Status Linear(const LinearParams& params, StreamId stream) = 0;
  virtual absl::Status MultiLinear(const MultiLinearParams& params, StreamId stream) = 0;
  virtual absl::Status GatedLinear(const GatedLinearParams& params, StreamId stream) = 0;
  virtual absl::Status GroupedLinear(const GroupedLinearParams& params, StreamId stream) = 0;
  virtual absl::Status GroupedGatedLinear(const GroupedGatedLinearParams& params,
                                          StreamId stream) = 0;
};

}  // namespace sluice
