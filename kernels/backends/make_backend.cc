#include "kernels/backends/make_backend.h"

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "kernels/base/device_name.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"

namespace sluice {

void LoadKernelsAtStart() { setenv("CUDA_MODULE_LOADING", "EAGER", /*overwrite=*/0); }

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const BackendOptions& options) {
  const absl::StatusOr<DeviceName> device = ParseDeviceName(options.device);
  if (!device.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("device: ", device.status().message()));
  }
  if (device->cuda) {
    return MakeCudaBackend({.device = device->number, .numerics = options.numerics});
  }
  return MakeCpuBackend({.threads = options.threads, .numerics = options.numerics});
}

}  // namespace sluice
