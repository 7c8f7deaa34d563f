#include <type_traits>

#include "kernels/cuda/device.cuh"

namespace sluice::cuda {
namespace {

constexpr int kThreads = 256;

template <Element kElement>
__global__ void EmbedKernel(EmbedArgs args) {
  const int token = blockIdx.x;
  const int32_t asked = args.ids[token];
  const int32_t id = asked >= 0 ? asked : args.tokens_by_slot[-(asked + 1)];
  if (threadIdx.x == 0) args.resolved_ids[token] = id;
  for (int i = threadIdx.x; i < args.hidden; i += kThreads) {
    args.out[token * args.out_stride + i] = WeightAt<kElement>(args.table, id, i);
  }
}

__global__ void RmsNormKernel(RmsNormArgs args) {
  const float* x = args.x + blockIdx.x * args.x_stride;
  float* out = args.out + blockIdx.x * args.out_stride;
  float squares = 0;
  for (int i = threadIdx.x; i < args.n; i += kThreads) squares = fmaf(x[i], x[i], squares);
  const float factor = 1.0f / sqrtf(BlockSum(squares) / args.n + args.eps);
  for (int i = threadIdx.x; i < args.n; i += kThreads) out[i] = x[i] * factor * args.weight[i];
}

__global__ void GatherRowsKernel(GatherRowsArgs args) {
  const float* x = args.x + args.rows[blockIdx.x] * args.x_stride;
  float* out = args.out + blockIdx.x * args.out_stride;
  for (int i = threadIdx.x; i < args.n; i += kThreads) out[i] = x[i];
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
    EmbedKernel<decltype(element)::value><<<args.tokens, kThreads, 0, stream>>>(args);
    return cudaGetLastError();
  });
}

cudaError_t LaunchRmsNorm(const RmsNormArgs& args, cudaStream_t stream) {
  if (args.rows == 0 || args.n == 0) return cudaSuccess;
  RmsNormKernel<<<args.rows, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t LaunchGatherRows(const GatherRowsArgs& args, cudaStream_t stream) {
  if (args.count == 0 || args.n == 0) return cudaSuccess;
  GatherRowsKernel<<<args.count, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace sluice::cuda
