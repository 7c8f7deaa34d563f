// Embedding, norm and gathering of rows: in vectors of four floats where addresses and widths
// allow.
#include <algorithm>
#include <type_traits>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/early_launch.cuh"

namespace sluice::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 4;  // vectors of four floats that a thread copies

// Blocks along y for rows of n floats.
unsigned RowParts(int n) {
  return std::max(1, (n / 4 + kThreads * kEach - 1) / (kThreads * kEach));
}

// Four stored elements.
template <Element kElement>
struct Stored4;
template <>
struct Stored4<Element::kF32> {
  float4 bits;
  __device__ float4 Widen() const { return bits; }
};
template <>
struct Stored4<Element::kBF16> {
  uint2 bits;
  __device__ float4 Widen() const {
    return {__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000u),
            __uint_as_float(bits.y << 16), __uint_as_float(bits.y & 0xffff0000u)};
  }
};

__device__ int32_t ResolveId(const EmbedArgs& args, int token) {
  const int32_t asked = args.ids[token];
  const int32_t id = asked >= 0 ? asked : args.tokens_by_slot[-(asked + 1)];
  if (threadIdx.x == 0 && blockIdx.y == 0) args.resolved_ids[token] = id;
  return id;
}

// Any type and alignment.
template <Element kElement>
__global__ void EmbedKernel(EmbedArgs args) {
  StartAfterEarlier();
  const int token = blockIdx.x;
  const int32_t id = ResolveId(args, token);
  for (int i = threadIdx.x; i < args.hidden; i += kThreads) {
    args.out[token * args.out_stride + i] = WeightAt<kElement>(args.table, id, i);
  }
}

template <Element kElement>
__global__ void __launch_bounds__(kThreads) EmbedVectorsKernel(EmbedArgs args) {
  StartAfterEarlier();
  const int token = blockIdx.x, begin = blockIdx.y * kThreads * kEach + threadIdx.x;
  const int32_t id = ResolveId(args, token);
  using Vector = Stored4<kElement>;
  const auto* from = reinterpret_cast<const Vector*>(
      static_cast<const typename Stored<kElement>::Type*>(args.table.data) +
      id * args.table.row_stride);
  auto* out = reinterpret_cast<float4*>(args.out + token * args.out_stride);
  Vector vectors[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (begin + i * kThreads < args.hidden / 4) vectors[i] = from[begin + i * kThreads];
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (begin + i * kThreads < args.hidden / 4) out[begin + i * kThreads] = vectors[i].Widen();
  }
}

template <Element kElement>
cudaError_t LaunchEmbedAs(const EmbedArgs& args, cudaStream_t stream) {
  if constexpr (kElement == Element::kF32 || kElement == Element::kBF16) {
    if (InVectors(args.table.data, args.table.row_stride, args.hidden, sizeof(Stored4<kElement>)) &&
        InVectors(args.out, args.out_stride, args.hidden)) {
      const dim3 grid(args.tokens, RowParts(args.hidden));
      return LaunchEarly(EmbedVectorsKernel<kElement>, {grid, kThreads}, stream, args);
    }
  }
  return LaunchEarly(EmbedKernel<kElement>, {dim3(args.tokens), kThreads}, stream, args);
}

// Any width and alignment.
__global__ void RmsNormKernel(RmsNormArgs args) {
  StartAfterEarlier();
  const float* x = args.x + blockIdx.x * args.x_stride;
  float* out = args.out + blockIdx.x * args.out_stride;
  float squares = 0;
  for (int i = threadIdx.x; i < args.n; i += kThreads) squares = fmaf(x[i], x[i], squares);
  const float factor = 1.0f / sqrtf(BlockSum(squares) / args.n + args.eps);
  for (int i = threadIdx.x; i < args.n; i += kThreads) out[i] = x[i] * factor * args.weight[i];
}

// A row stays in the registers of its block: each thread has kEach vectors of it.
constexpr int kNormThreadsMax = 512;

