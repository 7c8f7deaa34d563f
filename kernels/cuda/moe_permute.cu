// Sorting tokens by expert slot, and putting the experts' results together.
//
// The row of a pair is a count: the pairs of lower slots, and those of its own slot that come
// before it. Up to kPairsAtOnce pairs each block counts for its own token over all of them, in one
// launch. More are cut into chunks: one kernel ranks pairs within their chunk, one sums the chunks'
// counts up, one adds them to the ranks.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/early_launch.cuh"

namespace sluice::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPairsAtOnce = 4096;
constexpr int kTopKAtOnce = 32;
constexpr int kChunk = 1024;  // pairs, and threads

__device__ int SlotOfPair(const PermuteArgs& args, int pair) {
  const int expert = args.expert_ids[pair / args.top_k * args.ids_stride + pair % args.top_k];
  return expert < 0 ? -1 : args.slot_of_expert[expert];
}

__device__ int32_t& RowOfPair(const PermuteArgs& args, int pair) {
  return args.pair_rows[pair / args.top_k * args.pair_stride + pair % args.top_k];
}

// offsets from the counts of all slots, by the first warp.
__device__ void WriteOffsets(const PermuteArgs& args, const int32_t* counts) {
  if (threadIdx.x >= 32) return;
  const int lane = threadIdx.x;
  int32_t before = 0;
  for (int begin = 0; begin < args.slots; begin += 32) {
    const int32_t count = begin + lane < args.slots ? counts[begin + lane] : 0;
    int32_t sum = count;
    for (int offset = 1; offset < 32; offset *= 2) {
      const int32_t other = __shfl_up_sync(~0u, sum, offset);
      if (lane >= offset) sum += other;
    }
    if (begin + lane < args.slots) args.offsets[begin + lane] = before + sum - count;
    before += __shfl_sync(~0u, sum, 31);
  }
  if (lane == 0) args.offsets[args.slots] = before;
}

// Few pairs: a block for each token, and one more for the offsets. Dynamic shared memory: counts
// [slots].
__global__ void __launch_bounds__(kThreads) PermuteAtOnceKernel(PermuteArgs args) {
  StartAfterEarlier();
  extern __shared__ int32_t counts[];
  __shared__ int32_t own_slots[kTopKAtOnce], rows[kTopKAtOnce];
  const int token = blockIdx.x, pairs = args.tokens * args.top_k;
  if (token == args.tokens) {
    for (int slot = threadIdx.x; slot < args.slots; slot += kThreads) counts[slot] = 0;
    __syncthreads();
    for (int pair = threadIdx.x; pair < pairs; pair += kThreads) {
      const int slot = SlotOfPair(args, pair);
      if (slot >= 0) atomicAdd(&counts[slot], 1);
    }
    __syncthreads();
    WriteOffsets(args, counts);
    return;
  }

  const int first_own = token * args.top_k;
  if (threadIdx.x < args.top_k) {
    own_slots[threadIdx.x] = SlotOfPair(args, first_own + threadIdx.x);
    rows[threadIdx.x] = 0;
  }
  __syncthreads();
  int32_t before[kTopKAtOnce / 4];
  for (int k0 = 0; k0 < args.top_k; k0 += kTopKAtOnce / 4) {
#pragma unroll
    for (int k = 0; k < kTopKAtOnce / 4; ++k) before[k] = 0;
    for (int pair = threadIdx.x; pair < pairs; pair += kThreads) {
      const int slot = SlotOfPair(args, pair);
      if (slot < 0) continue;
#pragma unroll
      for (int k = 0; k < kTopKAtOnce / 4; ++k) {
        const int own = k0 + k < args.top_k ? own_slots[k0 + k] : -1;
        before[k] += slot < own || (slot == own && pair < first_own + k0 + k);
      }
    }
#pragma unroll
    for (int k = 0; k < kTopKAtOnce / 4; ++k) {
      const int32_t sum = __reduce_add_sync(~0u, before[k]);
      if (threadIdx.x % 32 == 0 && k0 + k < args.top_k) atomicAdd(&rows[k0 + k], sum);
    }
  }
  __syncthreads();
  if (threadIdx.x < args.top_k) {
    RowOfPair(args, first_own + threadIdx.x) = own_slots[threadIdx.x] < 0 ? -1 : rows[threadIdx.x];
  }
}

