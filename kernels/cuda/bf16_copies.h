// Copies in bf16 of weights that kernels want in bf16 and checkpoints have in another type: kv_b,
// which attention multiplies with activations of its own.
//
// Threads: those of the ops that use it.
#pragma once

#include <cuda_bf16.h>

#include <memory>
#include <unordered_map>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/base/tensor_view.h"
#include "kernels/cuda/cuda_context.h"

namespace sluice {

class Bf16Copies {
 public:
  explicit Bf16Copies(const CudaContext& context) : context_(context) {}

  // A copy, made now, for Get to find as long as the result lives; null where Get needs none.
  absl::StatusOr<std::shared_ptr<const void>> Keep(const WeightView& w);

  // The weight in bf16 without gaps: itself if it is that, the copy that is kept, or one that is
  // made now, in memory that the next such call uses again.
  absl::StatusOr<const __nv_bfloat16*> Get(const WeightView& w);

 private:
  struct Copy {
    WeightView of;
    DeviceBuffer memory;
  };
  std::shared_ptr<const Copy> Find(const WeightView& w) const;
  absl::Status Convert(const WeightView& w, void* to) const;

  const CudaContext& context_;
  std::unordered_map<const void*, std::weak_ptr<const Copy>> kept_;  // by the weight's data
  CudaScratch scratch_;
};

}  // namespace sluice
