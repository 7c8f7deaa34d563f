// A few threads that prepare requests, so that the event loop never does.
//
// Work comes in two kinds, each with threads of its own: a short prompt never waits behind a long
// one, and the kernel is told to prefer everybody to the threads that tokenize long prompts. What
// waits is bounded by number and by bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace sluice::router {

struct PreparationPoolOptions {
  int threads = 2;  // at least 2: half of them, rounded down, for large work
  int64_t waiting_max = 4096;
  int64_t waiting_bytes_max = int64_t{256} << 20;
  int64_t large_bytes = 64 << 10;  // work of so many bytes or more is large
};

class PreparationPool {
 public:
  explicit PreparationPool(const PreparationPoolOptions& options);
  // Drops what waits, ends what runs.
  ~PreparationPool();
  PreparationPool(const PreparationPool&) = delete;
  PreparationPool& operator=(const PreparationPool&) = delete;

  // Runs `work` on some thread of its kind.
  // ResourceExhausted with RetryAfter when too much waits.
  absl::Status Run(int64_t bytes, std::function<void()> work);

 private:
  struct Item {
    int64_t bytes;
    std::function<void()> work;
  };

  void RunThread(bool large);

  const PreparationPoolOptions options_;
  absl::Mutex mutex_;
  std::deque<Item> small_ ABSL_GUARDED_BY(mutex_);
  std::deque<Item> large_ ABSL_GUARDED_BY(mutex_);
  int64_t waiting_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace sluice::router