__global__ void __launch_bounds__(kNormThreadsMax) RmsNormVectorsKernel(RmsNormArgs args) {
  StartAfterEarlier();
  const auto* x = reinterpret_cast<const float4*>(args.x + blockIdx.x * args.x_stride);
  const auto* weight = reinterpret_cast<const float4*>(args.weight);
  auto* out = reinterpret_cast<float4*>(args.out + blockIdx.x * args.out_stride);
  const int count = args.n / 4;
  float4 values[kEach], weights[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int at = threadIdx.x + i * blockDim.x;
    values[i] = at < count ? x[at] : float4{0, 0, 0, 0};
    weights[i] = at < count ? weight[at] : float4{0, 0, 0, 0};
  }
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const float4 v = values[i];
    squares = fmaf(v.x, v.x, fmaf(v.y, v.y, fmaf(v.z, v.z, fmaf(v.w, v.w, squares))));
  }
  const float factor = 1.0f / sqrtf(BlockSum(squares) / args.n + args.eps);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int at = threadIdx.x + i * blockDim.x;
    const float4 v = values[i], w = weights[i];
    if (at < count) {
      out[at] = {v.x * factor * w.x, v.y * factor * w.y, v.z * factor * w.z, v.w * factor * w.w};
    }
  }
}

// Any width and alignment.
__global__ void GatherRowsKernel(GatherRowsArgs args) {
  StartAfterEarlier();
  const float* x = args.x + args.rows[blockIdx.x] * args.x_stride;
  float* out = args.out + blockIdx.x * args.out_stride;
  for (int i = threadIdx.x; i < args.n; i += kThreads) out[i] = x[i];
}

__global__ void __launch_bounds__(kThreads) GatherVectorsKernel(GatherRowsArgs args) {
  StartAfterEarlier();
  const int begin = blockIdx.y * kThreads * kEach + threadIdx.x, count = args.n / 4;
  const auto* x = reinterpret_cast<const float4*>(args.x + args.rows[blockIdx.x] * args.x_stride);
  auto* out = reinterpret_cast<float4*>(args.out + blockIdx.x * args.out_stride);
  float4 vectors[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (begin + i * kThreads < count) vectors[i] = x[begin + i * kThreads];
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (begin + i * kThreads < count) out[begin + i * kThreads] = vectors[i];
  }
}

__global__ void RoundKernel(RoundArgs args) {
  const int column = blockIdx.y * blockDim.x + threadIdx.x;
  if (column >= args.cols) return;
  const int64_t row = blockIdx.x;
  args.out[row * args.cols + column] = __float2bfloat16(args.x[row * args.x_stride + column]);
}

}  // namespace

cudaError_t LaunchRound(const RoundArgs& args, cudaStream_t stream) {
  if (args.rows == 0 || args.cols == 0) return cudaSuccess;
  const dim3 grid(args.rows, (args.cols + 255) / 256);
  RoundKernel<<<grid, 256, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t LaunchEmbed(const EmbedArgs& args, cudaStream_t stream) {
  if (args.tokens == 0) return cudaSuccess;
  return DispatchElement(args.element, [&](auto element) {
    return LaunchEmbedAs<decltype(element)::value>(args, stream);
  });
}

cudaError_t LaunchRmsNorm(const RmsNormArgs& args, cudaStream_t stream) {
  if (args.rows == 0 || args.n == 0) return cudaSuccess;
  const int threads = (args.n / 4 + kEach * 32 - 1) / (kEach * 32) * 32;
  if (threads <= kNormThreadsMax && InVectors(args.x, args.x_stride, args.n) &&
      InVectors(args.out, args.out_stride, args.n) && InVectors(args.weight, 0, args.n)) {
    return LaunchEarly(RmsNormVectorsKernel, {dim3(args.rows), threads}, stream, args);
  }
  return LaunchEarly(RmsNormKernel, {dim3(args.rows), kThreads}, stream, args);
}

cudaError_t LaunchGatherRows(const GatherRowsArgs& args, cudaStream_t stream) {
  if (args.count == 0 || args.n == 0) return cudaSuccess;
  if (InVectors(args.x, args.x_stride, args.n) && InVectors(args.out, args.out_stride, args.n)) {
    const dim3 grid(args.count, RowParts(args.n));
    return LaunchEarly(GatherVectorsKernel, {grid, kThreads}, stream, args);
  }
  return LaunchEarly(GatherRowsKernel, {dim3(args.count), kThreads}, stream, args);
}

}  // namespace sluice::cuda
