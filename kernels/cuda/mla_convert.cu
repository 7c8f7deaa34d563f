// What attention wants in bf16 that is not: weights, and queries.
#include <cuda_bf16.h>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/mla_decode_launch.h"

namespace sluice::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kNope = 128, kRope = 64, kRank = 512;

template <Element kElement>
__global__ void ToBf16Kernel(ToBf16Args args) {
  for (int column = threadIdx.x; column < args.cols; column += blockDim.x) {
    args.out[int64_t{blockIdx.x} * args.cols + column] =
        __float2bfloat16(WeightAt<kElement>(args.w, blockIdx.x, column));
  }
}

// A thread for each four columns.
__global__ void __launch_bounds__(kThreads) SplitQueriesKernel(SplitQueriesArgs args) {
  StartAfterEarlier();
  constexpr int kQuads = (kNope + kRope) / 4;  // of a head
  const int quad = blockIdx.y * kThreads + threadIdx.x;
  if (quad >= args.heads * kQuads) return;
  const int column = quad % kQuads * 4;
  const int64_t row = int64_t{blockIdx.x} * args.heads + quad / kQuads;
  const float4 x =
      *reinterpret_cast<const float4*>(args.q + blockIdx.x * args.q_stride + int64_t{quad} * 4);
  const __nv_bfloat162 pairs[] = {__floats2bfloat162_rn(x.x, x.y), __floats2bfloat162_rn(x.z, x.w)};
  __nv_bfloat16* const to = column < kNope
                                ? args.nope + row * kNope + column
                                : args.queries + row * (kRank + kRope) + kRank + column - kNope;
  *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(pairs);
}

}  // namespace

cudaError_t LaunchToBf16(const ToBf16Args& args, cudaStream_t stream) {
  return DispatchElement(args.element, [&](auto element) {
    ToBf16Kernel<decltype(element)::value><<<args.rows, 128, 0, stream>>>(args);
    return cudaGetLastError();
  });
}

cudaError_t LaunchSplitQueries(const SplitQueriesArgs& args, cudaStream_t stream) {
  const int quads = args.heads * (kNope + kRope) / 4;
  const dim3 grid(args.tokens, (quads + kThreads - 1) / kThreads);
  return LaunchEarly(SplitQueriesKernel, {grid, kThreads}, stream, args);
}

}  // namespace sluice::cuda
