#include "kernels/cpu/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <system_error>

#include "absl/base/internal/raw_logging.h"

namespace sluice {
namespace {

constexpr uint32_t kInsideMask = 0x7fff;
constexpr uint32_t kOpen = 0x8000;
constexpr uint32_t kJobUnit = 0x10000;
constexpr uint32_t kJobMask = 0xffff0000;

// Chunks per thread: enough to even out tasks, few enough that claiming costs nothing.
constexpr int64_t kChunksPerThread = 8;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// Returns a state for which done(state) holds: spins for a while, then sleeps between changes.
template <typename Done>
uint32_t AwaitState(const std::atomic<uint32_t>& state, Done done) {
  const auto deadline = std::chrono::steady_clock::now() + ThreadPool::kSpin;
  do {
    for (int i = 0; i < 8; ++i) {
      const uint32_t now = state.load(std::memory_order_acquire);
      if (done(now)) return now;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  uint32_t now = state.load(std::memory_order_acquire);
  while (!done(now)) {
    state.wait(now, std::memory_order_acquire);
    now = state.load(std::memory_order_acquire);
  }
  return now;
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  ABSL_RAW_CHECK(threads >= 1 && threads <= static_cast<int>(kInsideMask),
                 "a thread pool needs 1 to 32767 threads");
  workers_.reserve(threads - 1);
  for (int worker = 1; worker < threads; ++worker) {
    try {
      workers_.emplace_back([this, worker] { Work(worker); });
    } catch (const std::system_error&) {
      break;  // the system gives no more; threads() says how many there are
    }
    pthread_setname_np(workers_.back().native_handle(), "sluice-compute");
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  state_.fetch_add(kJobUnit, std::memory_order_release);
  state_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Run(int64_t tasks, RangeFn range_fn, void* fn) {
  if (tasks <= 0) return;
  ABSL_RAW_CHECK(!busy_.exchange(true, std::memory_order_acquire),
                 "ParallelFor inside a task, or from two threads at once");
  if (workers_.empty() || tasks == 1) {
    range_fn(fn, 0, tasks, 0);
  } else {
    range_fn_ = range_fn;
    fn_ = fn;
    tasks_ = tasks;
    chunk_ = 1 + (tasks - 1) / (kChunksPerThread * threads());
    next_.store(0, std::memory_order_relaxed);
    // Closed and with nobody inside, the state has no other writer.
    const uint32_t opened = (state_.load(std::memory_order_relaxed) & kJobMask) + kJobUnit + kOpen;
    state_.store(opened, std::memory_order_release);
    state_.notify_all();
    Claim(0);
    state_.fetch_and(~kOpen, std::memory_order_relaxed);
    AwaitState(state_, [](uint32_t state) { return (state & kInsideMask) == 0; });
  }
  busy_.store(false, std::memory_order_release);
}

void ThreadPool::Claim(int worker) {
  for (;;) {
    const int64_t begin = next_.fetch_add(chunk_, std::memory_order_relaxed);
    if (begin >= tasks_) return;
    const int64_t end = begin + chunk_ < tasks_ ? begin + chunk_ : tasks_;
    range_fn_(fn_, begin, end, worker);
  }
}

void ThreadPool::Work(int worker) {
  uint32_t last_job = 0;  // the number of the last job seen; a job is entered at most once
  for (;;) {
    uint32_t state = AwaitState(state_, [&](uint32_t now) {
      return ((now & kOpen) != 0 && (now & kJobMask) != last_job) ||
             stop_.load(std::memory_order_relaxed);
    });
    if (stop_.load(std::memory_order_relaxed)) return;
    last_job = state & kJobMask;
    // Enter, unless the job was closed meanwhile.
    bool inside = false;
    while ((state & kOpen) != 0 && (state & kJobMask) == last_job) {
      if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acquire)) {
        inside = true;
        break;
      }
    }
    if (!inside) continue;
    Claim(worker);
    const uint32_t before = state_.fetch_sub(1, std::memory_order_release);
    // Only the last one out of a closed job can be awaited.
    if ((before & (kOpen | kInsideMask)) == 1) state_.notify_all();
  }
}

int UsableCores() {
  int cores = static_cast<int>(std::thread::hardware_concurrency());
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) cores = CPU_COUNT(&allowed);
  // A container's share: "QUOTA PERIOD" in microseconds, or "max PERIOD".
  if (std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "re")) {
    long quota = 0, period = 0;
    if (std::fscanf(file, "%ld %ld", &quota, &period) == 2 && quota > 0 && period > 0) {
      cores = static_cast<int>(std::min<long>(cores, (quota + period - 1) / period));
    }
    std::fclose(file);
  }
  return std::max(cores, 1);
}

}  // namespace sluice
