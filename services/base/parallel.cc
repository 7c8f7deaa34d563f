#include "services/base/parallel.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace sluice {
namespace {

class Run {
 public:
  Run(int64_t count, const std::function<absl::Status(int64_t)>& fn) : count_(count), fn_(fn) {}

  void Work() {
    while (!failed_.load(std::memory_order_relaxed)) {
      const int64_t index = next_.fetch_add(1, std::memory_order_relaxed);
      if (index >= count_) return;
      absl::Status status = fn_(index);
      if (!status.ok()) Fail(index, std::move(status));
    }
  }

  // Once every thread has ended.
  const absl::Status& status() const { return status_; }

 private:
  void Fail(int64_t index, absl::Status status) {
    failed_ = true;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (index >= failed_index_) return;
    failed_index_ = index;
    status_ = std::move(status);
  }

  const int64_t count_;
  const std::function<absl::Status(int64_t)>& fn_;
  std::atomic<int64_t> next_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;  // of the two below
  int64_t failed_index_ = INT64_MAX;
  absl::Status status_;
};

}  // namespace

absl::Status ParallelFor(int64_t count, int threads,
                         const std::function<absl::Status(int64_t)>& fn) {
  if (threads <= 0) threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  Run run(count, fn);
  std::vector<std::thread> helpers;
  for (int64_t i = 1; i < std::min<int64_t>(threads, count); ++i) {
    helpers.emplace_back([&run] { run.Work(); });
  }
  run.Work();
  for (std::thread& helper : helpers) helper.join();
  return run.status();
}

}  // namespace sluice
