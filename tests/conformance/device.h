// The device that this build of the conformance tests runs on: cpu_device.cc or cuda_device.cc.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/ops/backend.h"

namespace sluice::conformance {

// Of `options`, other devices take the numerics alone.
absl::StatusOr<std::unique_ptr<Backend>> MakeTestBackend(const CpuBackendOptions& options);

// Whether its fast numerics multiply FP8 weights with activations in FP8, one scale for each row
// and 128 columns.
bool QuantizesActivations();

}  // namespace sluice::conformance
