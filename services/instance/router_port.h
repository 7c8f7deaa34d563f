// The way from an instance to its routers.
#pragma once

#include <cstdint>

#include "sluice/v1/control.pb.h"

namespace sluice::instance {

// One connection of a router. A router that comes back is another one.
using RouterId = uint64_t;

// Send must not block. A router that cannot keep up is cut off by whoever implements this, and
// reported as gone. Messages to routers that are gone are dropped.
class RouterPort {
 public:
  virtual ~RouterPort() = default;
  virtual void Send(RouterId router, v1::WorkerMessage message) = 0;
};

}  // namespace sluice::instance
