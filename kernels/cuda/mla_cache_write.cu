// Rotates queries in place, and writes normed latents and rotated keys to the KV cache: one block
// of a token does the latent, others the heads.
#include <type_traits>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/early_launch.cuh"
#include "kernels/ops/attention_layout.h"

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
__device__ void WriteLatent(const CacheWriteArgs& args, const float* kv, float factor, Cache* to) {
  for (int i = threadIdx.x; i < args.shape.rank; i += kThreads) {
    to[i] = ToCache<Cache>(kv[i] * factor * args.kv_norm[i]);
  }
}

// A warp for each group of elements that share a scale.
__device__ void WriteLatentF8(const CacheWriteArgs& args, const float* kv, float factor,
                              uint8_t* to, float* scales) {
  constexpr int kPerLane = kF8KvGroup / 32;
  const int rank = args.shape.rank, lane = threadIdx.x % 32;
  for (int group = threadIdx.x / 32; group * kF8KvGroup < rank; group += kThreads / 32) {
    float values[kPerLane];
    float largest = 1e-4f;
    for (int i = 0; i < kPerLane; ++i) {
      const int at = group * kF8KvGroup + lane + 32 * i;
      values[i] = at < rank ? kv[at] * factor * args.kv_norm[at] : 0.0f;
      largest = fmaxf(largest, fabsf(values[i]));
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
    }
    const float scale = largest / 448.0f;
    if (lane == 0) scales[group] = scale;
    for (int i = 0; i < kPerLane; ++i) {
      const int at = group * kF8KvGroup + lane + 32 * i;
      if (at < rank) to[at] = __nv_fp8_e4m3(values[i] / scale).__x;
    }
  }
}

template <typename Cache>
__device__ void WriteKey(const CacheWriteArgs& args, const float* kv, const float* cos,
                         const float* sin, Cache* to) {
  for (int pair = threadIdx.x; pair < args.shape.rope / 2; pair += kThreads) {
    const float* from = kv + args.shape.rank + 2 * pair;
    const float2 key = Rotate(from[0], from[1], cos[pair], sin[pair]);
    to[2 * pair] = ToCache<Cache>(key.x);
    to[2 * pair + 1] = ToCache<Cache>(key.y);
  }
}

template <Element kCache>
__device__ void WriteRow(const CacheWriteArgs& args, const float* cos, const float* sin) {
  const MlaShape s = args.shape;
  const int64_t row = args.kv_rows[blockIdx.x];
  if (row < 0) return;
  const float* kv = args.kv_a + blockIdx.x * args.kv_a_stride;
  float squares = 0;
  for (int i = threadIdx.x; i < s.rank; i += kThreads) squares = fmaf(kv[i], kv[i], squares);
  const float factor = 1.0f / sqrtf(BlockSum(squares) / s.rank + args.eps);
  if constexpr (kCache == Element::kF8E4M3) {
    uint8_t* to = static_cast<uint8_t*>(args.cache) + row * F8KvRowBytes(s.rank, s.rope);
    WriteLatentF8(args, kv, factor, to, reinterpret_cast<float*>(to + F8KvScalesAt(s.rank)));
    WriteKey(args, kv, cos, sin, reinterpret_cast<__nv_bfloat16*>(to + F8KvKeyAt(s.rank)));
  } else {
    auto* to = static_cast<typename Stored<kCache>::Type*>(args.cache) + row * (s.rank + s.rope);
    WriteLatent(args, kv, factor, to);
    WriteKey(args, kv, cos, sin, to + s.rank);
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

template <Element kCache, bool kVectors>
__global__ void __launch_bounds__(kThreads) CacheWriteKernel(CacheWriteArgs args) {
  StartAfterEarlier();
  const float* cos = args.cos_sin + (int64_t)args.positions[blockIdx.x] * args.shape.rope;
  const float* sin = cos + args.shape.rope / 2;
  if (blockIdx.y == 0) {
    WriteRow<kCache>(args, cos, sin);
  } else {
    RotateQueries<kVectors>(args, cos, sin);
  }
}

template <Element kCache>
cudaError_t LaunchAs(const CacheWriteArgs& args, cudaStream_t stream) {
  const MlaShape& s = args.shape;
  const bool vectors = InVectors(args.q, args.q_stride, s.nope) && s.rope % 4 == 0 &&
                       InVectors(args.cos_sin, 0, s.rope / 2, sizeof(float2));
  if (!vectors) {
    return LaunchEarly(CacheWriteKernel<kCache, false>, {dim3(args.tokens, 2), kThreads}, stream,
                       args);
  }
  const int count = s.heads * (s.rope / 4);
  const dim3 grid(args.tokens, 1 + (count + kThreads * kEach - 1) / (kThreads * kEach));
  return LaunchEarly(CacheWriteKernel<kCache, true>, {grid, kThreads}, stream, args);
}

}  // namespace

cudaError_t LaunchCacheWrite(const CacheWriteArgs& args, cudaStream_t stream) {
  if (args.tokens == 0) return cudaSuccess;
  switch (args.cache_element) {
    case Element::kF32:
      return LaunchAs<Element::kF32>(args, stream);
    case Element::kBF16:
      return LaunchAs<Element::kBF16>(args, stream);
    case Element::kF8E4M3:
      return LaunchAs<Element::kF8E4M3>(args, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace sluice::cuda
