// A fork-join pool: the threads that one backend computes with.
//
//   pool.ParallelFor(blocks, [&](int64_t block) { ... });
//   pool.ParallelFor(blocks, [&](int64_t block, int worker) { ... scratch[worker] ... });
//
// ParallelFor calls fn once for every task in [0, tasks) and returns when all are done; everything
// written by tasks is then visible to the caller. The caller takes part as worker 0. Tasks are
// claimed in chunks while running, so uneven ones balance out, and nothing may depend on which
// worker runs which task. No memory is allocated, and no worker is waited for that did not start.
// Idle workers spin for kSpin and then sleep in the kernel.
//
// Threads: one ParallelFor at a time per pool; a second one, from a task or from another thread,
// aborts the process. Tasks must not throw.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace sluice {

class ThreadPool {
 public:
  static constexpr std::chrono::microseconds kSpin{20};

  // `threads` counts the caller: 1 starts no thread and runs everything inline. At least 1.
  explicit ThreadPool(int threads);
  ~ThreadPool();  // joins; no ParallelFor may be running
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // fn(int64_t task) or fn(int64_t task, int worker), worker in [0, threads()).
  template <typename Fn>
  void ParallelFor(int64_t tasks, Fn&& fn) {
    using Callable = std::remove_reference_t<Fn>;
    Run(tasks, &RunRange<Callable>, const_cast<std::remove_const_t<Callable>*>(&fn));
  }

 private:
  using RangeFn = void (*)(void* fn, int64_t begin, int64_t end, int worker);

  template <typename Callable>
  static void RunRange(void* fn, int64_t begin, int64_t end, int worker) {
    Callable& call = *static_cast<Callable*>(fn);
    for (int64_t task = begin; task < end; ++task) {
      if constexpr (std::is_invocable_v<Callable&, int64_t, int>) {
        call(task, worker);
      } else {
        call(task);
      }
    }
  }

  void Run(int64_t tasks, RangeFn range_fn, void* fn);
  void Claim(int worker);  // runs chunks until none is left
  void Work(int worker);   // a worker's life

  // The job. Written by the caller while no worker is inside; read by workers inside.
  RangeFn range_fn_ = nullptr;
  void* fn_ = nullptr;
  int64_t tasks_ = 0;
  int64_t chunk_ = 1;

  // Job number in the upper half, kOpen while workers may enter, and the number of workers inside.
  alignas(64) std::atomic<uint32_t> state_{0};
  alignas(64) std::atomic<int64_t> next_{0};  // first unclaimed task
  alignas(64) std::atomic<bool> busy_{false};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

// Cores that this process may run on.
int UsableCores();

}  // namespace sluice
