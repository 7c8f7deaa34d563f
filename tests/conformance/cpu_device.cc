#include "tests/conformance/device.h"

namespace sluice::conformance {

absl::StatusOr<std::unique_ptr<Backend>> MakeTestBackend(const CpuBackendOptions& options) {
  return MakeCpuBackend(options);
}

bool QuantizesActivations() { return false; }

}  // namespace sluice::conformance
