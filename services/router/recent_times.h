// Durations of the last minute, for people who watch: percentiles and how many a second.
//
// Threads: one. The newest kSamples are kept: at high rates percentiles are of less than a minute.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/time/time.h"

namespace sluice::router {

class RecentTimes {
 public:
  static constexpr size_t kSamples = 1024;
  static constexpr absl::Duration kWindow = absl::Minutes(1);

  void Add(absl::Duration duration, absl::Time now);
  // The smallest duration that `fraction` (0 to 1) of them do not exceed; zero without any.
  absl::Duration Percentile(double fraction, absl::Time now) const;

 private:
  struct Sample {
    absl::Duration duration;
    absl::Time at;
  };
  std::vector<Sample> samples_;  // a ring once full
  size_t next_ = 0;
};

// How often something happened, over the last whole seconds.
class RecentRate {
 public:
  static constexpr int64_t kSeconds = 10;

  void Add(int64_t count, absl::Time now);
  double PerSecond(absl::Time now) const;

 private:
  struct Second {
    int64_t second = 0;  // Unix
    int64_t count = 0;
  };
  Second seconds_[kSeconds + 1];
};

}  // namespace sluice::router
