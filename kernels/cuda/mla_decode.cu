// Absorbed attention with DeepSeek-V3's dimensions on the tensor cores: 64 heads of one token, over
// pages of bf16 latents.
//
// A block has the queries of 64 heads in shared memory and goes through pages two at a time. Two
// warpgroups: each computes the scores of one of the two pages; they agree on the largest, write
// probabilities to shared memory, and each adds both pages' values to one half of the outputs' 512
// columns, which is what fits into its registers. A third warp lets TMA refill a page's tiles of 64
// columns as soon as they have been used.
//
// Sequences are cut among blocks where there would be too few of them; a second kernel puts the
// pieces together.
// Source: the tiling follows from registers and shared memory as deepseek-ai/FlashMLA explains
// them.
#include <cuda_bf16.h>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/wgmma_bf16.cuh"

namespace sluice::cuda {
namespace {

constexpr int kHeads = 64;  // of a block
constexpr int kPage = 64;   // tokens
constexpr int kRank = 512;
constexpr int kTiles = 9;  // of 64 columns: the latent, then k_pe
constexpr int kTileBytes = 64 * 128;
constexpr int kPageBytes = kTiles * kTileBytes;
constexpr int kConsumers = 256;
constexpr int kThreads = 128 + kConsumers;
constexpr float kNone = -1e30f;  // less than any score

// Shared memory. The queries' last tile is read into registers; then its place is for
// probabilities.
constexpr int kQueries = 0;
constexpr int kProbabilities = kQueries + 8 * kTileBytes;  // second page's, then first page's
constexpr int kPages = kProbabilities + 2 * kTileBytes;
constexpr int kMaxima = kPages + 2 * kPageBytes;
constexpr int kBarriers = kMaxima + 2 * kHeads * 4;
constexpr int kSharedBytes = kBarriers + (1 + 2 * kTiles + 4) * 8;
static_assert(kSharedBytes <= 227 * 1024);

__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Waits in the order of use, and a phase that turns.
struct Phase {
  uint32_t parity = 0;
  __device__ uint32_t Turn() {
    const uint32_t now = parity;
    parity ^= 1;
    return now;
  }
};

__global__ void __launch_bounds__(kThreads, 1)
    MlaDecodeKernel(const __grid_constant__ MlaDecodeArgs args) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = SharedAddress(shared);
  const uint32_t queries_full = base + kBarriers;
  const auto full = [&](int page, int tile) {
    return base + kBarriers + (1 + page * kTiles + tile) * 8;
  };
  // Left and right halves of a page are given back by the warpgroup that uses them last.
  const auto empty = [&](int page, int half) {
    return base + kBarriers + (1 + 2 * kTiles + page * 2 + half) * 8;
  };
  const int group = blockIdx.x;  // of 64 heads of a token
  const int token = group / (args.heads / kHeads);
  const int split = blockIdx.y;
  const int position =
      args.positions == nullptr ? args.first_position + token : args.positions[token];
  const int length = position + 1;
  const int pages = (length + kPage - 1) / kPage;
  const int first = static_cast<int>(int64_t{pages} * split / gridDim.y);
  const int last = static_cast<int>(int64_t{pages} * (split + 1) / gridDim.y);
  const int pairs = (last - first + 1) / 2;

  if (threadIdx.x == 0) {
    BarrierInit(queries_full, 1);
    for (int page = 0; page < 2; ++page) {
      for (int tile = 0; tile < kTiles; ++tile) BarrierInit(full(page, tile), 1);
      BarrierInit(empty(page, 0), 1);
      BarrierInit(empty(page, 1), 1);
    }
    FenceBarrierInit();
  }
  __syncthreads();

  if (threadIdx.x < 128) {
    GiveRegisters<40>();
    if (threadIdx.x != 0 || pairs == 0) return;
    BarrierArriveExpect(queries_full, kTiles * kTileBytes);
    for (int tile = 0; tile < kTiles; ++tile) {
      TmaLoad(base + kQueries + tile * kTileBytes, &args.q, queries_full, tile * 128,
              group * kHeads, kEvictFirst);
    }
    const int sequence = args.seq_of_token == nullptr ? 0 : args.seq_of_token[token];
    const int32_t* table = args.page_table + sequence * args.page_table_stride;
    uint32_t phase = 1;
    for (int pair = 0; pair < pairs; ++pair, phase ^= 1) {
      int rows[2];
      for (int page = 0; page < 2; ++page) {
        // Where there is no second page, the last one once more: its scores are masked.
        rows[page] = table[min(first + 2 * pair + page, last - 1)] * kPage;
      }
      for (int page = 0; page < 2; ++page) {
        const uint32_t to = base + kPages + page * kPageBytes;
        for (int tile = 0; tile < kTiles; ++tile) {
          if (tile == 0) BarrierWait(empty(page, 0), phase);
          if (tile == 4) BarrierWait(empty(page, 1), phase);
          BarrierArriveExpect(full(page, tile), kTileBytes);
          TmaLoad(to + tile * kTileBytes, &args.cache, full(page, tile), tile * 128, rows[page],
                  kEvictFirst);
        }
      }
    }
    return;
  }

