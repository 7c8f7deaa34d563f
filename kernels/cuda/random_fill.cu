// Matrices of random numbers. Bound by integer arithmetic (two 64-bit products an element), not by
// memory: FP8 computes each number twice, once for the block's largest and once to store it, rather
// than keep it.
#include <type_traits>

#include "kernels/base/random_numbers.h"
#include "kernels/cuda/device.cuh"

namespace sluice::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = 4;  // neighbouring columns of a thread

__device__ float NumberAt(const FillRandomArgs& args, int64_t row, int64_t col) {
  return RandomNumber({args.key, args.scale, args.mean},
                      static_cast<uint64_t>(row * args.whole_cols + col));
}

template <Element kElement>
__device__ typename Stored<kElement>::Type Narrow(float value) {
  if constexpr (kElement == Element::kF32) {
    return value;
  } else if constexpr (kElement == Element::kBF16) {
    return __float2bfloat16_rn(value);
  } else {
    __nv_fp8_e4m3 narrow;
    narrow.__x = __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
    return narrow;
  }
}

// Columns [col, col + kChunk) of a row of `out`, those that there are, each divided by `divisor`.
template <Element kElement>
__device__ void StoreChunk(const FillRandomArgs& args, int64_t row, int64_t col, float divisor) {
  using Type = typename Stored<kElement>::Type;
  struct alignas(kChunk * sizeof(Type)) Chunk {
    Type values[kChunk];
  };
  Chunk chunk;
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    const float value = NumberAt(args, args.row_begin + row, args.col_begin + col + i);
    chunk.values[i] = Narrow<kElement>(kElement == Element::kF8E4M3 ? value / divisor : value);
  }
  Type* out = static_cast<Type*>(args.out) + row * args.out_stride + col;
  const bool aligned = reinterpret_cast<uintptr_t>(out) % sizeof(Chunk) == 0;
  if (aligned && col >= 0 && col + kChunk <= args.cols) {
    *reinterpret_cast<Chunk*>(out) = chunk;
    return;
  }
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    if (col + i >= 0 && col + i < args.cols) out[i] = chunk.values[i];
  }
}

template <Element kElement>
__global__ void __launch_bounds__(kThreads) FillRowsKernel(FillRandomArgs args) {
  for (int64_t col = threadIdx.x * kChunk; col < args.cols; col += kThreads * kChunk) {
    StoreChunk<kElement>(args, blockIdx.x, col, 1.0f);
  }
}

__device__ float BlockMax(float x) {
  __shared__ float parts[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, offset));
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  for (int warp = 0; warp < kThreads / 32; ++warp) x = fmaxf(x, parts[warp]);
  return x;
}

// One scale block of the whole matrix, of which `out` has a part.
__global__ void __launch_bounds__(kThreads) FillBlocksKernel(FillRandomArgs args, int block_cols) {
  const int64_t block = args.scale_block;
  const int64_t top = (args.row_begin / block + blockIdx.x / block_cols) * block;
  const int64_t left = (args.col_begin / block + blockIdx.x % block_cols) * block;
  const int chunks = static_cast<int>((block + kChunk - 1) / kChunk);  // of a row
  const int all = static_cast<int>(block) * chunks;
  const int64_t right = min(left + block, args.whole_cols);
  float amax = 0;
  for (int at = threadIdx.x; at < all; at += kThreads) {
    const int64_t row = top + at / chunks, col = left + at % chunks * kChunk;
    if (row >= args.whole_rows) break;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      if (col + i < right) amax = fmaxf(amax, fabsf(NumberAt(args, row, col + i)));
    }
  }
  amax = BlockMax(amax);
  const float scale = amax == 0 ? 1.0f : amax / 448.0f;
  if (threadIdx.x == 0) {
    const int64_t scale_row = (top - args.row_begin + args.scale_row_begin) / block;
    const int64_t scale_col = (left - args.col_begin + args.scale_col_begin) / block;
    args.scales[scale_row * args.scale_row_stride + scale_col] = scale;
  }
  for (int at = threadIdx.x; at < all; at += kThreads) {
    const int64_t row = top + at / chunks - args.row_begin;
    const int64_t col = left + at % chunks * kChunk;
    if (row < 0 || row >= args.rows) continue;
    if (col + kChunk <= right) {
      StoreChunk<Element::kF8E4M3>(args, row, col - args.col_begin, scale);
      continue;
    }
    for (int64_t each = max(col, args.col_begin); each < right; ++each) {
      const int64_t out_col = each - args.col_begin;
      if (out_col >= args.cols) break;
      static_cast<__nv_fp8_e4m3*>(args.out)[row * args.out_stride + out_col] =
          Narrow<Element::kF8E4M3>(NumberAt(args, args.row_begin + row, each) / scale);
    }
  }
}

}  // namespace

cudaError_t LaunchFillRandom(const FillRandomArgs& args, cudaStream_t stream) {
  if (args.rows == 0 || args.cols == 0) return cudaSuccess;
  switch (args.element) {
    case Element::kF32:
      FillRowsKernel<Element::kF32><<<args.rows, kThreads, 0, stream>>>(args);
      return cudaGetLastError();
    case Element::kBF16:
      FillRowsKernel<Element::kBF16><<<args.rows, kThreads, 0, stream>>>(args);
      return cudaGetLastError();
    case Element::kF8E4M3: {
      const auto blocks = [&](int64_t begin, int64_t count) {
        return (begin + count - 1) / args.scale_block - begin / args.scale_block + 1;
      };
      const int64_t block_cols = blocks(args.col_begin, args.cols);
      FillBlocksKernel<<<blocks(args.row_begin, args.rows) * block_cols, kThreads, 0, stream>>>(
          args, static_cast<int>(block_cols));
      return cudaGetLastError();
    }
    case Element::kF16:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace sluice::cuda
