// Which kernels run, and for how long, as CUPTI tells it. One trace at a time in a process.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sluice::bench {

struct KernelTime {
  std::string name;  // with template arguments, without parameters
  int64_t calls = 0;
  // Of all calls together: from the end of the kernel before, or the call's own start if that is
  // later, to its end. A kernel launched early, which waits for the one before, is not charged for
  // waiting, and all kernels add up to the time in which any ran.
  double us = 0;
};

// Before the first CUDA graph is made: kernels of graphs are told apart only then.
void PrepareKernelTrace();

// Kernels that begin from here on are recorded, until StopKernelTrace.
void StartKernelTrace();

// By kernel, the longest first. Waits for the GPU.
std::vector<KernelTime> StopKernelTrace();

}  // namespace sluice::bench
