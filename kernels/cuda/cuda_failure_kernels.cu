#include "kernels/cuda/cuda_failure_kernels.h"

#include "kernels/cuda/device_wait.cuh"

namespace sluice::cuda {
namespace {

__global__ void TrapKernel() { __trap(); }

__global__ void WriteKernel(int* to) { *to = 1; }

__global__ void SpinKernel(int64_t nanoseconds) {
  const int64_t end = Nanoseconds() + nanoseconds;
  while (Nanoseconds() < end) __nanosleep(1000);
}

__global__ void WaitKernel(const uint32_t* flag, WaitState* state) { WaitFor(flag, state); }

__global__ void TakeBackKernel(volatile uint32_t* flags, int count, int64_t nanoseconds,
                               volatile uint32_t* running) {
  if (threadIdx.x == 0) {
    *running = 1;
    __threadfence_system();
  }
  const int64_t end = Nanoseconds() + nanoseconds;
  while (Nanoseconds() < end) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) flags[i] = 0;
    __nanosleep(200);
  }
}

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

cudaError_t LaunchTakeBack(uint32_t* flags, int count, int64_t nanoseconds, uint32_t* running,
                           cudaStream_t stream) {
  TakeBackKernel<<<1, 128, 0, stream>>>(flags, count, nanoseconds, running);
  return cudaGetLastError();
}

cudaError_t LaunchSpin(int64_t nanoseconds, cudaStream_t stream) {
  SpinKernel<<<1, 1, 0, stream>>>(nanoseconds);
  return cudaGetLastError();
}

}  // namespace sluice::cuda
