// Kernels that go wrong on purpose (cuda_failure_kernels.cu), for cuda_failure_test.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/device_wait.h"

namespace sluice::cuda {

cudaError_t LaunchTrap(cudaStream_t stream);            // a kernel that stops itself
cudaError_t LaunchIllegalAddress(cudaStream_t stream);  // writes where nothing is
// Runs for so long whatever happens, as a kernel does that waits for something that never comes.
cudaError_t LaunchSpin(int64_t nanoseconds, cudaStream_t stream);
// Waits, as kernels wait for blocks of their own, for a flag that nobody raises.
cudaError_t LaunchWait(const uint32_t* flag, WaitState* state, cudaStream_t stream);
// Lowers flags as soon as somebody raises them, for so long. One block, which sets `running`
// (memory of the host that the GPU sees) when it starts.
cudaError_t LaunchTakeBack(uint32_t* flags, int count, int64_t nanoseconds, uint32_t* running,
                           cudaStream_t stream);

}  // namespace sluice::cuda
