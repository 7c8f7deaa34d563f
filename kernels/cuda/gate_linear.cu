// The router's product: x split into three bf16 parts (their sum is x to the last bit) meets
// weights in bf16, or split in the same way, on the tensor cores.
//
// The tensor cores sum 32 columns of k without a rounding of ours; such chunks are added in f32 to
// the sum of their group of seven, and groups to the result, in the order of k: a row's result
// depends on nothing but the row. With few rows every group has blocks of its own, and a second
// kernel adds the groups; with many a block goes through all groups.
#include <cuda_bf16.h>

#include <type_traits>

#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/gate_linear.h"
#include "kernels/cuda/hopper.cuh"

namespace sluice::cuda {
namespace {

constexpr int kThreads = 256;  // warps: 4 of 16 rows each, for either half of the columns
constexpr int kRows = 64;      // of x in a tile
constexpr int kChunk = 32;     // columns of k that are copied, and summed, together
constexpr int kGroupChunks = 7;
constexpr int kPad = 16;  // elements after a row, so that the rows of a fragment meet other banks
constexpr int kStride = kChunk + kPad;
constexpr int kSplitRowsMax = 512;  // rows up to which groups have blocks of their own
// Chunks in shared memory: a whole group and one, or two blocks on an SM.
constexpr int kStagesSplit = 8, kStagesWhole = 4;

__host__ __device__ constexpr int Chunks(int k) { return (k + kChunk - 1) / kChunk; }
__host__ __device__ constexpr int Groups(int k) {
  return (Chunks(k) + kGroupChunks - 1) / kGroupChunks;
}

template <typename T>
struct Tile {
  static constexpr int kColumns = 256 / sizeof(T);  // of the result: as many bytes of w
  static constexpr int kEights = kColumns / 2 / 8;  // of a warp
  static constexpr int kStageBytes = kStride * (kRows * sizeof(float) + kColumns * sizeof(T));
};

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

// Copies of one thread: the same few columns of every kStep-th row, from its first row on.
template <typename T, int kTileRows>
class Copier {
 public:
  static constexpr int kVector = 16 / sizeof(T);
  static constexpr int kStep = kThreads / (kChunk / kVector);
  static_assert(kTileRows % kStep == 0, "threads must share the rows evenly");

  __device__ Copier(const T* from, int64_t stride, int row0, int rows)
      : row_(row0 + threadIdx.x / (kChunk / kVector)),
        column_(threadIdx.x % (kChunk / kVector) * kVector),
        rows_(rows),
        stride_(stride),
        from_(from + row_ * stride + column_) {}

  // Columns [k0, k0 + kChunk) to a tile; zeros outside of the matrix, which has k_end columns.
  __device__ __forceinline__ void Copy(T* tile, int k0, int k_end) const {
    const uint32_t to = SharedAddress(tile + threadIdx.x / (kChunk / kVector) * kStride + column_);
#pragma unroll
    for (int i = 0; i < kTileRows / kStep; ++i) {
      const bool present = row_ + i * kStep < rows_ && k0 + column_ < k_end;
      CopyAsync16(to + i * kStep * kStride * (int)sizeof(T),
                  present ? from_ + i * kStep * stride_ + k0 : from_, present);
    }
  }

