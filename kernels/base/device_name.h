// How options and the cluster file name a device.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sluice {

struct DeviceName {
  bool cuda = false;
  int number = 0;  // of the GPU
};

// "cpu", "cuda" (GPU 0) or "cuda:N". InvalidArgument: "is 'x', wanted cpu, cuda or cuda:N".
absl::StatusOr<DeviceName> ParseDeviceName(absl::string_view text);

}  // namespace sluice
