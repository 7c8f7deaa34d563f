// Points of a stream as numbers: recorded on one thread, waited for by streams of others.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops/stream.h"

namespace sluice {

// Holds the last kKept points. Who waits for an older one waits for one that came after it.
// Threads: Record from one, Wait from any.
class StreamPoints {
 public:
  static constexpr uint64_t kKept = 256;  // layers of two steps, and more

  // On the current device.
  static absl::StatusOr<std::unique_ptr<StreamPoints>> Create();
  ~StreamPoints();
  StreamPoints(const StreamPoints&) = delete;

  absl::StatusOr<StreamPoint> Record(cudaStream_t stream);
  // Lets what is queued on `stream` from now on start at the point.
  absl::Status Wait(StreamPoint point, cudaStream_t stream) const;

 private:
  StreamPoints() = default;

  std::array<cudaEvent_t, kKept> events_ = {};
  uint64_t newest_ = 0;
};

}  // namespace sluice
