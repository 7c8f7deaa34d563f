#include "kernels/cuda/cuda_backend.h"
#include "tests/conformance/device.h"

namespace sluice::conformance {

absl::StatusOr<std::unique_ptr<Backend>> MakeTestBackend(const CpuBackendOptions& options) {
  return MakeCudaBackend({.numerics = options.numerics});
}

bool QuantizesActivations() { return true; }

}  // namespace sluice::conformance
