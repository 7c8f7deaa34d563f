// The one place that knows every backend: programs ask here for the one their options name.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/ops/backend.h"
#include "kernels/ops/numerics.h"

namespace sluice {

struct BackendOptions {
  std::string device = "cpu";  // "cpu", "cuda" (GPU 0) or "cuda:N"
  int threads = 0;             // CPU alone; 0: one per core
  Numerics numerics = Numerics::kExact;
};

// For programs that serve, before they start threads: GPU backends have all their kernels loaded
// when they are made (two seconds, half a gigabyte of the GPU's memory), so that no step waits for
// a kernel that is used for the first time. CUDA_MODULE_LOADING in the environment goes before
// that.
void LoadKernelsAtStart();

// InvalidArgument for a device that there is no name for; otherwise as the backend's own factory.
absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const BackendOptions& options);

}  // namespace sluice
