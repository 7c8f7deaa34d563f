#include "kernels/backends/make_backend.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"

namespace sluice {

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const BackendOptions& options) {
  if (options.device == "cpu") {
    return MakeCpuBackend({.threads = options.threads, .numerics = options.numerics});
  }
  if (options.device == "cuda") return MakeCudaBackend({.numerics = options.numerics});
  absl::string_view number = options.device;
  int device = 0;
  if (absl::ConsumePrefix(&number, "cuda:") && absl::SimpleAtoi(number, &device) && device >= 0) {
    return MakeCudaBackend({.device = device, .numerics = options.numerics});
  }
  return absl::InvalidArgumentError(
      absl::StrCat("device: is '", options.device, "', wanted cpu, cuda or cuda:N"));
}

}  // namespace sluice
