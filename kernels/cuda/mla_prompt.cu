// Causal attention of prompts with DeepSeek-V3's heads (keys of 128 + 64 columns, values of 128) on
// the tensor cores: over keys and values made from the latents, which an earlier product has
// written. kernels/docs/mla_prompt.md explains the structure.
//
// An item is 128 queries of one head and all keys they see, in tiles of 128 from the last to the
// first. Blocks stay, one on each SM, and take item after item, those with the most keys first.
//
// Warps of a block: one lets TMA fill a ring of slots with keys and values, and takes the items;
// three turn the next item's queries into bf16; two warpgroups have 64 queries each. A warpgroup
// makes the scores of one tile while the values of the tile before are added and, meanwhile,
// computes their softmax; probabilities stay in its registers.
// Source: the order of products and softmax is FlashAttention-3's (Shah et al., 2024).
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/mla_prompt_launch.h"
#include "kernels/cuda/wgmma_bf16.cuh"

namespace sluice::cuda {
namespace {

constexpr int kTile = kPromptTile;
constexpr int kWidth = 576;  // of a row of the cache: 512 of the latent, 64 of k_pe
constexpr int kQuery = 192, kNope = 128, kValue = 128;  // columns
constexpr int kSlotBytes = kTile * 128;                 // 64 columns of 128 rows
constexpr int kKeySlots = 3;                            // of a tile of keys
constexpr int kValueSlots = 2;                          // of a tile of values, 64 rows each
constexpr int kTileSlots = kKeySlots + kValueSlots;
constexpr int kSlots = 8;
static_assert(kSlots >= kTileSlots + kKeySlots, "the next keys arrive while a tile is in use");
constexpr int kQuerySlots = 3;
constexpr int kConsumers = 256;
constexpr int kThreads = 128 + kConsumers;
constexpr int kConverters = 96;
constexpr int kFirstOfWarpgroup = 1;  // number of a named barrier, and the next one

// Shared memory: queries of two items, the ring, what the two items are, barriers.
constexpr int kQueries = 0;
constexpr int kRing = kQueries + 2 * kQuerySlots * kSlotBytes;
constexpr int kItems = kRing + kSlots * kSlotBytes;
constexpr int kBarriers = kItems + 2 * 16;
constexpr int kSharedBytes = kBarriers + (2 * kSlots + 8) * 8;
static_assert(kSharedBytes <= 227 * 1024);

// Barriers, all of them used in turn.
__device__ __forceinline__ uint32_t SlotFull(uint32_t base, uint32_t slot) {
  return base + kBarriers + slot % kSlots * 8;
}
__device__ __forceinline__ uint32_t SlotEmpty(uint32_t base, uint32_t slot) {
  return base + kBarriers + (kSlots + slot % kSlots) * 8;
}
__device__ __forceinline__ uint32_t QueriesFull(uint32_t base, uint32_t item) {
  return base + kBarriers + (2 * kSlots + item % 2) * 8;
}
__device__ __forceinline__ uint32_t QueriesEmpty(uint32_t base, uint32_t item) {
  return base + kBarriers + (2 * kSlots + 2 + item % 2) * 8;
}
__device__ __forceinline__ uint32_t ItemFull(uint32_t base, uint32_t item) {
  return base + kBarriers + (2 * kSlots + 4 + item % 2) * 8;
}
__device__ __forceinline__ uint32_t ItemEmpty(uint32_t base, uint32_t item) {
  return base + kBarriers + (2 * kSlots + 6 + item % 2) * 8;
}
// Slots and items are counted from 0; these are the parities of their n-th use.
__device__ __forceinline__ uint32_t SlotPhase(uint32_t slot) { return slot / kSlots & 1; }
__device__ __forceinline__ uint32_t ItemPhase(uint32_t item) { return item / 2 & 1; }
__device__ __forceinline__ uint32_t SlotAddress(uint32_t base, uint32_t slot) {
  return base + kRing + slot % kSlots * kSlotBytes;
}

__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

struct Item {
  int piece;  // -1: there are no more
  int head;
  int first;  // query
  int pad;
};

// Pieces come in rising order, so that `piece` may be where the search goes on.
__device__ Item FindItem(const MlaPromptArgs& args, int index, int piece) {
  if (index >= args.pass.items) return {-1, 0, 0, 0};
  while (piece + 1 < args.pass.count && index >= args.pass.pieces[piece + 1].item_begin) ++piece;
  const PromptPiece& p = args.pass.pieces[piece];
  const int inside = index - p.item_begin;
  const int tiles = (p.queries + kTile - 1) / kTile;
  const int group = inside / (p.group_heads * tiles);
  const int heads = min(p.group_heads, args.heads - group * p.group_heads);
  const int rest = inside - group * p.group_heads * tiles;
  // The last queries have the most to do: they go first.
  return {piece, group * p.group_heads + rest % heads, (tiles - 1 - rest / heads) * kTile, 0};
}

__device__ __forceinline__ int KeyTiles(const PromptPiece& piece, int first_query) {
  const int last = min(first_query + kTile, piece.queries) - 1;
  return (min(piece.keys, piece.ahead + last + 1) + kTile - 1) / kTile;
}

// Waits for an item; the whole warp reads it.
__device__ __forceinline__ Item TakeItem(uint32_t base, const uint8_t* shared, uint32_t item) {
  BarrierWait(ItemFull(base, item), ItemPhase(item));
  const int4 found = *reinterpret_cast<const int4*>(shared + kItems + item % 2 * 16);
  __syncwarp();
  if (threadIdx.x % 32 == 0) BarrierArrive(ItemEmpty(base, item));
  return {__shfl_sync(~0u, found.x, 0), __shfl_sync(~0u, found.y, 0), __shfl_sync(~0u, found.z, 0),
          0};
}

// One thread: takes items and fills the ring in the order in which it is used. The next item is
// told before this one's keys are loaded, so that its queries are there in time.
__device__ void Load(const MlaPromptArgs& args, uint32_t base, uint8_t* shared) {
  PrefetchMap(&args.keys);
  PrefetchMap(&args.values);
  PrefetchMap(&args.ropes);
  const auto tell = [&](uint32_t item, const Item& work) {
    BarrierWait(ItemEmpty(base, item), ItemPhase(item) ^ 1);
    *reinterpret_cast<int4*>(shared + kItems + item % 2 * 16) =
        make_int4(work.piece, work.head, work.first, 0);
    BarrierArrive(ItemFull(base, item));
  };
  const auto take = [&] { return static_cast<int>(gridDim.x) + atomicAdd(args.counter, 1); };
  uint32_t slot = 0;
  Item work = FindItem(args, blockIdx.x, 0);
  tell(0, work);
  int index = take();
  for (uint32_t item = 0; work.piece >= 0; ++item) {
    const Item later = FindItem(args, index, work.piece);
    tell(item + 1, later);
    index = take();
    const PromptPiece& piece = args.pass.pieces[work.piece];
    const int column = work.head * (kNope + kValue) * 2;  // bytes
    const auto next = [&] {
      BarrierWait(SlotEmpty(base, slot), SlotPhase(slot) ^ 1);
      BarrierArriveExpect(SlotFull(base, slot), kSlotBytes);
    };
    const int tiles = KeyTiles(piece, work.first);
    for (int step = 0; step <= tiles; ++step) {
      if (step < tiles) {
        const int row = piece.key_row + (tiles - 1 - step) * kTile;
        for (int part = 0; part < 2; ++part, ++slot) {
          next();
          TmaLoad(SlotAddress(base, slot), &args.keys, SlotFull(base, slot), column + part * 128,
                  row, kEvictNormal);
        }
        next();
        TmaLoad(SlotAddress(base, slot), &args.ropes, SlotFull(base, slot), (kWidth - 64) * 2, row,
                kEvictNormal);
        ++slot;
      }
      if (step > 0) {
        const int row = piece.key_row + (tiles - step) * kTile;
        for (int half = 0; half < kValueSlots; ++half, ++slot) {
          next();
          for (int part = 0; part < 2; ++part) {
            TmaLoad(SlotAddress(base, slot) + part * kSlotBytes / 2, &args.values,
                    SlotFull(base, slot), column + kNope * 2 + part * 128, row + half * 64,
                    kEvictNormal);
          }
        }
      }
    }
    work = later;
  }
}

// kConverters threads: queries from f32 in global memory to tiles of bf16 in shared memory. Rows
// behind the last query become zeros.
__device__ void ConvertQueries(const MlaPromptArgs& args, uint32_t base, const uint8_t* shared) {
  constexpr int kVectors = kQuery / 4;      // of four floats, in a row
  constexpr int kLines = kQuery * 4 / 128;  // of L2, in a row
  constexpr int kBatch = 16;                // rows in flight
  static_assert(kConverters == 2 * kVectors, "the threads are two rows wide");
  const int thread = threadIdx.x - 32;
  const int vector = thread % kVectors, odd = thread / kVectors;
  for (uint32_t item = 0;; ++item) {
    const Item work = TakeItem(base, shared, item);
    if (work.piece < 0) return;
    const PromptPiece& piece = args.pass.pieces[work.piece];
    const int rows = min(kTile, piece.queries - work.first);
    const float* from = args.q + int64_t{piece.query_row + work.first} * args.q_stride +
                        work.head * kQuery + vector * 4;
    const uint32_t to =
        base + kQueries + (item % 2 * kQuerySlots + vector / 16) * kSlotBytes + vector % 2 * 8;
    // All of it is on its way to L2 before there is room for any of it.
    for (int line = thread; line < rows * kLines; line += kConverters) {
      PrefetchToL2(args.q + int64_t{piece.query_row + work.first + line / kLines} * args.q_stride +
                   work.head * kQuery + line % kLines * 32);
    }
    BarrierWait(QueriesEmpty(base, item), ItemPhase(item) ^ 1);
    for (int begin = odd; begin < kTile; begin += 2 * kBatch) {
      float4 x[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int row = begin + 2 * i;
        x[i] = row < rows
                   ? __ldcs(reinterpret_cast<const float4*>(from + int64_t{row} * args.q_stride))
                   : float4{};
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int row = begin + 2 * i;
        const uint32_t at = to + row * 128 + ((vector % 16 / 2) ^ (row % 8)) * 16;
        asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(at), "r"(PackBf16(x[i].x, x[i].y)),
                     "r"(PackBf16(x[i].z, x[i].w))
                     : "memory");
      }
    }
    FenceAsyncProxy();
    __syncwarp();
    if (threadIdx.x % 32 == 0) BarrierArrive(QueriesFull(base, item));
  }
}

// --- Consumers ---

__device__ __forceinline__ void Release(uint32_t base, uint32_t slot, int count) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) {
    for (int i = 0; i < count; ++i) BarrierArrive(SlotEmpty(base, slot + i));
  }
}

