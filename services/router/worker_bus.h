// How the core reaches workers.
#pragma once

#include <cstdint>

#include "sluice/v1/control.pb.h"

namespace sluice::router {

using WorkerId = uint64_t;  // one Attach stream; never used twice

class WorkerBus {
 public:
  virtual ~WorkerBus() = default;
  // Queues the message; in order for each worker. Never blocks and never calls the core. A worker
  // whose queue is full, or whose stream is gone, is reported by RouterCore::OnWorkerGone later.
  virtual void Send(WorkerId worker, sluice::v1::RouterMessage message) = 0;
};

}  // namespace sluice::router
