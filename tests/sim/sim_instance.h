// What the simulated cluster asks of an instance, whatever is inside.
#pragma once

#include <cstdint>

#include "sluice/v1/control.pb.h"

namespace sluice::sim {

class Instance {
 public:
  virtual ~Instance() = default;
  virtual v1::Hello hello() const = 0;
  virtual void OnMessage(const v1::RouterMessage& message) = 0;
  // Its stream broke: everything that the router had placed here is over.
  virtual void OnRouterGone() = 0;
  // KV for one of its leases has come.
  virtual void OnKv(uint64_t lease, bool fails) = 0;
  // The loop's turn: one step, and what is due.
  virtual void Step() = 0;
  virtual void Heartbeat() = 0;
  // Wedged: it says that it lives, but its steps stand still.
  virtual void SetWedged(bool wedged) = 0;
  virtual void BeginDrain() = 0;
  // It makes no faults of its own from now on.
  virtual void StopFaults() = 0;
  // It holds nothing for anybody.
  virtual bool idle() const = 0;
};

}  // namespace sluice::sim
