// Stands in for the CUDA backend where the build has none.
#include "kernels/cuda/cuda_backend.h"

namespace sluice {

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaBackendOptions&) {
  return absl::UnimplementedError(
      "this program was built without CUDA: use the CPU backend, or build with the preset `cuda`, "
      "as docs/gpu.md says");
}

}  // namespace sluice
