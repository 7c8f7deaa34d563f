// The weights of a rank in the memory of a device that cannot compute from the host's.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/ops/backend.h"
#include "services/base/progress.h"
#include "services/model/weights.h"

namespace sluice::engine {

// A copy of the weights in one allocation of the backend; FP8 stays FP8, rows are packed. Matrices
// that share memory share it in the copy too. What lies in files is read from there, on `threads`
// threads (0: one per core); what is random is made on the device. The copy may outlive `weights`,
// but not the backend. ResourceExhausted when the device has no room. Waits until everything is
// there.
absl::StatusOr<std::shared_ptr<const model::ModelWeights>> CopyWeightsToDevice(
    const model::ModelWeights& weights, Backend* backend, int threads = 0,
    const ProgressOut& progress = {});

}  // namespace sluice::engine