 private:
  const int row_, column_, rows_;
  const int64_t stride_;
  const T* from_;
};

// The products of a chunk of a warp's rows and columns, those of the low parts first.
template <typename T>
__device__ __forceinline__ void SumChunk(const float* x, const T* w,
                                         float (&sum)[Tile<T>::kEights][4]) {
  const int lane = threadIdx.x % 32, group = lane / 4, place = lane % 4 * 4;
#pragma unroll
  for (int k = 0; k < kChunk; k += 16) {
    const float* at = x + group * kStride + k + place;
    const Parts upper = Split(*reinterpret_cast<const float4*>(at));
    const Parts lower = Split(*reinterpret_cast<const float4*>(at + 8 * kStride));
#pragma unroll
    for (int n = 0; n < Tile<T>::kEights; ++n) {
      const T* weights = w + (n * 8 + group) * kStride + k + place;
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
}

// to += from; from = 0.
template <int kEights>
__device__ __forceinline__ void Move(float (&from)[kEights][4], float (&to)[kEights][4]) {
#pragma unroll
  for (int n = 0; n < kEights; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[n][i] += from[n][i];
      from[n][i] = 0;
    }
  }
}

// Blocks (columns, rows, group); all groups in turn when there is one along z. Shared memory:
// kStages of x [kRows, kStride] and w [kColumns, kStride].
template <typename T, int kStages>
__global__ void __launch_bounds__(kThreads, kStages == kStagesWhole ? 2 : 1)
    GateLinearKernel(GateLinearArgs args) {
  using OfT = Tile<T>;
  extern __shared__ __align__(16) uint8_t memory[];
  const auto x_tile = [&](int chunk) {
    return reinterpret_cast<float*>(memory + chunk % kStages * OfT::kStageBytes);
  };
  const auto w_tile = [&](int chunk) {
    return reinterpret_cast<T*>(x_tile(chunk) + kRows * kStride);
  };
  const int row0 = blockIdx.y * kRows, n0 = blockIdx.x * OfT::kColumns;
  const bool split = gridDim.z > 1;
  const int begin = split ? blockIdx.z * kGroupChunks : 0;
  const int end = split ? min(begin + kGroupChunks, Chunks(args.k)) : Chunks(args.k);
  const Copier<float, kRows> copy_x(args.x, args.x_stride, row0, args.m);
  const Copier<T, OfT::kColumns> copy_w(static_cast<const T*>(args.w), args.w_stride, n0, args.n);
  const auto copy = [&](int chunk) {
    if (chunk < end) {
      copy_x.Copy(x_tile(chunk), chunk * kChunk, args.k);
      copy_w.Copy(w_tile(chunk), chunk * kChunk, args.k);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };

  StartAfterEarlier();
  for (int i = 0; i < kStages - 1; ++i) copy(begin + i);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp % 4 * 16, warp_column = warp / 4 * (OfT::kColumns / 2);
  float sum[OfT::kEights][4] = {}, group[OfT::kEights][4] = {}, total[OfT::kEights][4] = {};
  for (int chunk = begin; chunk < end; ++chunk) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2) : "memory");
    __syncthreads();  // the chunk is there, and the one before has been read
    copy(chunk + kStages - 1);
    SumChunk<T>(x_tile(chunk) + warp_row * kStride, w_tile(chunk) + warp_column * kStride, sum);
    Move(sum, group);
    if ((chunk + 1) % kGroupChunks == 0 || chunk + 1 == end) Move(group, total);
  }
  asm volatile("cp.async.wait_group 0;" ::: "memory");

  float* out = split ? args.partial + (int64_t)blockIdx.z * args.m * args.n : args.out;
  const int64_t stride = split ? args.n : args.out_stride;
#pragma unroll
  for (int n = 0; n < OfT::kEights; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = row0 + warp_row + lane / 4 + i / 2 * 8;
      const int column = n0 + warp_column + n * 8 + lane % 4 * 2 + i % 2;
      if (row < args.m && column < args.n) out[row * stride + column] = total[n][i];
    }
  }
}

__global__ void __launch_bounds__(kThreads) AddGroupsKernel(GateLinearArgs args, int groups) {
  StartAfterEarlier();
  const int64_t count = (int64_t)args.m * args.n;
  const int64_t at = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (at >= count) return;
  float sum = 0;
#pragma unroll 16
  for (int group = 0; group < groups; ++group) sum += args.partial[group * count + at];
  args.out[at / args.n * args.out_stride + at % args.n] = sum;
}

template <typename T, int kStages>
cudaError_t LaunchAs(const GateLinearArgs& args, int groups, cudaStream_t stream) {
  using OfT = Tile<T>;
  const int bytes = kStages * OfT::kStageBytes;
  const cudaError_t error = cudaFuncSetAttribute(
      GateLinearKernel<T, kStages>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const dim3 grid((args.n + OfT::kColumns - 1) / OfT::kColumns, (args.m + kRows - 1) / kRows,
                  groups);
  return LaunchEarly(GateLinearKernel<T, kStages>, {grid, kThreads, (size_t)bytes}, stream, args);
}

}  // namespace

int64_t GateLinearScratch(int64_t n, int64_t k) { return kSplitRowsMax * n * Groups((int)k); }

cudaError_t LaunchGateLinear(const GateLinearArgs& args, cudaStream_t stream) {
  if (args.m == 0 || args.n == 0) return cudaSuccess;
  const int groups = Groups(args.k);
  if (args.m > kSplitRowsMax || groups <= 1) {
    return args.w_bf16 ? LaunchAs<__nv_bfloat16, kStagesWhole>(args, 1, stream)
                       : LaunchAs<float, kStagesWhole>(args, 1, stream);
  }
  const cudaError_t error = args.w_bf16
                                ? LaunchAs<__nv_bfloat16, kStagesSplit>(args, groups, stream)
                                : LaunchAs<float, kStagesSplit>(args, groups, stream);
  if (error != cudaSuccess) return error;
  const unsigned blocks = (unsigned)(((int64_t)args.m * args.n + kThreads - 1) / kThreads);
  return LaunchEarly(AddGroupsKernel, {dim3(blocks), kThreads}, stream, args, groups);
}

}  // namespace sluice::cuda
