#include "kernels/cuda/bf16_linear.h"

#include <cstdint>

#include "kernels/base/status.h"
#include "kernels/cuda/launch.h"

namespace sluice {

bool Bf16Linear::Takes(const TensorView& x, const WeightView& w, const TensorView& out) {
  return w.dtype == DType::kBF16 && w.cols % 8 == 0 && w.rows % 8 == 0 && w.row_stride % 8 == 0 &&
         out.row_stride % 4 == 0 && reinterpret_cast<uintptr_t>(w.data) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(out.data) % 16 == 0 && x.rows() > 0;
}

absl::Status Bf16Linear::Run(const TensorView& x, const WeightView& w, const TensorView& out,
                             bool accumulate) {
  const int64_t rows = x.rows(), elements = rows * w.cols;
  SLUICE_ASSIGN_OR_RETURN(void* const rounded, x_.Reserve(static_cast<size_t>(elements) * 2));
  SLUICE_RETURN_IF_ERROR(CudaStatus(cuda::LaunchRound({.x = x.As<float>(),
                                                       .x_stride = x.row_stride,
                                                       .rows = static_cast<int32_t>(rows),
                                                       .cols = static_cast<int32_t>(w.cols),
                                                       .out = static_cast<__nv_bfloat16*>(rounded)},
                                                      context_.stream),
                                    "rounding activations"));
  return cublas_.Multiply("bf16 matrix product", rows, w.rows, w.cols,
                          {.data = rounded, .row_stride = w.cols},
                          {.data = w.data, .row_stride = w.row_stride}, /*b_transposed=*/true,
                          {.data = out.data, .type = CUDA_R_32F, .row_stride = out.row_stride},
                          /*count=*/1, accumulate);
}

}  // namespace sluice
