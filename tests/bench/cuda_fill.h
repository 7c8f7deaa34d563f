// Kernels that the harness itself needs (cuda_fill.cu).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace sluice::bench {

enum class Fill { kNormalF32, kNormalBf16, kNormalF8, kUniformF32 };

// `count` elements: normal with mean a and deviation b, or uniform in [a, b).
cudaError_t LaunchFill(Fill fill, void* out, int64_t count, float a, float b, uint64_t seed,
                       cudaStream_t stream);

// Counts the clock of one SM for some 20 us: cycles[0] over nanoseconds[0].
cudaError_t LaunchCountClock(int64_t* cycles, int64_t* nanoseconds, cudaStream_t stream);

}  // namespace sluice::bench
