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
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

absl::Status PreparationPool::Run(int64_t bytes, std::function<void()> work) {
  absl::MutexLock lock(&mutex_);
  const int64_t waiting = static_cast<int64_t>(small_.size() + large_.size());
  if (waiting >= options_.waiting_max || waiting_bytes_ + bytes > options_.waiting_bytes_max) {
    return WithRetryAfter(
        absl::ResourceExhaustedError(absl::StrCat(
            waiting, " requests of ", waiting_bytes_, " bytes wait to be tokenized; allowed are ",
            options_.waiting_max, " requests and ", options_.waiting_bytes_max, " bytes")),
        absl::Seconds(1));
  }
  waiting_bytes_ += bytes;
  (bytes >= options_.large_bytes ? large_ : small_).push_back({bytes, std::move(work)});
  return absl::OkStatus();
}

void PreparationPool::RunThread(bool large) {
  if (large) setpriority(PRIO_PROCESS, 0, kNice);
  while (true) {
    Item item;
    {
      absl::MutexLock lock(&mutex_);
      std::deque<Item>& queue = large ? large_ : small_;
      const auto has_work = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return stopping_ || !queue.empty();
      };
      mutex_.Await(absl::Condition(&has_work));
      if (stopping_) return;
      item = std::move(queue.front());
      queue.pop_front();
      waiting_bytes_ -= item.bytes;
    }
    item.work();
  }
}

}  // namespace sluice::router
