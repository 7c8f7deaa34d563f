// A process that is to end, and does not: something hangs, and whoever waits for it hangs as well.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "absl/time/time.h"

namespace sluice {

// For everything that a process does after its drain; `sluice up` kills it a second later.
inline constexpr absl::Duration kStopMax = absl::Seconds(4);

// Lives longer than whatever might hang. When the time given to Start has passed before it is
// destroyed, it logs that, writes the log out if somebody reads it, and ends the process with
// status 1, without any destructor.
//
// Threads: any.
class ExitDeadline {
 public:
  ExitDeadline() = default;
  ~ExitDeadline();  // the process has come so far
  ExitDeadline(const ExitDeadline&) = delete;
  ExitDeadline& operator=(const ExitDeadline&) = delete;

  // Of several calls the one that ends first counts.
  void Start(absl::Duration limit);

 private:
  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  bool over_ = false;
  absl::Duration limit_;
  std::chrono::steady_clock::time_point at_;
  std::thread thread_;
};

}  // namespace sluice
