// Time and chance of a simulation: events in order of their time, then of their making, and one
// seeded source of randomness for everything.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <random>
#include <utility>

#include "absl/time/time.h"

namespace sluice::sim {

class World {
 public:
  explicit World(uint64_t seed) : rng_(seed) {}

  absl::Time now() const { return now_; }
  void After(absl::Duration delay, std::function<void()> event) {
    events_.emplace(std::make_pair(now_ + delay, next_++), std::move(event));
  }
  // Runs the next event. False when there is none.
  bool Step() {
    if (events_.empty()) return false;
    auto node = events_.extract(events_.begin());
    now_ = node.key().first;
    node.mapped()();
    return true;
  }

  // In [0, limit).
  uint64_t Random(uint64_t limit) { return rng_() % limit; }
  bool Chance(double probability) {
    return static_cast<double>(rng_() >> 11) * 0x1p-53 < probability;
  }
  absl::Duration RandomDuration(absl::Duration low, absl::Duration high) {
    return low + absl::Nanoseconds(Random(absl::ToInt64Nanoseconds(high - low) + 1));
  }

 private:
  std::mt19937_64 rng_;
  absl::Time now_ = absl::FromUnixSeconds(1'000'000'000);
  uint64_t next_ = 0;
  std::map<std::pair<absl::Time, uint64_t>, std::function<void()>> events_;
};

}  // namespace sluice::sim
