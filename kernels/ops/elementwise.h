// What happens to activations between the matrix products, and weights made of random numbers.
// Threads, ownership and errors as in kernels/ops/linear.h.
#pragma once

#include "absl/status/status.h"
#include "kernels/base/random_numbers.h"
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

// Overwrites `out`, which lies at (row_begin, col_begin) of a whole matrix [rows, cols], with its
// part of that matrix: element i in row-major order is RandomNumber(numbers, i), rounded to out's
// type. In FP8 (f32, bf16 and it are known), scales are written too: of each block of the whole
// matrix amax / 448, or 1 if amax is 0, amax being that of all its elements, in `out` or not;
// elements are e4m3(number / scale). Blocks must begin where those of the whole matrix do:
// out.row_begin and row_begin are equal modulo scale_block, and so are the columns. The same bits
// on every backend.
struct FillRandomParams {
  RandomNumbers numbers;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_begin = 0;
  int64_t col_begin = 0;
  WeightView out;  // names memory that may be written
};

class ElementwiseOps {
 public:
  virtual ~ElementwiseOps() = default;
  virtual absl::Status Embed(const EmbedParams& params, StreamId stream) = 0;
  virtual absl::Status RmsNorm(const RmsNormParams& params, StreamId stream) = 0;
  virtual absl::Status GatherRows(const GatherRowsParams& params, StreamId stream) = 0;
  virtual absl::Status FillRandom(const FillRandomParams& params, StreamId stream) = 0;
};

}  // namespace sluice
