// The stream that a CUDA backend queues its work on, for who must time or capture that work, and
// what kernels there look at that wait for each other.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/device_wait.h"
#include "kernels/ops/backend.h"

namespace sluice {

// Of a backend that MakeCudaBackend made, any other is a mistake of the caller's and ends the
// process. Lives as long as the backend. The stream can be captured into a CUDA graph once every op
// has run with the largest sizes and with all of its weights: until then ops allocate memory.
cudaStream_t StreamOf(Backend& backend);
cuda::WaitState* WaitStateOf(Backend& backend);  // likewise

}  // namespace sluice