  TakeRegisters<232>();
  const int half = threadIdx.x / 128 - 1;  // this warpgroup's: page of scores, columns of outputs
  const int thread = threadIdx.x % 128;
  const int lane = thread % 32;
  const int row = thread / 32 * 16 + lane / 4;  // and row + 8
  float* const maxima = reinterpret_cast<float*>(shared + kMaxima);

  float out[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) out[i] = 0;
  float largest[2] = {kNone, kNone}, total[2] = {0, 0};
  uint32_t q_rope[4][4];
  if (pairs > 0) BarrierWait(queries_full, 0);
#pragma unroll
  for (int step = 0; step < 4; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = row + i % 2 * 8, chunk = (2 * step + i / 2) ^ (r % 8);
      q_rope[step][i] = *reinterpret_cast<const uint32_t*>(shared + kQueries + 8 * kTileBytes +
                                                           r * 128 + chunk * 16 + lane % 4 * 4);
    }
  }
  NamedBarrier(1, kConsumers);  // from here on the tile's place is for probabilities

  const uint32_t page_at = base + kPages + half * kPageBytes;
  for (int pair = 0; pair < pairs; ++pair) {
    const uint32_t phase = pair & 1;
    float score[32];
    PinSums(score);
#pragma unroll
    for (int tile = 0; tile < 8; ++tile) {
      BarrierWait(full(half, tile), phase);
      WgmmaFence();
      const uint64_t a = MatrixDescriptor(base + kQueries + tile * kTileBytes);
      const uint64_t b = MatrixDescriptor(page_at + tile * kTileBytes);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        WgmmaBf16Tile<64>(score, a + step * 2, b + step * 2, tile + step > 0);
      }
    }
    BarrierWait(full(half, 8), phase);
    WgmmaFence();
    const uint64_t b_rope = MatrixDescriptor(page_at + 8 * kTileBytes);
#pragma unroll
    for (int step = 0; step < 4; ++step) WgmmaBf16(score, q_rope[step], b_rope + step * 2);
    WgmmaCommit();
    WgmmaWait<0>();
    PinSums(score);

    const int page = first + 2 * pair + half;
    const int valid = page < last ? min(length - page * kPage, kPage) : 0;  // rows
    if (valid < kPage) {
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= valid) score[i] = kNone;
      }
    }
    float most[2] = {kNone, kNone};
#pragma unroll
    for (int i = 0; i < 32; ++i) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], score[i]);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], 1));
      most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], 2));
      if (lane % 4 == 0) maxima[half * kHeads + row + 8 * h] = most[h];
    }
    NamedBarrier(1, kConsumers);
    float shrink[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float now =
          fmaxf(fmaxf(largest[h], most[h]), maxima[(1 - half) * kHeads + row + 8 * h]);
      shrink[h] = exp2f((largest[h] - now) * args.scale_log2);
      largest[h] = now;
      total[h] *= shrink[h];
    }
    const uint32_t mine = base + kProbabilities + (1 - half) * kTileBytes;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float p[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          p[c] = exp2f((score[4 * j + 2 * h + c] - largest[h]) * args.scale_log2);
          if (valid == 0) p[c] = 0;  // nothing but masked rows so far would look like 1
        }
        const uint32_t packed = PackBf16(p[0], p[1]);
        total[h] += p[0] + p[1];
        const int r = row + 8 * h;
        asm volatile(
            "st.shared.b32 [%0], %1;" ::"r"(mine + r * 128 + ((j ^ (r % 8)) * 16) + lane % 4 * 4),
            "r"(packed)
            : "memory");
      }
    }
    if (valid < kPage) {
      // Rows behind the sequence's end may hold anything, and 0 times NaN is NaN.
      for (int i = thread; i < (kPage - valid) * kTiles * 8; i += 128) {
        const int tile = i / ((kPage - valid) * 8), rest = i % ((kPage - valid) * 8);
        const uint32_t to = page_at + tile * kTileBytes + (valid + rest / 8) * 128 + rest % 8 * 16;
        asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(to), "r"(0) : "memory");
      }
    }
#pragma unroll
    for (int i = 0; i < 128; ++i) out[i] *= shrink[i / 2 % 2];
    FenceAsyncProxy();
    NamedBarrier(2, kConsumers);

    PinSums(out);
    WgmmaFence();
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      const uint64_t a = MatrixDescriptor(base + kProbabilities + (1 - p) * kTileBytes);
      const uint64_t b =
          RowsDescriptor(base + kPages + p * kPageBytes + half * 4 * kTileBytes, kTileBytes);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        WgmmaBf16Rows(out, a + step * 2, b + step * (16 * 128 / 16));
      }
      WgmmaCommit();
    }
    WgmmaWait<1>();
    if (thread == 0) BarrierArrive(empty(0, half));
    WgmmaWait<0>();
    if (thread == 0) BarrierArrive(empty(1, half));
    PinSums(out);
  }

  // Both warpgroups' sums together.
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    total[h] += __shfl_xor_sync(~0u, total[h], 1);
    total[h] += __shfl_xor_sync(~0u, total[h], 2);
    if (lane % 4 == 0) maxima[half * kHeads + row + 8 * h] = total[h];
  }
  NamedBarrier(1, kConsumers);
