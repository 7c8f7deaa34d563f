// How long steps take: what a router needs to tell a slow worker from a stuck one, and to guess how
// long a prompt will wait.
#pragma once

#include <cstdint>
#include <deque>

#include "absl/time/time.h"

namespace sluice::instance {

// Threads: one.
class StepTimes {
 public:
  // What a step took for itself alone, and the tokens of prompts in it.
  struct Taken {
    absl::Duration duration;
    int64_t prompt_tokens = 0;
  };

  // A step was handed to the engine, with so many tokens of prompts in it.
  void OnSubmit(absl::Time now, int64_t prompt_tokens);
  // The oldest one has ended.
  Taken OnResult(absl::Time now);

  bool in_flight() const { return !steps_.empty(); }
  // Of the last minute: between one and two of its halves are looked at.
  absl::Duration longest(absl::Time now) const;
  // Of all steps, a moving average; 0: none yet.
  double step_seconds() const { return step_seconds_; }
  // Of steps with prompts, a moving average; 0: none yet.
  double prompt_speed() const { return rate_; }

 private:
  struct Step {
    absl::Time submitted;
    int64_t prompt_tokens;
  };
  std::deque<Step> steps_;
  absl::Time last_result_ = absl::InfinitePast();
  absl::Time window_start_ = absl::InfinitePast();
  absl::Duration longest_, longest_before_;  // of this half minute, of the one before
  double rate_ = 0;
  double step_seconds_ = 0;
};

}  // namespace sluice::instance
