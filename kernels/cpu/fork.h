// Forking only where it pays.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/cpu/thread_pool.h"

namespace sluice {

// About what handing work to other threads costs, in units of one vector operation (half a
// nanosecond or so).
inline constexpr int64_t kForkCost = 20000;

// pool.ParallelFor, or a plain loop when all tasks together are too little work to share.
// `cost` estimates one task in vector operations.
template <typename Fn>
void ForkIfWorth(ThreadPool& pool, int64_t tasks, int64_t cost, Fn&& fn) {
  if (tasks > 1 && pool.threads() > 1 && tasks * cost >= kForkCost) {
    pool.ParallelFor(tasks, fn);
    return;
  }
  for (int64_t task = 0; task < tasks; ++task) {
    if constexpr (std::is_invocable_v<Fn&, int64_t, int>) {
      fn(task, 0);
    } else {
      fn(task);
    }
  }
}

}  // namespace sluice
