// Activations as operands of the tensor cores: e4m3 with scales, or bf16.
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/tile_linear_launch.h"

namespace sluice::cuda {
namespace {

constexpr int kBlock = 128;  // columns of a scale
constexpr int kWarps = 4;
constexpr int kBlocksOfWarp = 4;

// The product that follows may start at once: it touches x only when this has ended. When rows are
// counted on the device it also reads those counts early, so it waits for whoever wrote them.
__device__ __forceinline__ void Begin(const OperandArgs& args) {
  const bool counted = args.row_count != nullptr || args.places != nullptr;
  if (!counted) LetNextKernelStart();
  WaitForEarlierKernels();
  if (counted) LetNextKernelStart();
}

__device__ __forceinline__ uint32_t ToE4m3(float4 v) {
  uint16_t low, high;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(v.y), "f"(v.x));
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(v.w), "f"(v.z));
  return uint32_t{low} | uint32_t{high} << 16;
}

// Calls store(row) for every row of the operand that row `row` of x is.
template <typename Store>
__device__ __forceinline__ void ForEachPlace(const OperandArgs& args, int row, Store store) {
  if (args.places == nullptr) return store(row);
  for (int i = 0; i < args.places_each; ++i) {
    const int32_t place = args.places[row * args.places_stride + i];
    if (place >= 0) store(place);
  }
}

// A warp for each kBlocksOfWarp * 128 columns of a row, so that several loads are under way.
__global__ void __launch_bounds__(kWarps * 32) QuantizeKernel(OperandArgs args) {
  Begin(args);
  const int row = blockIdx.x;
  if (args.row_count != nullptr && row >= *args.row_count) return;
  const int lane = threadIdx.x % 32;
  const float margin = 1e-4f;  // DeepSeek-V3 inference/kernel.py
  const int first = (blockIdx.y * kWarps + threadIdx.x / 32) * kBlocksOfWarp;
  const int count = min(kBlocksOfWarp, args.k / kBlock - first);
  const float4* const from =
      reinterpret_cast<const float4*>(args.x + row * args.x_stride + first * kBlock) + lane;
  float4 v[kBlocksOfWarp];
#pragma unroll
  for (int i = 0; i < kBlocksOfWarp; ++i) {
    if (i < count) v[i] = __ldcs(from + i * 32);
  }
#pragma unroll
  for (int i = 0; i < kBlocksOfWarp; ++i) {
    if (i >= count) break;
    float largest = fmaxf(fmaxf(fabsf(v[i].x), fabsf(v[i].y)), fmaxf(fabsf(v[i].z), fabsf(v[i].w)));
    // Bits of numbers that are not negative are in their order.
    largest = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(largest)));
    const float scale = fmaxf(largest, margin) / 448.0f;
    const float4 scaled =
        make_float4(v[i].x / scale, v[i].y / scale, v[i].z / scale, v[i].w / scale);
    const uint32_t operand = ToE4m3(scaled);
    ForEachPlace(args, row, [&](int64_t place) {
      reinterpret_cast<uint32_t*>(args.out)[(place * args.k + (first + i) * kBlock) / 4 + lane] =
          operand;
      if (lane == 0) args.scales[(first + i) * args.scale_stride + place] = scale;
    });
  }
}

// A thread for 4 columns of a row.
__global__ void __launch_bounds__(kWarps * 32) RoundKernel(OperandArgs args) {
  Begin(args);
  const int row = blockIdx.x;
  if (args.row_count != nullptr && row >= *args.row_count) return;
  for (int i = 0; i < kBlocksOfWarp; ++i) {
    const int column = ((blockIdx.y * kBlocksOfWarp + i) * blockDim.x + threadIdx.x) * 4;
    if (column >= args.k) return;
    const float4 v = *reinterpret_cast<const float4*>(args.x + row * args.x_stride + column);
    __nv_bfloat162 rounded[2] = {__floats2bfloat162_rn(v.x, v.y), __floats2bfloat162_rn(v.z, v.w)};
    ForEachPlace(args, row, [&](int64_t place) {
      *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(args.out) + place * args.k + column) =
          *reinterpret_cast<const uint2*>(rounded);
    });
  }
}

cudaError_t Launch(void (*kernel)(OperandArgs), const OperandArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  const int columns = kWarps * kBlocksOfWarp * kBlock;  // of a block
  const LaunchShape shape = {dim3(static_cast<unsigned>(args.rows),
                                  static_cast<unsigned>((args.k + columns - 1) / columns)),
                             kWarps * 32};
  return LaunchEarly(kernel, shape, stream, args);
}

}  // namespace

cudaError_t LaunchQuantize(const OperandArgs& args, cudaStream_t stream) {
  return Launch(QuantizeKernel, args, stream);
}

cudaError_t LaunchRoundOperand(const OperandArgs& args, cudaStream_t stream) {
  return Launch(RoundKernel, args, stream);
}

}  // namespace sluice::cuda
