// Rotates queries in place, and writes normed latents and rotated keys to the KV cache: one block
// of a token does the latent, others the heads.
#include <type_traits>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/early_launch.cuh"

namespace sluice::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 4;  // vectors of two pairs that a thread rotates

template <typename Cache>
__device__ Cache ToCache(float x);
template <>
__device__ float ToCache<float>(float x) {
  return x;
}
template <>
__device__ __nv_bfloat16 ToCache<__nv_bfloat16>(float x) {
  return __float2bfloat16(x);
}

__device__ float2 Rotate(float even, float odd, float cos, float sin) {
  return {even * cos - odd * sin, even * sin + odd * cos};
}

template <typename Cache>
__device__ void WriteRow(const CacheWriteArgs& args, const float* cos, const float* sin) {
  const MlaShape s = args.shape;
  const int32_t row = args.kv_rows[blockIdx.x];
  if (row < 0) return;
  const float* kv = args.kv_a + blockIdx.x * args.kv_a_stride;
  Cache* to = static_cast<Cache*>(args.cache) + (int64_t)row * (s.rank + s.rope);
  float squares = 0;
  for (int i = threadIdx.x; i < s.rank; i += kThreads) squares = fmaf(kv[i], kv[i], squares);
  const float factor = 1.0f / sqrtf(BlockSum(squares) / s.rank + args.eps);
  for (int i = threadIdx.x; i < s.rank; i += kThreads) {
    to[i] = ToCache<Cache>(kv[i] * factor * args.kv_norm[i]);
  }
  for (int pair = threadIdx.x; pair < s.rope / 2; pair += kThreads) {
    const float* from = kv + s.rank + 2 * pair;
    const float2 key = Rotate(from[0], from[1], cos[pair], sin[pair]);
    to[s.rank + 2 * pair] = ToCache<Cache>(key.x);
    to[s.rank + 2 * pair + 1] = ToCache<Cache>(key.y);
  }
}

template <bool kVectors>
__device__ void RotateQueries(const CacheWriteArgs& args, const float* cos, const float* sin) {
  const MlaShape s = args.shape;
  float* q = args.q + blockIdx.x * args.q_stride + s.nope;
  const int64_t head_stride = s.nope + s.rope;
  if constexpr (kVectors) {
    const int per_head = s.rope / 4, count = s.heads * per_head;
    const int begin = (blockIdx.y - 1) * kThreads * kEach + threadIdx.x;
    float4* places[kEach];
    float4 values[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = begin + i * kThreads;
      places[i] = reinterpret_cast<float4*>(q + at / per_head * head_stride) + at % per_head;
      if (at < count) values[i] = *places[i];
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = begin + i * kThreads;
      if (at >= count) continue;
      const float2 c = reinterpret_cast<const float2*>(cos)[at % per_head];
      const float2 n = reinterpret_cast<const float2*>(sin)[at % per_head];
      const float2 first = Rotate(values[i].x, values[i].y, c.x, n.x);
      const float2 second = Rotate(values[i].z, values[i].w, c.y, n.y);
      *places[i] = {first.x, first.y, second.x, second.y};
    }
  } else {
    const int pairs = s.rope / 2;
    for (int i = threadIdx.x; i < s.heads * pairs; i += kThreads) {
      float* x = q + i / pairs * head_stride + 2 * (i % pairs);
      const float2 rotated = Rotate(x[0], x[1], cos[i % pairs], sin[i % pairs]);
      x[0] = rotated.x;
      x[1] = rotated.y;
    }
  }
}

template <typename Cache, bool kVectors>
__global__ void __launch_bounds__(kThreads) CacheWriteKernel(CacheWriteArgs args) {
  StartAfterEarlier();
  const float* cos = args.cos_sin + (int64_t)args.positions[blockIdx.x] * args.shape.rope;
  const float* sin = cos + args.shape.rope / 2;
  if (blockIdx.y == 0) {
    WriteRow<Cache>(args, cos, sin);
  } else {
    RotateQueries<kVectors>(args, cos, sin);
  }
}

template <typename Cache>
cudaError_t LaunchAs(const CacheWriteArgs& args, cudaStream_t stream) {
  const MlaShape& s = args.shape;
  const bool vectors = InVectors(args.q, args.q_stride, s.nope) && s.rope % 4 == 0 &&
                       InVectors(args.cos_sin, 0, s.rope / 2, sizeof(float2));
  if (!vectors) {
    return LaunchEarly(CacheWriteKernel<Cache, false>, {dim3(args.tokens, 2), kThreads}, stream,
                       args);
  }
  const int count = s.heads * (s.rope / 4);
  const dim3 grid(args.tokens, 1 + (count + kThreads * kEach - 1) / (kThreads * kEach));
  return LaunchEarly(CacheWriteKernel<Cache, true>, {grid, kThreads}, stream, args);
}

}  // namespace

cudaError_t LaunchCacheWrite(const CacheWriteArgs& args, cudaStream_t stream) {
  if (args.tokens == 0) return cudaSuccess;
  return args.cache_bf16 ? LaunchAs<__nv_bfloat16>(args, stream) : LaunchAs<float>(args, stream);
}

}  // namespace sluice::cuda