// A chunk of pairs: pair_rows gets each pair's rank among those of its slot here, chunk_counts
// [slots, chunks] how many there are. Dynamic shared memory: counts [warps][slots].
__global__ void __launch_bounds__(kChunk) RankPairsKernel(PermuteArgs args) {
  StartAfterEarlier();
  extern __shared__ int32_t counts[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int i = threadIdx.x; i < kChunk / 32 * args.slots; i += kChunk) counts[i] = 0;
  __syncthreads();
  const int pair = blockIdx.x * kChunk + threadIdx.x;
  const int slot = pair < args.tokens * args.top_k ? SlotOfPair(args, pair) : -1;
  const unsigned same = __match_any_sync(~0u, slot);
  const int rank = __popc(same & ((1u << lane) - 1));
  if (slot >= 0 && rank == 0) counts[warp * args.slots + slot] = __popc(same);
  __syncthreads();
  for (int s = threadIdx.x; s < args.slots; s += kChunk) {
    int32_t sum = 0;
    for (int w = 0; w < kChunk / 32; ++w) {
      const int32_t count = counts[w * args.slots + s];
      counts[w * args.slots + s] = sum;
      sum += count;
    }
    args.chunk_counts[s * gridDim.x + blockIdx.x] = sum;
  }
  __syncthreads();
  if (pair >= args.tokens * args.top_k) return;
  RowOfPair(args, pair) = slot < 0 ? -1 : counts[warp * args.slots + slot] + rank;
}

// chunk_counts become the pairs of the same slot in earlier chunks. One block; dynamic shared
// memory: counts [slots].
__global__ void __launch_bounds__(kChunk) SumChunksKernel(PermuteArgs args, int chunks) {
  StartAfterEarlier();
  extern __shared__ int32_t counts[];
  const int lane = threadIdx.x % 32;
  for (int slot = threadIdx.x / 32; slot < args.slots; slot += kChunk / 32) {
    int32_t before = 0;
    for (int begin = 0; begin < chunks; begin += 32) {
      int32_t* place = args.chunk_counts + slot * chunks + begin + lane;
      const int32_t count = begin + lane < chunks ? *place : 0;
      int32_t sum = count;
      for (int offset = 1; offset < 32; offset *= 2) {
        const int32_t other = __shfl_up_sync(~0u, sum, offset);
        if (lane >= offset) sum += other;
      }
      if (begin + lane < chunks) *place = before + sum - count;
      before += __shfl_sync(~0u, sum, 31);
    }
    if (lane == 0) counts[slot] = before;
  }
  __syncthreads();
  WriteOffsets(args, counts);
}

// Ranks become rows; a thread per pair.
__global__ void __launch_bounds__(kThreads) PlacePairsKernel(PermuteArgs args, int chunks) {
  StartAfterEarlier();
  const int pair = blockIdx.x * kThreads + threadIdx.x;
  if (pair >= args.tokens * args.top_k) return;
  const int slot = SlotOfPair(args, pair);
  if (slot < 0) return;
  RowOfPair(args, pair) += args.offsets[slot] + args.chunk_counts[slot * chunks + pair / kChunk];
}

// A block per token.
template <typename Vector>
__global__ void __launch_bounds__(kThreads) GatherPairsKernel(GatherPairsArgs args) {
  StartAfterEarlier();
  const int32_t* const rows = args.pair_rows + blockIdx.x * args.pair_stride;
  const auto* const x = reinterpret_cast<const Vector*>(args.x + blockIdx.x * args.x_stride);
  const int count = args.hidden / static_cast<int>(sizeof(Vector) / sizeof(float));
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const Vector vector = x[i];
    for (int k = 0; k < args.top_k; ++k) {
      if (rows[k] < 0) continue;
      reinterpret_cast<Vector*>(args.out + rows[k] * args.out_stride)[i] = vector;
    }
  }
}