__device__ __forceinline__ void WaitForSlots(uint32_t base, uint32_t slot, int count) {
#pragma unroll
  for (int i = 0; i < count; ++i) BarrierWait(SlotFull(base, slot + i), SlotPhase(slot + i));
}

// Begins s = q k^T with the keys in the slots from `slot`, which are full.
__device__ __forceinline__ void BeginScores(uint32_t base, uint32_t queries, uint32_t slot,
                                            float (&s)[64]) {
  WgmmaFence();
#pragma unroll
  for (int part = 0; part < kKeySlots; ++part) {
    const uint64_t a = MatrixDescriptor(queries + part * kSlotBytes);
    const uint64_t b = MatrixDescriptor(SlotAddress(base, slot + part));
#pragma unroll
    for (int step = 0; step < 4; ++step)
      WgmmaBf16Tile<128>(s, a + step * 2, b + step * 2, part + step > 0);
  }
  WgmmaCommit();
}

// Begins out = out * shrink + p v with the values in the slots from `slot`, which are full.
__device__ __forceinline__ void BeginValues(uint32_t base, uint32_t slot, const float (&shrink)[2],
                                            const uint32_t (&p)[32], float (&out)[64]) {
#pragma unroll
  for (int i = 0; i < 64; ++i) out[i] *= shrink[i / 2 % 2];
  PinSums(out);
  WgmmaFence();
#pragma unroll
  for (int half = 0; half < kValueSlots; ++half) {
    const uint64_t b = RowsDescriptor(SlotAddress(base, slot + half), kSlotBytes / 2);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      WgmmaBf16Rows(out, p + (half * 4 + step) * 4, b + step * (16 * 128 / 16));
    }
  }
  WgmmaCommit();
}

