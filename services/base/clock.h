// Time as a thing that is passed in, so that tests turn it by hand.
#pragma once

#include <chrono>
#include <mutex>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace sluice {

// Every method may be called from any thread. Now() never goes back.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;
};

// The wall clock as it was when this was made, and the monotonic clock from there on: differences
// are true even when somebody sets the machine's clock.
class RealClock final : public Clock {
 public:
  absl::Time Now() const override {
    return start_ + absl::FromChrono(std::chrono::steady_clock::now() - steady_start_);
  }

 private:
  const absl::Time start_ = absl::Now();
  const std::chrono::steady_clock::time_point steady_start_ = std::chrono::steady_clock::now();
};

// Stands still until it is told to move.
class ManualClock final : public Clock {
 public:
  explicit ManualClock(absl::Time start = absl::FromUnixSeconds(1'000'000'000)) : now_(start) {}

  absl::Time Now() const override {
    const std::lock_guard lock(mutex_);
    return now_;
  }
  // `step` must not be negative.
  void Advance(absl::Duration step) {
    const std::lock_guard lock(mutex_);
    now_ += step;
  }

 private:
  mutable std::mutex mutex_;  // guards now_
  absl::Time now_;
};

}  // namespace sluice
