// A few threads that prepare requests, so that the event loop never does.
//
// Work comes in two kinds, each with threads of its own: a short prompt never waits behind a long
// one, and the kernel is told to prefer everybody to the threads that tokenize long prompts. What
// waits is bounded by number and by bytes.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/status.h"

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
  // ResourceExhausted with RetryAfter when too much waits. Where nothing waits, work of any size is
  // taken: it could never be, else.
  absl::Status Run(int64_t bytes, std::function<void()> work);

 private:
  struct Item {
    int64_t bytes;
    std::function<void()> work;
  };

  // Of one kind of work, for its threads alone.
  struct Queue {
    std::deque<Item> items;
    std::condition_variable changed;
  };

  void RunThread(bool large);

  const PreparationPoolOptions options_;
  // std::mutex and not absl::Mutex: the packaged Abseil is not built for the thread sanitizer.
  std::mutex mutex_;  // guards all below but threads_
  Queue small_;
  Queue large_;
  int64_t waiting_bytes_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace sluice::router
