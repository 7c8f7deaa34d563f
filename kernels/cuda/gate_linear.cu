// The router's product: x split into three bf16 parts (their sum is x to the last bit) meets
// weights in bf16, or split in the same way, on the tensor cores.
//
// A cluster of 16 blocks shares a tile of the result; each block sums over a sixteenth of k. All of
// its operands are asked for at once and fit into shared memory: at decode sizes the kernel is one
// trip to memory. What the tensor cores sum without a rounding of ours is 32 products of each part;
// such sums are added in f32. Blocks' sums are added in the order of k, so a row's result depends
// on nothing but the row.
#include <cooperative_groups.h>

#include <type_traits>

#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/gate_linear.h"
#include "kernels/cuda/hopper.cuh"

namespace sluice::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kCluster = 16;
constexpr int kThreads = 256;  // 4 warps of 16 rows each for the even chunks, 4 for the odd ones
constexpr int kRows = 64;      // of x in a tile
constexpr int kStage = 64;     // columns that are waited for together
constexpr int kChunk = 32;     // columns that a warp sums at once
constexpr int kStagesMax = kGateLinearColumnsMax / kCluster / kStage;
constexpr int kPad = 16;  // elements after a row, so that the rows of a fragment meet other banks
static_assert(kCluster * kStagesMax * kStage == kGateLinearColumnsMax, "stages must be whole");

// Three bf16 parts of four floats: the highest 8 bits of each, the next 8, the rest.
struct Parts {
  uint2 part[3];
};

__device__ __forceinline__ uint32_t HighHalves(float a, float b) {
  return __byte_perm(__float_as_uint(a), __float_as_uint(b), 0x7632);
}
__device__ __forceinline__ float Rest(float x) {
  return x - __uint_as_float(__float_as_uint(x) & 0xffff0000u);
}

__device__ __forceinline__ Parts Split(float4 v) {
  Parts parts;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    parts.part[i] = {HighHalves(v.x, v.y), HighHalves(v.z, v.w)};
    v = {Rest(v.x), Rest(v.y), Rest(v.z), Rest(v.w)};
  }
  return parts;
}

// sum[16 x 8] += a[16 x 16] b[16 x 8]. A lane's four columns of k stand for any four: those of a
// and b agree.
__device__ __forceinline__ void MultiplyAdd(float (&sum)[4], uint2 upper, uint2 lower, uint2 b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(upper.x), "r"(lower.x), "r"(upper.y), "r"(lower.y), "r"(b.x), "r"(b.y));
}

// 16 bytes, or zeros.
__device__ __forceinline__ void CopyAsync16(uint32_t to, const void* from, bool present) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(present ? 16 : 0)
               : "memory");
}

// Queues the copy of columns [k0, k0 + kStage) of rows [row0, row0 + kTileRows), zeros outside of
// [rows, k_end), to `tile` with rows of `stride` elements.
template <typename T, int kTileRows>
__device__ __forceinline__ void CopyStage(const T* from, int64_t from_stride, int row0, int rows,
                                          int k0, int k_end, T* tile, int stride) {
  constexpr int kVector = 16 / sizeof(T);
  for (int i = threadIdx.x; i < kTileRows * kStage / kVector; i += kThreads) {
    const int row = i / (kStage / kVector), column = i % (kStage / kVector) * kVector;
    const bool present = row0 + row < rows && k0 + column < k_end;
    CopyAsync16(SharedAddress(tile + row * stride + column),
                present ? from + (row0 + row) * from_stride + k0 + column : from, present);
  }
}

template <typename T>
struct Tile {
  // As many bytes of weights as of bf16 ones of 64 columns of the result.
  static constexpr int kColumns = 128 / sizeof(T);
  static constexpr int kTiles = kColumns / 8;
};