#pragma unroll
  for (int h = 0; h < 2; ++h) total[h] += maxima[(1 - half) * kHeads + row + 8 * h];

  const bool whole = gridDim.y == 1;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int64_t head = int64_t{group} * kHeads + row + 8 * h;
    const float inverse = total[h] > 0 ? 1.0f / total[h] : 0.0f;
    if (!whole && half == 0 && lane % 4 == 0) {
      args.part_lse[split * int64_t{gridDim.x} * kHeads + head] =
          total[h] > 0 ? largest[h] * args.scale_log2 + log2f(total[h]) : -INFINITY;
    }
    const int64_t at =
        (whole ? head : split * int64_t{gridDim.x} * kHeads + head) * kRank + half * 256;
#pragma unroll
    for (int j = 0; j < 32; ++j) {
      const int column = 8 * j + lane % 4 * 2;
      const float x = out[4 * j + 2 * h] * inverse, y = out[4 * j + 2 * h + 1] * inverse;
      if (whole) {
        *reinterpret_cast<uint32_t*>(args.out + at + column) = PackBf16(x, y);
      } else {
        *reinterpret_cast<float2*>(args.part_out + at + column) = make_float2(x, y);
      }
    }
  }
}

template <Element kElement>
__global__ void ToBf16Kernel(ToBf16Args args) {
  for (int column = threadIdx.x; column < args.cols; column += blockDim.x) {
    args.out[int64_t{blockIdx.x} * args.cols + column] =
        __float2bfloat16(WeightAt<kElement>(args.w, blockIdx.x, column));
  }
}

// A block of 192 threads for each head of each token.
__global__ void SplitQueriesKernel(SplitQueriesArgs args) {
  const int token = blockIdx.x / args.heads, head = blockIdx.x % args.heads;
  const int column = threadIdx.x;
  const __nv_bfloat16 value = __float2bfloat16(args.q[token * args.q_stride + head * 192 + column]);
  if (column < 128) {
    args.nope[int64_t{blockIdx.x} * 128 + column] = value;
  } else {
    args.queries[int64_t{blockIdx.x} * 576 + kRank + column - 128] = value;
  }
}

// One block of 128 threads for each head of each token.
__global__ void __launch_bounds__(128) CombineKernel(MlaDecodeArgs args, int heads, int splits) {
  const int64_t head = blockIdx.x;
  float most = -INFINITY;
  for (int s = 0; s < splits; ++s) most = fmaxf(most, args.part_lse[int64_t{s} * heads + head]);
  float4 sum = {};
  float total = 0;
  for (int s = 0; s < splits; ++s) {
    const float weight = exp2f(args.part_lse[int64_t{s} * heads + head] - most);
    if (weight == 0) continue;
    const float4 part = *reinterpret_cast<const float4*>(
        args.part_out + (int64_t{s} * heads + head) * kRank + threadIdx.x * 4);
    sum.x += weight * part.x;
    sum.y += weight * part.y;
    sum.z += weight * part.z;
    sum.w += weight * part.w;
    total += weight;
  }
  const float inverse = 1.0f / total;
  uint2 packed = {PackBf16(sum.x * inverse, sum.y * inverse),
                  PackBf16(sum.z * inverse, sum.w * inverse)};
  *reinterpret_cast<uint2*>(args.out + head * kRank + threadIdx.x * 4) = packed;
}

}  // namespace

cudaError_t LaunchToBf16(const ToBf16Args& args, cudaStream_t stream) {
  return DispatchElement(args.element, [&](auto element) {
    ToBf16Kernel<decltype(element)::value><<<args.rows, 128, 0, stream>>>(args);
    return cudaGetLastError();
  });
}

cudaError_t LaunchSplitQueries(const SplitQueriesArgs& args, cudaStream_t stream) {
  SplitQueriesKernel<<<args.tokens * args.heads, 192, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t LaunchMlaDecode(const MlaDecodeArgs& args, cudaStream_t stream) {
  if (args.tokens == 0) return cudaSuccess;
  static const cudaError_t allowed = cudaFuncSetAttribute(
      MlaDecodeKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (allowed != cudaSuccess) return allowed;
  const dim3 grid(args.tokens * (args.heads / kHeads), args.splits);
  MlaDecodeKernel<<<grid, kThreads, kSharedBytes, stream>>>(args);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess || args.splits == 1) {
    return error;
  }
  const int heads = args.tokens * args.heads;
  CombineKernel<<<heads, 128, 0, stream>>>(args, heads, args.splits);
  return cudaGetLastError();
}

}  // namespace sluice::cuda
