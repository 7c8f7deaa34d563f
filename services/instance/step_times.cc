#include "services/instance/step_times.h"

#include <algorithm>

namespace sluice::instance {
namespace {

constexpr absl::Duration kWindow = absl::Seconds(30);
constexpr double kNewest = 0.2;  // the share of the newest step in the average

}  // namespace

void StepTimes::OnSubmit(absl::Time now, int64_t prompt_tokens) {
  steps_.push_back({now, prompt_tokens});
}

StepTimes::Taken StepTimes::OnResult(absl::Time now) {
  const Step step = steps_.front();
  steps_.pop_front();
  // Submitted while the one before ran: it began when that one ended.
  const absl::Duration duration = now - std::max(step.submitted, last_result_);
  last_result_ = now;
  if (now >= window_start_ + kWindow) {
    longest_before_ = now < window_start_ + 2 * kWindow ? longest_ : absl::ZeroDuration();
    longest_ = absl::ZeroDuration();
    window_start_ = now;
  }
  longest_ = std::max(longest_, duration);
  const double seconds = absl::ToDoubleSeconds(duration);
  step_seconds_ =
      step_seconds_ == 0 ? seconds : step_seconds_ + kNewest * (seconds - step_seconds_);
  if (step.prompt_tokens > 0 && duration > absl::ZeroDuration()) {
    const double rate = static_cast<double>(step.prompt_tokens) / seconds;
    rate_ = rate_ == 0 ? rate : rate_ + kNewest * (rate - rate_);
  }
  return {duration, step.prompt_tokens};
}

absl::Duration StepTimes::longest(absl::Time now) const {
  if (now >= window_start_ + 2 * kWindow) return absl::ZeroDuration();
  return std::max(longest_, longest_before_);
}

}  // namespace sluice::instance