// What a thread knows of its rows' softmax so far: of row `lane / 4` of its warp's 16 and the row 8
// below. `total` is of its own columns.
struct Softmax {
  float most[2] = {-INFINITY, -INFINITY};
  float total[2] = {0, 0};
  float shrink[2];  // of what was summed before
};

constexpr int Chain(int i) { return i / 4 % 4; }

// Scores become probabilities, to the base of the largest so far. `visible`: the last column of the
// tile that row lane / 4 sees, if it is `masked` at all.
__device__ __forceinline__ void Weigh(float scale_log2, bool masked, int visible, float (&s)[64],
                                      Softmax& state) {
  if (masked) {
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      const int column = i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
      if (column > visible + i / 2 % 2 * 8) s[i] = -INFINITY;
    }
  }
  // Four maxima and sums for each row: a chain through all would be waited for.
  float most[2][4], total[2][4] = {};
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    float& m = most[i / 2 % 2][Chain(i)];
    m = i < 16 && i % 2 == 0 ? s[i] : fmaxf(m, s[i]);
  }
  float offset[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float m = fmaxf(fmaxf(most[h][0], most[h][1]), fmaxf(most[h][2], most[h][3]));
    m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
    m = fmaxf(fmaxf(m, __shfl_xor_sync(~0u, m, 2)), state.most[h]);
    // A row that has seen nothing yet must not subtract infinities.
    offset[h] = m == -INFINITY ? 0.0f : -m * scale_log2;
    state.shrink[h] = Exp2(fmaf(state.most[h], scale_log2, offset[h]));
    state.most[h] = m;
  }
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    s[i] = Exp2(fmaf(s[i], scale_log2, offset[i / 2 % 2]));
    total[i / 2 % 2][Chain(i)] += s[i];
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    state.total[h] = fmaf(state.total[h], state.shrink[h],
                          (total[h][0] + total[h][1]) + (total[h][2] + total[h][3]));
  }
}

