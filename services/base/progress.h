// Tells a person how far a long piece of work has come: a bar on a terminal; elsewhere a line per
// ten percent, at most one a second, and one at the end; or the same to a function, for a log.
//
// Threads: Add may be called from any thread; it is cheap, and the bar moves ten times a second.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <mutex>
#include <string>

namespace sluice {

// Where to; by default nowhere.
struct ProgressOut {
  std::FILE* file = nullptr;
  // Called on any thread, one at a time.
  std::function<void(const std::string& label, int64_t percent, int64_t total_bytes)> tell;
};

class Progress {
 public:
  Progress(std::string label, int64_t total_bytes, ProgressOut out);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress();  // shows where it ended and ends the bar's line

  void Add(int64_t bytes);

 private:
  using Clock = std::chrono::steady_clock;
  void Show(int64_t done, bool last);  // under the mutex

  const std::string label_;
  const int64_t total_;
  const ProgressOut out_;
  const bool terminal_;
  const Clock::time_point start_ = Clock::now();
  std::atomic<int64_t> done_{0};
  std::mutex mutex_;  // of the two below and of what is printed
  Clock::time_point shown_at_ = start_;
  int64_t shown_percent_ = 0;
};

// "512 B", "15.5 MiB", "688.6 GiB": three or four digits and a binary unit.
std::string HumanBytes(int64_t bytes);

}  // namespace sluice
