// Copies in bf16 of weights that kernels want in bf16 and checkpoints have in another type: kv_b,
// which attention multiplies with activations of its own.
#pragma once

#include <cuda_bf16.h>

#include <unordered_map>

#include "absl/status/statusor.h"
#include "kernels/base/tensor_view.h"
#include "kernels/cuda/cuda_context.h"

namespace sluice {

class Bf16Copies {
 public:
  explicit Bf16Copies(const CudaContext& context) : context_(context) {}

  // The weight in bf16 without gaps: itself if it is that. Else its first call makes the copy,
  // which stays for good.
  absl::StatusOr<const __nv_bfloat16*> Get(const WeightView& w);

 private:
  struct Copy {
    WeightView of;
    CudaScratch memory;
  };
  const CudaContext& context_;
  std::unordered_map<const void*, Copy> copies_;  // by the weight's data
};

}  // namespace sluice