__device__ __forceinline__ void Pack(const float (&s)[64], uint32_t (&p)[32]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) p[i] = PackBf16(s[2 * i], s[2 * i + 1]);
}

// Writes an item's outputs, put together with those of earlier keys if there were any.
__device__ void Finish(const MlaPromptArgs& args, const PromptPiece& piece, const Item& work,
                       const float (&out)[64], const Softmax& state) {
  const int warp = (threadIdx.x - 128) / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float total = state.total[h];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    const int query = work.first + warp * 16 + lane / 4 + 8 * h;
    if (query >= piece.queries) continue;
    const int64_t row = piece.query_row + query;
    float* const to = args.out + row * args.out_stride + work.head * kValue + lane % 4 * 2;
    float factor = 1.0f / total, factor_before = 0;
    if (piece.merge || piece.more) {
      float* const lse = args.lse + row * args.heads + work.head;
      float sum = state.most[h] * args.scale_log2 + log2f(total);
      if (piece.merge) {
        const float before = *lse, most = fmaxf(before, sum);
        const float both = most + log2f(Exp2(before - most) + Exp2(sum - most));
        factor *= Exp2(sum - both);
        factor_before = Exp2(before - both);
        sum = both;
      }
      __syncwarp(__activemask());
      if (piece.more && lane % 4 == 0) *lse = sum;
    }
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      float2 x = {out[4 * j + 2 * h] * factor, out[4 * j + 2 * h + 1] * factor};
      float2* const at = reinterpret_cast<float2*>(to + 8 * j);
      if (piece.merge) {
        const float2 before = *at;
        x.x = fmaf(before.x, factor_before, x.x);
        x.y = fmaf(before.y, factor_before, x.y);
      }
      __stcs(at, x);
    }
  }
}

__device__ void Attend(const MlaPromptArgs& args, uint32_t base, const uint8_t* shared) {
  // The warpgroup: queries 64 * group and on. Its number and the next are named barriers.
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0) - 1;
  const int mine = kFirstOfWarpgroup + group, other = kFirstOfWarpgroup + 1 - group;
  const int row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4 + group * 64;
  const auto queries = [&](uint32_t item) {
    return base + kQueries + item % 2 * kQuerySlots * kSlotBytes + group * (kSlotBytes / 2);
  };
  if (group == 1) NamedBarrierArrive(other, kConsumers);  // the first turn is the other's

  float s[64], out[64];
  uint32_t p[32], slot = 0;
  Item work = TakeItem(base, shared, 0);
  if (work.piece >= 0) {
    BarrierWait(QueriesFull(base, 0), ItemPhase(0));
    WaitForSlots(base, slot, kKeySlots);
  }
  PinSums(s);
  BeginScores(base, queries(0), slot, s);
  for (uint32_t item = 0; work.piece >= 0; ++item) {
    const PromptPiece& piece = args.pass.pieces[work.piece];
    const int tiles = KeyTiles(piece, work.first);
    const int sees = piece.ahead + work.first + row;  // key
    // For a whole warpgroup: tiles of which its first row sees all.
    const int unmasked = (piece.ahead + work.first + group * 64 + 1) / kTile;
    const auto weigh = [&](int tile, Softmax& state) {
      Weigh(args.scale_log2, tile >= unmasked, sees - tile * kTile, s, state);
    };

    Softmax state;
    WgmmaWait<0>();
    PinSums(s);
    Release(base, slot, kKeySlots);
    slot += kKeySlots;
    weigh(tiles - 1, state);
    Pack(s, p);
#pragma unroll
    for (int i = 0; i < 64; ++i) out[i] = 0;

    for (int tile = tiles - 2; tile >= 0; --tile) {
      PinSums(s);
      PinFactors(p);
      NamedBarrier(mine, kConsumers);
      WaitForSlots(base, slot, kKeySlots);
      BeginScores(base, queries(item), slot, s);
      WaitForSlots(base, slot + kKeySlots, kValueSlots);
      BeginValues(base, slot + kKeySlots, state.shrink, p, out);
      NamedBarrierArrive(other, kConsumers);
      WgmmaWait<1>();
      PinSums(s);
      Release(base, slot, kKeySlots);
      weigh(tile, state);
      // All of the softmax comes before the products are waited for. The compiler would move their
      // wait up; this one, for what is used next, it cannot move.
      PinSums(s);
      WaitForSlots(base, slot + kTileSlots, 1);
      WgmmaWait<0>();
      PinSums(s);
      PinSums(out);
      PinFactors(p);
      Release(base, slot + kKeySlots, kValueSlots);
      slot += kTileSlots;
      Pack(s, p);
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) BarrierArrive(QueriesEmpty(base, item));

    // The last values, and behind them already the next item's first scores. If there is no next
    // one, they are of whatever lies there.
    const Item later = TakeItem(base, shared, item + 1);
    PinSums(s);
    PinFactors(p);
    NamedBarrier(mine, kConsumers);
    WaitForSlots(base, slot, kValueSlots);
    BeginValues(base, slot, state.shrink, p, out);
    if (later.piece >= 0) {
      BarrierWait(QueriesFull(base, item + 1), ItemPhase(item + 1));
      WaitForSlots(base, slot + kValueSlots, kKeySlots);
    }
    BeginScores(base, queries(item + 1), slot + kValueSlots, s);
    NamedBarrierArrive(other, kConsumers);
    WgmmaWait<1>();
    PinSums(out);
    PinFactors(p);
    Release(base, slot, kValueSlots);
    slot += kValueSlots;
    Finish(args, piece, work, out, state);
    work = later;
  }
  WgmmaWait<0>();
  PinSums(s);
}

