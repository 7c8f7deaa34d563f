// Products with block-scaled FP8 weights on the tensor cores: x is quantised to FP8, one scale per
// row and 128 columns, as DeepSeek-V3's reference does it (fp8_linear.cu).
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/base/tensor_view.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/weight_tables.h"

namespace sluice {

class Fp8Linear {
 public:
  explicit Fp8Linear(const CudaContext& context);

  // Whether products of these can be done here: FP8 in blocks of 128 x 128, and sizes and places
  // that TMA takes.
  static bool Takes(const TensorView& x, absl::Span<const WeightView> weights,
                    absl::Span<const WeightView> ups, const TensorView& out);

  // As kernels/ops/linear.h has it, for what Takes: plain, or gated when there are ups; grouped
  // when `offsets` has data.
  // The first call with more rows than any before allocates scratch memory, and waits for the
  // stream to do so.
  absl::Status Run(const TensorView& x, absl::Span<const WeightView> weights,
                   absl::Span<const WeightView> ups, const TensorView& offsets,
                   const TensorView& out, bool accumulate);

 private:
  absl::Status Reserve(int64_t rows, int64_t cols);

  const CudaContext& context_;
  WeightTables<cuda::Fp8Weight> tables_;
  CudaMemory partial_, flags_;
  CudaMemory x_, x_scales_;
  int64_t x_bytes_ = 0, x_scales_count_ = 0;
};

}  // namespace sluice
