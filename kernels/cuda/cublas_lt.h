// Block-scaled FP8 products by cuBLASLt, which is at the limit with many rows of x.
#pragma once

#include <cublasLt.h>

#include <cstdint>
#include <list>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/cuda_context.h"

namespace sluice {

// out[m, n] (+)= x[m, k] w[n, k]^T, e4m3 in, f32 out. Everything lies on the device, and begins at
// a multiple of 16 bytes.
struct CublasLtProduct {
  int64_t m = 0;                    // a multiple of 4
  int64_t n = 0;                    // of 16
  int64_t k = 0;                    // of 512
  const void* x = nullptr;          // [m, k]
  const float* x_scales = nullptr;  // [k / 128, m]
  const void* w = nullptr;          // rows of w_stride bytes
  int64_t w_stride = 0;
  const float* w_scales = nullptr;  // [n / 128, k / 128]
  float* out = nullptr;             // rows of out_stride floats
  int64_t out_stride = 0;
  bool accumulate = false;
};

class CublasLt {
 public:
  explicit CublasLt(const CudaContext& context);
  ~CublasLt();

  // Allocates memory, once. Multiply does it, if nobody has.
  absl::Status Start();

  // Whether there is an algorithm for this shape: asked once, with m rounded up, and remembered for
  // kPlansMax shapes. Scales and x may be those of any other product.
  absl::StatusOr<bool> Takes(const CublasLtProduct& product);
  // Unimplemented when there is none: then nothing has been queued.
  absl::Status Multiply(const CublasLtProduct& product);

 private:
  struct Destroy {
    void operator()(cublasLtHandle_t handle) const { cublasLtDestroy(handle); }
  };
  // What cuBLASLt calls a product of this shape, and how it wants to compute it.
  struct Plan;

  absl::StatusOr<Plan*> PlanFor(const CublasLtProduct& product);

  static constexpr size_t kPlansMax = 64;

  const CudaContext& context_;
  std::unique_ptr<cublasLtContext, Destroy> handle_;
  CudaMemory workspace_;
  std::list<std::unique_ptr<Plan>> plans_;  // the last used first
};

}  // namespace sluice
