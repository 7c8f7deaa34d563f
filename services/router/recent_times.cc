#include "services/router/recent_times.h"

#include <algorithm>
#include <cmath>

namespace sluice::router {

void RecentTimes::Add(absl::Duration duration, absl::Time now) {
  if (samples_.size() < kSamples) {
    samples_.push_back({duration, now});
    return;
  }
  samples_[next_] = {duration, now};
  next_ = (next_ + 1) % kSamples;
}

absl::Duration RecentTimes::Percentile(double fraction, absl::Time now) const {
  std::vector<absl::Duration> recent;
  for (const Sample& sample : samples_) {
    if (now - sample.at <= kWindow) recent.push_back(sample.duration);
  }
  if (recent.empty()) return absl::ZeroDuration();
  const double rank = std::ceil(fraction * static_cast<double>(recent.size()));
  const size_t index = std::clamp<size_t>(static_cast<size_t>(rank), 1, recent.size()) - 1;
  std::nth_element(recent.begin(), recent.begin() + static_cast<int64_t>(index), recent.end());
  return recent[index];
}

void RecentRate::Add(int64_t count, absl::Time now) {
  const int64_t second = absl::ToUnixSeconds(now);
  Second& slot = seconds_[second % (kSeconds + 1)];
  if (slot.second != second) slot = {second, 0};
  slot.count += count;
}

double RecentRate::PerSecond(absl::Time now) const {
  const int64_t second = absl::ToUnixSeconds(now);
  int64_t count = 0;
  for (const Second& slot : seconds_) {
    if (slot.second < second && slot.second >= second - kSeconds) count += slot.count;
  }
  return static_cast<double>(count) / kSeconds;
}

}  // namespace sluice::router