// Sums a chunk of a warp's rows into `total`: first the products of the low parts.
template <typename T>
__device__ __forceinline__ void AddChunk(const float* x, const T* w, int stride,
                                         float (&total)[Tile<T>::kTiles][4]) {
  const int lane = threadIdx.x % 32, group = lane / 4, place = lane % 4 * 4;
  float sum[Tile<T>::kTiles][4] = {};
#pragma unroll
  for (int k = 0; k < kChunk; k += 16) {
    const float* at = x + group * stride + k + place;
    const Parts upper = Split(*reinterpret_cast<const float4*>(at));
    const Parts lower = Split(*reinterpret_cast<const float4*>(at + 8 * stride));
#pragma unroll
    for (int n = 0; n < Tile<T>::kTiles; ++n) {
      const T* weights = w + (n * 8 + group) * stride + k + place;
      if constexpr (std::is_same_v<T, float>) {
        const Parts b = Split(*reinterpret_cast<const float4*>(weights));
#pragma unroll
        for (int order = 2; order >= 0; --order) {
#pragma unroll
          for (int i = 0; i <= order; ++i) {
            MultiplyAdd(sum[n], upper.part[i], lower.part[i], b.part[order - i]);
          }
        }
      } else {
        const uint2 b = *reinterpret_cast<const uint2*>(weights);
#pragma unroll
        for (int i = 2; i >= 0; --i) MultiplyAdd(sum[n], upper.part[i], lower.part[i], b);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < Tile<T>::kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) total[n][i] += sum[n][i];
  }
}

// Columns of k of a block.
__host__ __device__ inline int BlockColumns(int k) {
  return (k + kCluster * kStage - 1) / (kCluster * kStage) * kStage;
}

// Shared memory: x [kRows, stride], w [kColumns, stride], stride the block's columns and kPad; the
// sums take the place of x in the end.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1) GateLinearKernel(GateLinearArgs args) {
  using OfT = Tile<T>;
  extern __shared__ __align__(16) uint8_t memory[];
  __shared__ __align__(8) uint64_t barriers[kStagesMax];
  const cg::cluster_group cluster = cg::this_cluster();
  const int columns = BlockColumns(args.k), stride = columns + kPad;
  float* x = reinterpret_cast<float*>(memory);
  T* w = reinterpret_cast<T*>(x + kRows * stride);
  const int row0 = blockIdx.z * kRows, n0 = blockIdx.y * OfT::kColumns;
  const int k_begin = blockIdx.x * columns;
  const int k_end = min(args.k, k_begin + columns);
  const int stages = k_end > k_begin ? (k_end - k_begin + kStage - 1) / kStage : 0;
  if (threadIdx.x < stages) BarrierInit(SharedAddress(&barriers[threadIdx.x]), kThreads);
  __syncthreads();

  StartAfterEarlier();
  for (int stage = 0; stage < stages; ++stage) {
    const int k = stage * kStage;
    CopyStage<float, kRows>(args.x, args.x_stride, row0, args.m, k_begin + k, k_end, x + k, stride);
    CopyStage<T, OfT::kColumns>(static_cast<const T*>(args.w), args.w_stride, n0, args.n,
                                k_begin + k, k_end, w + k, stride);
    BarrierArriveAfterCopies(SharedAddress(&barriers[stage]));
  }

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp % 4 * 16, odd = warp / 4;
  float total[OfT::kTiles][4] = {};
  for (int stage = 0; stage < stages; ++stage) {
    BarrierWait(SharedAddress(&barriers[stage]), 0);
    const int k = stage * kStage + odd * kChunk;
    AddChunk<T>(x + warp_row * stride + k, w + k, stride, total);
  }

  // The even chunks' sums, then the odd ones', then over the cluster.
  __syncthreads();
  float* sums = x;  // [kRows][kColumns]
  const auto place = [&](int n, int i) {
    return sums + (warp_row + lane / 4 + i / 2 * 8) * OfT::kColumns + n * 8 + lane % 4 * 2 + i % 2;
  };
  for (int half = 1; half >= 0; --half) {
    if (odd == half) {
#pragma unroll
      for (int n = 0; n < OfT::kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          *place(n, i) = half == 1 ? total[n][i] : total[n][i] + *place(n, i);
        }
      }
    }
    __syncthreads();
  }
  cluster.sync();
  constexpr int kOutputs = kRows * OfT::kColumns / kCluster;
  const int rank = blockIdx.x;  // the cluster is all of x
  for (int i = rank * kOutputs + threadIdx.x; i < (rank + 1) * kOutputs; i += kThreads) {
    float sum = 0;
#pragma unroll
    for (int block = 0; block < kCluster; ++block) {
      sum += cluster.map_shared_rank(sums, block)[i];
    }
    const int row = row0 + i / OfT::kColumns, column = n0 + i % OfT::kColumns;
    if (row < args.m && column < args.n) args.out[row * args.out_stride + column] = sum;
  }
  cluster.sync();  // others may still read this block's sums
}

template <typename T>
cudaError_t LaunchAs(const GateLinearArgs& args, cudaStream_t stream) {
  using OfT = Tile<T>;
  const int stride = BlockColumns(args.k) + kPad;
  const size_t bytes = stride * (kRows * sizeof(float) + OfT::kColumns * sizeof(T));
  cudaError_t error = cudaFuncSetAttribute(GateLinearKernel<T>,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
  if (error != cudaSuccess) return error;
  error =
      cudaFuncSetAttribute(GateLinearKernel<T>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error != cudaSuccess) return error;
  const dim3 grid(kCluster, (args.n + OfT::kColumns - 1) / OfT::kColumns,
                  (args.m + kRows - 1) / kRows);
  return LaunchEarly(GateLinearKernel<T>, {grid, kThreads, bytes, kCluster}, stream, args);
}

}  // namespace

cudaError_t LaunchGateLinear(const GateLinearArgs& args, cudaStream_t stream) {
  if (args.m == 0 || args.n == 0) return cudaSuccess;
  return args.w_bf16 ? LaunchAs<__nv_bfloat16>(args, stream) : LaunchAs<float>(args, stream);
}

}  // namespace sluice::cuda
