#include "services/router/preparation_pool.h"

#include <sys/resource.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "services/router/retry_hint.h"

namespace sluice::router {
namespace {

constexpr int kNice = 5;  // of these threads, on Linux a thread's own affair

PreparationPoolOptions WithEnoughThreads(PreparationPoolOptions options) {
  options.threads = std::max(options.threads, 2);
  return options;
}

}  // namespace

PreparationPool::PreparationPool(const PreparationPoolOptions& options)
    : options_(WithEnoughThreads(options)) {
  for (int i = 0; i < options_.threads; ++i) threads_.emplace_back([this] { RunThread(); });
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

bool PreparationPool::MayTakeLarge() const {
  return !large_.empty() && large_running_ < options_.threads - 1;
}

bool PreparationPool::HasWork() const { return stopping_ || !small_.empty() || MayTakeLarge(); }

void PreparationPool::RunThread() {
  setpriority(PRIO_PROCESS, 0, kNice);
  while (true) {
    Item item;
    bool is_large = false;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &PreparationPool::HasWork));
      if (stopping_) return;
      is_large = small_.empty();
      std::deque<Item>& queue = is_large ? large_ : small_;
      item = std::move(queue.front());
      queue.pop_front();
      waiting_bytes_ -= item.bytes;
      if (is_large) ++large_running_;
    }
    item.work();
    if (is_large) {
      absl::MutexLock lock(&mutex_);
      --large_running_;
    }
  }
}

}  // namespace sluice::router
