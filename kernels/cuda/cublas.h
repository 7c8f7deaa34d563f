// cuBLAS with its handle owned: products that it does as well as could be.
#pragma once

#include <cublas_v2.h>

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/cuda/cuda_context.h"

namespace sluice {

// A row-major matrix on the device, or as many of them as the product has, `stride` elements apart.
struct CublasMatrix {
  const void* data = nullptr;
  cudaDataType_t type = CUDA_R_16BF;
  int64_t row_stride = 0;  // elements
  int64_t stride = 0;
};

class Cublas {
 public:
  explicit Cublas(const CudaContext& context) : context_(context) {}

  // c[m, n] = a[m, k] b, `count` times; b is [n, k] when `b_transposed`, else [k, n]. c is added to
  // when `accumulate`. Sums are f32. The first call starts cuBLAS, which allocates memory.
  absl::Status Multiply(absl::string_view what, int64_t m, int64_t n, int64_t k,
                        const CublasMatrix& a, const CublasMatrix& b, bool b_transposed,
                        const CublasMatrix& c, int64_t count = 1, bool accumulate = false);

 private:
  struct Destroy {
    void operator()(cublasHandle_t handle) const { cublasDestroy(handle); }
  };
  absl::Status Start();

  const CudaContext& context_;
  std::unique_ptr<cublasContext, Destroy> handle_;
  CudaMemory workspace_;
};

}  // namespace sluice
