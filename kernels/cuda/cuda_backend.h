// The CUDA backend: every op of kernels/ops on one NVIDIA GPU.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/ops/backend.h"
#include "kernels/ops/numerics.h"

namespace sluice {

struct CudaBackendOptions {
  int device = 0;  // as CUDA counts
  // kFast takes the tensor cores where shapes and types allow: see README.md. kExact computes in
  // f32.
  Numerics numerics = Numerics::kExact;
};

// Tensors, weights and sampling rows of every op must lie in this backend's memory (Allocate), the
// spans of weight views on the host. StreamId 0 is the backend's one compute stream.
// FailedPrecondition when there is no driver or no such device, or its architecture is not one that
// the kernels were compiled for; Unimplemented in builds without CUDA.
absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaBackendOptions& options);

}  // namespace sluice