__global__ void __launch_bounds__(kThreads, 1)
    MlaPromptKernel(const __grid_constant__ MlaPromptArgs args) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = SharedAddress(shared);
  if (threadIdx.x == 0) {
    constexpr int kConsumerWarps = kConsumers / 32, kConverterWarps = kConverters / 32;
    for (int slot = 0; slot < kSlots; ++slot) {
      BarrierInit(SlotFull(base, slot), 1);
      BarrierInit(SlotEmpty(base, slot), kConsumerWarps);
    }
    for (int item = 0; item < 2; ++item) {
      BarrierInit(QueriesFull(base, item), kConverterWarps);
      BarrierInit(QueriesEmpty(base, item), kConsumerWarps);
      BarrierInit(ItemFull(base, item), 1);
      BarrierInit(ItemEmpty(base, item), kConsumerWarps + kConverterWarps);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    GiveRegisters<104>();
    if (threadIdx.x >= 32) {
      ConvertQueries(args, base, shared);
    } else if (threadIdx.x == 0) {
      Load(args, base, shared);
    }
  } else {
    TakeRegisters<200>();
    Attend(args, base, shared);
  }
}

constexpr int kVectorsOfRow = kWidth / 8;  // of 16 bytes
constexpr int kRowsOfBlock = 8;

__global__ void __launch_bounds__(kVectorsOfRow* kRowsOfBlock)
    PromptGatherKernel(const __grid_constant__ PromptGatherArgs args) {
  const int row = blockIdx.x * kRowsOfBlock + threadIdx.y;
  const PromptPiece& piece = args.pass.pieces[args.pass.piece_of_tile[row / kTile]];
  const int key = row - piece.key_row;
  uint4 x = {};
  if (key < piece.keys) {
    const int64_t from = int64_t{args.page_table[piece.table_offset + key / 64]} * 64 + key % 64;
    x = reinterpret_cast<const uint4*>(args.cache + from * kWidth)[threadIdx.x];
  }
  reinterpret_cast<uint4*>(args.out + int64_t{row} * kWidth)[threadIdx.x] = x;
  if (row == 0 && threadIdx.x == 0) *args.counter = 0;
}

}  // namespace

cudaError_t LaunchPromptGather(const PromptGatherArgs& args, cudaStream_t stream) {
  PromptGatherKernel<<<args.pass.rows / kRowsOfBlock, dim3(kVectorsOfRow, kRowsOfBlock), 0,
                       stream>>>(args);
  return cudaGetLastError();
}

cudaError_t LaunchMlaPrompt(const MlaPromptArgs& args, cudaStream_t stream) {
  const cudaError_t error = cudaFuncSetAttribute(
      MlaPromptKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  MlaPromptKernel<<<args.blocks, kThreads, kSharedBytes, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace sluice::cuda
