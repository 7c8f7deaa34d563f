// Runs requests to their end on one engine, in the caller's thread: what a command line or a test
// needs of serving. Services drive Scheduler and Engine themselves.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "services/engine/engine.h"
#include "services/engine/scheduler.h"

namespace sluice::engine {

class Generator {
 public:
  // `engine` must outlive the generator and be used by it alone.
  explicit Generator(Engine* engine);

  absl::Status Add(Request request) { return scheduler_.Add(std::move(request)); }
  absl::Status Cancel(uint64_t id) { return scheduler_.Cancel(id); }
  bool idle() const { return scheduler_.idle(); }

  // Keeps the engine supplied and waits for the oldest step; appends its tokens. DeadlineExceeded
  // when the step takes longer than the engine's step_limit.
  absl::Status Step(std::vector<TokenEvent>* events);

  const Scheduler& scheduler() const { return scheduler_; }

 private:
  Engine* const engine_;
  Scheduler scheduler_;
  uint64_t oldest_ = 1;  // number of the next step to wait for
  uint64_t submitted_ = 0;
  StepResult result_;
};

}  // namespace sluice::engine
