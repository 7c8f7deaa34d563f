// Flags in global memory that one block raises and another waits for.
//
// Only ever wait for blocks that have started: others may never find a multiprocessor that is free.
#pragma once

#include <stdint.h>

#include "kernels/cuda/device_wait.h"

namespace sluice::cuda {

// Whoever waits for the flag then sees what this thread has written, and what barriers of its block
// have ordered before.
__device__ __forceinline__ void Raise(uint32_t* flag) {
  asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(flag) : "memory");
}

__device__ __forceinline__ bool IsRaised(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value != 0;
}

__device__ __forceinline__ int64_t Nanoseconds() {
  int64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// Until the flag is raised. Traps when it is told to or when that takes too long.
__device__ inline void WaitFor(const uint32_t* flag, WaitState* state) {
  constexpr int kTries = 1024;  // about a millisecond: looking at the host's memory takes as long
                                // as several
  int64_t since = 0;
  for (;;) {
    for (int i = 0; i < kTries; ++i) {
      if (IsRaised(flag)) return;
    }
    const auto* told = static_cast<const volatile WaitState*>(state);
    if (since == 0) since = Nanoseconds();
    const bool late = Nanoseconds() - since > int64_t{told->limit_ms} * 1'000'000;
    if (told->stop == 0 && !late) continue;
    static_cast<volatile WaitState*>(state)->gave_up = late ? kTookTooLong : kWasStopped;
    __threadfence_system();
    __trap();
  }
}

}  // namespace sluice::cuda
