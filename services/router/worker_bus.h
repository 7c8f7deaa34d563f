// How the core reaches workers.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "sluice/v1/control.pb.h"

namespace sluice::router {

using WorkerId = uint64_t;  // one Attach stream; never used twice

class WorkerBus {
 public:
  virtual ~WorkerBus() = default;
  // Queues the message; in order for each worker. Never blocks and never calls the core. A worker
  // whose queue is full, or whose stream is gone, is reported by RouterCore::OnWorkerGone later.
  virtual void Send(WorkerId worker, sluice::v1::RouterMessage message) = 0;
  // Ends the stream, and tells the worker why; what is queued is not sent any more. The core hears
  // nothing of it afterwards. Never blocks and never calls the core.
  virtual void End(WorkerId worker, const absl::Status& why) = 0;
};

}  // namespace sluice::router
