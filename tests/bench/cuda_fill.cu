#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "tests/bench/cuda_fill.h"

namespace sluice::bench {
namespace {

// splitmix64: a counter in, 64 well mixed bits out.
__device__ uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

__device__ float Uniform(uint64_t bits) { return static_cast<float>(bits >> 40) * 0x1p-24f; }

__device__ float Normal(uint64_t bits) {  // Box and Muller
  const float radius = sqrtf(-2.0f * __logf(Uniform(bits) + 0x1p-25f));
  return radius * __cosf(6.2831853f * Uniform(bits << 24));
}

template <Fill kFill, typename T>
__global__ void FillKernel(T* out, int64_t count, float a, float b, uint64_t seed) {
  const int64_t first = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  for (int64_t i = first; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    const uint64_t bits = Mix(seed * 0xD1342543DE82EF95ull + i);
    const float value =
        kFill == Fill::kUniformF32 ? a + (b - a) * Uniform(bits) : a + b * Normal(bits);
    out[i] = static_cast<T>(value);
  }
}

__global__ void CountClockKernel(int64_t* cycles, int64_t* nanoseconds) {
  const auto now = [] {
    uint64_t t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
  };
  // From one tick of the coarse timer to one some ticks on.
  uint64_t start = now();
  while (now() == start) {
  }
  start = now();
  const int64_t first = clock64();
  uint64_t end;
  do {
    end = now();
  } while (end < start + 20000);
  cycles[0] = clock64() - first;
  nanoseconds[0] = static_cast<int64_t>(end - start);
}

}  // namespace

cudaError_t LaunchFill(Fill fill, void* out, int64_t count, float a, float b, uint64_t seed,
                       cudaStream_t stream) {
  constexpr int kBlocks = 2048, kThreads = 256;
  switch (fill) {
    case Fill::kNormalF32:
      FillKernel<Fill::kNormalF32>
          <<<kBlocks, kThreads, 0, stream>>>(static_cast<float*>(out), count, a, b, seed);
      break;
    case Fill::kNormalBf16:
      FillKernel<Fill::kNormalBf16>
          <<<kBlocks, kThreads, 0, stream>>>(static_cast<__nv_bfloat16*>(out), count, a, b, seed);
      break;
    case Fill::kNormalF8:
      FillKernel<Fill::kNormalF8>
          <<<kBlocks, kThreads, 0, stream>>>(static_cast<__nv_fp8_e4m3*>(out), count, a, b, seed);
      break;
    case Fill::kUniformF32:
      FillKernel<Fill::kUniformF32>
          <<<kBlocks, kThreads, 0, stream>>>(static_cast<float*>(out), count, a, b, seed);
      break;
  }
  return cudaGetLastError();
}

cudaError_t LaunchCountClock(int64_t* cycles, int64_t* nanoseconds, cudaStream_t stream) {
  CountClockKernel<<<1, 1, 0, stream>>>(cycles, nanoseconds);
  return cudaGetLastError();
}

}  // namespace sluice::bench
