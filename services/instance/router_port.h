// The way between an instance and its routers, without gRPC.
#pragma once

#include <cstdint>

#include "sluice/v1/control.pb.h"

namespace sluice::instance {

// One connection of a router. A router that comes back is another one.
using RouterId = uint64_t;

// To routers. From any thread; never blocks. A router that cannot keep up is cut off by whoever
// implements this, and reported as gone. Messages to routers that are gone are dropped.
class RouterPort {
 public:
  virtual ~RouterPort() = default;
  virtual void Send(RouterId router, v1::WorkerMessage message) = 0;
  virtual void SendToAll(const v1::WorkerMessage& message) = 0;
};

// From routers. Called from any thread, for one router in order: OnAttached first, OnGone last.
// Must not block.
class RouterListener {
 public:
  virtual ~RouterListener() = default;
  virtual void OnAttached(RouterId router) = 0;
  // False: too much waits to be looked at already; the router is to be cut off.
  virtual bool OnMessage(RouterId router, v1::RouterMessage message) = 0;
  virtual void OnGone(RouterId router) = 0;
};

}  // namespace sluice::instance
