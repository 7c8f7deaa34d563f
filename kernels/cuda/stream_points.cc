#include "kernels/cuda/stream_points.h"

#include "kernels/base/status.h"
#include "kernels/cuda/cuda_context.h"

namespace sluice {

absl::StatusOr<std::unique_ptr<StreamPoints>> StreamPoints::Create() {
  std::unique_ptr<StreamPoints> points(new StreamPoints());
  for (cudaEvent_t& event : points->events_) {
    SLUICE_RETURN_IF_ERROR(
        CudaStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event"));
  }
  return points;
}

StreamPoints::~StreamPoints() {
  for (cudaEvent_t event : events_) {
    if (event != nullptr) cudaEventDestroy(event);
  }
}

absl::StatusOr<StreamPoint> StreamPoints::Record(cudaStream_t stream) {
  const uint64_t number = newest_ + 1;
  SLUICE_RETURN_IF_ERROR(
      CudaStatus(cudaEventRecord(events_[number % kKept], stream), "marking a layer's KV"));
  newest_ = number;
  return StreamPoint{number};
}

absl::Status StreamPoints::Wait(StreamPoint point, cudaStream_t stream) const {
  if (point.number == 0) return absl::OkStatus();
  return CudaStatus(cudaStreamWaitEvent(stream, events_[point.number % kKept], 0),
                    "waiting for a layer's KV");
}

}  // namespace sluice
