#include "services/router/preparation_pool.h"

#include <sys/resource.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "services/router/retry_hint.h"

namespace sluice::router {
namespace {

constexpr int kNice = 5;  // of threads for large work; on Linux a thread's own affair

PreparationPoolOptions WithEnoughThreads(PreparationPoolOptions options) {
  options.threads = std::max(options.threads, 2);
  return options;
}

}  // namespace

PreparationPool::PreparationPool(const PreparationPoolOptions& options)
    : options_(WithEnoughThreads(options)) {
  for (int i = 0; i < options_.threads; ++i) {
    threads_.emplace_back([this, large = i < options_.threads / 2] { RunThread(large); });
  }
}

PreparationPool::~PreparationPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  small_.changed.notify_all();
  large_.changed.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

absl::Status PreparationPool::Run(int64_t bytes, std::function<void()> work) {
  const std::lock_guard lock(mutex_);
  const int64_t waiting = static_cast<int64_t>(small_.items.size() + large_.items.size());
  const bool too_many_bytes =
      waiting_bytes_ > 0 && waiting_bytes_ + bytes > options_.waiting_bytes_max;
  if (waiting >= options_.waiting_max || too_many_bytes) {
    return WithRetryAfter(
        absl::ResourceExhaustedError(absl::StrCat(
            waiting, " requests of ", waiting_bytes_, " bytes wait to be tokenized; allowed are ",
            options_.waiting_max, " requests and ", options_.waiting_bytes_max, " bytes")),
        absl::Seconds(1));
  }
  waiting_bytes_ += bytes;
  Queue& queue = bytes >= options_.large_bytes ? large_ : small_;
  queue.items.push_back({bytes, std::move(work)});
  queue.changed.notify_one();
  return absl::OkStatus();
}

void PreparationPool::RunThread(bool large) {
  if (large) setpriority(PRIO_PROCESS, 0, kNice);
  Queue& queue = large ? large_ : small_;
  while (true) {
    Item item;
    {
      std::unique_lock lock(mutex_);
      queue.changed.wait(lock, [&] { return stopping_ || !queue.items.empty(); });
      if (stopping_) return;
      item = std::move(queue.items.front());
      queue.items.pop_front();
      waiting_bytes_ -= item.bytes;
    }
    item.work();
  }
}

}  // namespace sluice::router
