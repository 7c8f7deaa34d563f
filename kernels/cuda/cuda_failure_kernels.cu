#include "kernels/cuda/cuda_failure_kernels.h"

#include "kernels/cuda/device_wait.cuh"

namespace sluice::cuda {
namespace {

__global__ void TrapKernel() { __trap(); }

__global__ void WriteKernel(int* to) { *to = 1; }

__global__ void SpinKernel(int64_t nanoseconds) {
  const auto now = [] {
    int64_t t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
  };
  const int64_t end = now() + nanoseconds;
  while (now() < end) __nanosleep(1000);
}

__global__ void WaitKernel(const uint32_t* flag, WaitState* state) { WaitFor(flag, state); }

}  // namespace

cudaError_t LaunchTrap(cudaStream_t stream) {
  TrapKernel<<<1, 1, 0, stream>>>();
  return cudaGetLastError();
}

cudaError_t LaunchIllegalAddress(cudaStream_t stream) {
  WriteKernel<<<1, 1, 0, stream>>>(reinterpret_cast<int*>(uintptr_t{64}));
  return cudaGetLastError();
}

cudaError_t LaunchWait(const uint32_t* flag, WaitState* state, cudaStream_t stream) {
  WaitKernel<<<1, 1, 0, stream>>>(flag, state);
  return cudaGetLastError();
}

cudaError_t LaunchSpin(int64_t nanoseconds, cudaStream_t stream) {
  SpinKernel<<<1, 1, 0, stream>>>(nanoseconds);
  return cudaGetLastError();
}

}  // namespace sluice::cuda