__device__ void Add(float weight, float x, float* sum) { *sum = fmaf(weight, x, *sum); }
__device__ void Add(float weight, const float4& x, float4* sum) {
  Add(weight, x.x, &sum->x);
  Add(weight, x.y, &sum->y);
  Add(weight, x.z, &sum->z);
  Add(weight, x.w, &sum->w);
}
__device__ float Sum(float a, float b) { return a + b; }
__device__ float4 Sum(const float4& a, const float4& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

// Blocks (token, part of the row), a vector per thread.
template <typename Vector>
__global__ void __launch_bounds__(kThreads) CombineKernel(CombineArgs args) {
  StartAfterEarlier();
  const int token = blockIdx.x, at = blockIdx.y * kThreads + threadIdx.x;
  if (at >= args.hidden / static_cast<int>(sizeof(Vector) / sizeof(float))) return;
  const int32_t* pair_rows = args.pair_rows + token * args.pair_stride;
  const float* weights = args.weights + token * args.weights_stride;
  auto* out = reinterpret_cast<Vector*>(args.out + token * args.out_stride) + at;
  const Vector before = *out;
  Vector sum{};
  constexpr int kAtOnce = 8;
  for (int k0 = 0; k0 < args.top_k; k0 += kAtOnce) {
    Vector values[kAtOnce];
    float factors[kAtOnce];
    bool present[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int32_t row = k0 + k < args.top_k ? pair_rows[k0 + k] : -1;
      present[k] = row >= 0;
      if (!present[k]) continue;
      factors[k] = weights[k0 + k];
      values[k] = reinterpret_cast<const Vector*>(args.rows + row * args.rows_stride)[at];
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (present[k]) Add(factors[k], values[k], &sum);
    }
  }
  if (args.shared != nullptr) {
    const float* shared = args.shared + token * args.shared_stride;
    sum = Sum(sum, reinterpret_cast<const Vector*>(shared)[at]);
  }
  *out = Sum(before, sum);
}

bool AtOnce(int64_t pairs, int64_t top_k) {
  return pairs == 0 || (pairs <= kPairsAtOnce && top_k <= kTopKAtOnce);
}

template <typename Vector>
cudaError_t LaunchCombineAs(const CombineArgs& args, cudaStream_t stream) {
  const int vectors = args.hidden / static_cast<int>(sizeof(Vector) / sizeof(float));
  const dim3 grid(args.tokens, (vectors + kThreads - 1) / kThreads);
  return LaunchEarly(CombineKernel<Vector>, {grid, kThreads}, stream, args);
}

}  // namespace

int64_t PermuteChunkCounts(int64_t tokens, int64_t top_k, int64_t slots) {
  const int64_t pairs = tokens * top_k;
  return AtOnce(pairs, top_k) ? 0 : (pairs + kChunk - 1) / kChunk * slots;
}

cudaError_t LaunchGatherPairs(const GatherPairsArgs& args, cudaStream_t stream) {
  if (args.tokens == 0) return cudaSuccess;
  const bool vectors = InVectors(args.x, args.x_stride, args.hidden) &&
                       InVectors(args.out, args.out_stride, args.hidden);
  return LaunchEarly(vectors ? GatherPairsKernel<float4> : GatherPairsKernel<float>,
                     {dim3(args.tokens), kThreads}, stream, args);
}

cudaError_t LaunchPermute(const PermuteArgs& args, cudaStream_t stream) {
  const int pairs = args.tokens * args.top_k;
  const size_t slot_bytes = args.slots * sizeof(int32_t);
  if (AtOnce(pairs, args.top_k)) {
    return LaunchEarly(PermuteAtOnceKernel, {dim3(args.tokens + 1), kThreads, slot_bytes}, stream,
                       args);
  }
  const int chunks = (pairs + kChunk - 1) / kChunk;
  const size_t rank_bytes = kChunk / 32 * slot_bytes;
  cudaError_t error = cudaFuncSetAttribute(
      RankPairsKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)rank_bytes);
  if (error != cudaSuccess) return error;
  error = LaunchEarly(RankPairsKernel, {dim3(chunks), kChunk, rank_bytes}, stream, args);
  if (error != cudaSuccess) return error;
  error = LaunchEarly(SumChunksKernel, {dim3(1), kChunk, slot_bytes}, stream, args, chunks);
  if (error != cudaSuccess) return error;
  return LaunchEarly(PlacePairsKernel, {dim3((pairs + kThreads - 1) / kThreads), kThreads}, stream,
                     args, chunks);
}

cudaError_t LaunchCombine(const CombineArgs& args, cudaStream_t stream) {
  if (args.tokens == 0 || args.hidden == 0) return cudaSuccess;
  if (InVectors(args.rows, args.rows_stride, args.hidden) &&
      InVectors(args.out, args.out_stride, args.hidden) &&
      InVectors(args.shared, args.shared_stride, args.hidden)) {
    return LaunchCombineAs<float4>(args, stream);
  }
  return LaunchCombineAs<float>(args, stream);
}

}  // namespace sluice::cuda
