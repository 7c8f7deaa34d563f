// Products with bf16 weights on the tensor cores, by cuBLAS: x is rounded to bf16.
#pragma once

#include "absl/status/status.h"
#include "kernels/base/tensor_view.h"
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/cuda_context.h"

namespace sluice {

class Bf16Linear {
 public:
  explicit Bf16Linear(const CudaContext& context) : context_(context), cublas_(context) {}

  // Sizes and places of multiples of 16 bytes, so that cuBLAS has a fast kernel.
  static bool Takes(const TensorView& x, const WeightView& w, const TensorView& out);

  // As kernels/ops/linear.h has it, for what Takes. The first call with more of x than any before
  // allocates scratch memory, and waits for the stream to do so.
  absl::Status Run(const TensorView& x, const WeightView& w, const TensorView& out,
                   bool accumulate);

 private:
  const CudaContext& context_;
  Cublas cublas_;
  CudaScratch x_;  // in bf16
};

}  // namespace sluice
