// Absorbed attention with DeepSeek-V3's dimensions on the tensor cores, over pages of bf16 latents.
// Design, numbers and what was tried: kernels/docs/mla_decode.md.
//
// A block has the queries of up to 64 heads of a token in shared memory and goes through pages two
// at a time. Two warpgroups: each computes the scores of one page of the pair, and half of the
// outputs' 512 columns, which is what fits into its registers. The first adds page 0's values while
// the second still exponentiates page 1's scores, so that the tensor cores have work meanwhile. A
// further warp lets TMA refill half pages as soon as they have been used. With more than 64 heads,
// two blocks form a cluster, and each fetches half of the tiles for both.
//
// The blocks, one for each SM, share out all tokens' pages (mla_schedule.h). What several blocks
// have of one token is put together by a second kernel.
// Source: the tiling, and that two warpgroups take turns over one split output, follow
// deepseek-ai/FlashMLA's explanation; the order of the turns differs.
#include <cuda_bf16.h>

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/mla_decode_launch.h"
#include "kernels/cuda/mla_schedule.h"
#include "kernels/cuda/wgmma_bf16.cuh"

namespace sluice::cuda {
namespace {

constexpr int kHeads = kMlaHeads;
constexpr int kPage = 64;  // tokens
constexpr int kRank = 512;
constexpr int kColumns = 576;  // of a query or a cached row
constexpr int kHalfColumns = kRank / 2;
constexpr int kTiles = 9;      // of 64 columns: the latent, then k_pe
constexpr int kLeftTiles = 4;  // the values of the outputs' first half
constexpr int kTileBytes = 64 * 128;
constexpr int kPageBytes = kTiles * kTileBytes;
constexpr int kConsumers = 256;
constexpr int kThreads = 128 + kConsumers;
constexpr float kNone = -1e30f;  // less than any score
// Sums keep an older maximum until a score exceeds it by this, to base 2: what is summed stays far
// from overflow, and outputs are hardly ever rescaled.
constexpr float kSlack = 8;

// Shared memory.
constexpr int kQueries = 0;  // without the last tile, which is in registers
constexpr int kProbabilities = kQueries + 8 * kTileBytes;  // of the pair's two pages
constexpr int kPages = kProbabilities + 2 * kTileBytes;
constexpr int kMaxima = kPages + 2 * kPageBytes;  // as each warpgroup leaves them
constexpr int kSums = kMaxima + 2 * kHeads * 4;   // of each warpgroup's probabilities
constexpr int kScan = kSums + 2 * kHeads * 4;
constexpr int kBarriers = kScan + 128;
constexpr int kSharedBytes = kBarriers + (2 + 2 * kTiles + 6) * 8;
static_assert(kSharedBytes <= 227 * 1024, "a block's shared memory");

// Named barriers of both warpgroups; the last is the first of two of one warpgroup.
enum : int { kFirstReady = 1, kSecondReady, kSumsReady, kWarpgroup };

// Of a page: the values of either half of the outputs, and k_pe.
enum : int { kLeft, kRight, kRope };

// Addresses of mbarriers.
struct Barriers {
  uint32_t at;
  __device__ uint32_t QueriesFull() const { return at; }
  __device__ uint32_t QueriesEmpty() const { return at + 8; }
  __device__ uint32_t Full(int page, int tile) const { return at + (2 + page * kTiles + tile) * 8; }
  // Halves of a page's latents, then k_pe.
  __device__ uint32_t Empty(int page, int section) const {
    return at + (2 + 2 * kTiles + page * 3 + section) * 8;
  }
};

__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ int PositionOf(const MlaDecodeArgs& args, int token) {
  return args.positions == nullptr ? args.first_position + token : args.positions[token];
}

// A run of a token's pairs that this block computes.
struct Piece {
  int token;
  int length;  // of its sequence
  int first, last;
  int first_part, parts;
};

// This block's pieces, in order.
class Share {
 public:
  // Called by all threads of the block; `scan`: shared memory.
  __device__ Share(const MlaDecodeArgs& args, int part, int* scan) : args_(args), part_(part) {
    const int each = (args.tokens + kThreads - 1) / kThreads;
    const int begin = min(static_cast<int>(threadIdx.x) * each, args.tokens);
    const int end = min(begin + each, args.tokens);
    int sum = 0, most = 0;
    for (int token = begin; token < end; ++token) {
      const int cost = MlaCost(PositionOf(args, token));
      sum += cost;
      most = max(most, cost);
    }
    most = __reduce_max_sync(~0u, most);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int until = sum;
    for (int step = 1; step < 32; step *= 2) {
      const int more = __shfl_up_sync(~0u, until, step);
      if (lane >= step) until += more;
    }
    constexpr int kWarps = kThreads / 32;
    int2* const found = reinterpret_cast<int2*>(scan + 2 * kWarps);
    if (lane == 31) {
      scan[warp] = until;
      scan[kWarps + warp] = most;
    }
    if (threadIdx.x == 0) *found = make_int2(args.tokens, 0);
    __syncthreads();
    int total = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w == warp) until += total;
      total += scan[w];
      most = max(most, scan[kWarps + w]);
    }
    share_ = MlaShare(args.tokens, total, most, args.parts);
    const int low = part * share_;
    int start = until - sum;
    if (start <= low && low < until) {
      int token = begin;
      while (start + MlaCost(PositionOf(args, token)) <= low) {
        start += MlaCost(PositionOf(args, token++));
      }
      *found = make_int2(token, start);
    }
    __syncthreads();
    token_ = found->x;
    start_ = found->y;
  }

  __device__ bool Next(Piece* piece) {
    while (token_ < args_.tokens && start_ < (part_ + 1) * share_) {
      const int position = PositionOf(args_, token_);
      const MlaPiece of = MlaPieceOf(start_, MlaPairs(position), share_, part_);
      *piece = {token_, max(position, 0) + 1, of.first, of.last, of.first_part, of.parts};
      start_ += MlaCost(position);
      ++token_;
      if (of.first < of.last) return true;
    }
    return false;
  }

 private:
  const MlaDecodeArgs& args_;
  int part_;
  int share_;  // units of a part
  int token_, start_;
};

// Rows of the cache where the pair's pages begin. Where a sequence has no second page, the first
// once more: its scores are masked.
struct PairRows {
  int rows[2];
};
__device__ PairRows RowsOf(const MlaDecodeArgs& args, const Piece& piece, int pair) {
  const int sequence = args.seq_of_token == nullptr ? 0 : args.seq_of_token[piece.token];
  const int32_t* table = args.page_table + sequence * args.page_table_stride;
  const int pages = (piece.length + kPage - 1) / kPage;
  return {{table[2 * pair] * kPage, table[min(2 * pair + 1, pages - 1)] * kPage}};
}

// One warp. With kPair, blocks 0 and 1 of the cluster fetch the even and the odd tiles of pages,
// for both.
template <bool kPair>
__device__ void Produce(const MlaDecodeArgs& args, Share share, uint32_t base, Barriers barriers) {
  const int rank = kPair ? blockIdx.x : 0, lane = threadIdx.x;
  Piece piece, next_piece;
  if (!share.Next(&piece)) return;
  uint32_t phase = 1, queries_phase = 1;
  PairRows rows = RowsOf(args, piece, piece.first);
  int pair = piece.first;
  while (true) {
    // The next pair's pages are looked up before there is room for them.
    bool more = true;
    PairRows next_rows = {};
    int next_pair = pair + 1;
    next_piece = piece;
    if (next_pair == piece.last) {
      more = share.Next(&next_piece);
      next_pair = next_piece.first;
    }
    if (more) next_rows = RowsOf(args, next_piece, next_pair);
    if (pair == piece.first) {
      BarrierWait(barriers.QueriesEmpty(), queries_phase);
      queries_phase ^= 1;
      if (lane == 0) BarrierArriveExpect(barriers.QueriesFull(), 8 * kTileBytes);
      for (int tile = 0; tile < 8 && lane == 0; ++tile) {
        TmaLoad(base + kQueries + tile * kTileBytes, &args.q, barriers.QueriesFull(), tile * 128,
                piece.token * args.heads + blockIdx.x * kHeads, kEvictFirst);
      }
    }
    const auto fetch = [&](int page, int section, int first, int last) {
      BarrierWait(barriers.Empty(page, section), phase);
      for (int tile = first; tile < last && lane == 0; ++tile) {
        const uint32_t full = barriers.Full(page, tile);
        const uint32_t to = base + kPages + page * kPageBytes + tile * kTileBytes;
        BarrierArriveExpect(full, kTileBytes);
        if (!kPair) {
          TmaLoad(to, &args.cache, full, tile * 128, rows.rows[page], kEvictFirst);
        } else if (tile % 2 == rank) {
          TmaLoadToBlocks(to, &args.cache, full, tile * 128, rows.rows[page], 3, kEvictFirst);
        }
      }
    };
    // In the order in which they are given back.
    fetch(0, kRope, 8, 9);
    fetch(1, kRope, 8, 9);
    for (int page = 0; page < 2; ++page) {
      fetch(page, kLeft, 0, 4);
      fetch(page, kRight, 4, 8);
    }
    if (!more) return;
    if (next_piece.token != piece.token) piece = next_piece;
    phase ^= 1;
    pair = next_pair;
    rows = next_rows;
  }
}

// The same, but what is computed from it is computed again, not kept in registers.
__device__ __forceinline__ uint32_t Again(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

// What a thread of a warpgroup holds: rows (heads) `row` and row + 8 of everything.
template <int kHalf, bool kPair>
struct Consumer {
  const MlaDecodeArgs& args;
  uint32_t base;   // of shared memory
  uint32_t place;  // the same as descriptors want it: without the block's rank in the cluster
  uint8_t* shared;
  Barriers barriers;
  int thread, lane, row;
  float out[128];
  float score[32];  // then probabilities
  uint32_t packed[4][4];
  uint32_t q_rope[4][4];
  float largest[2];  // scaled, to base 2
  float total[2];

  __device__ __forceinline__ float* Maxima(int half) const {
    return reinterpret_cast<float*>(shared + kMaxima) + half * kHeads;
  }
  __device__ __forceinline__ uint32_t PageAt(int page) const {
    return base + kPages + page * kPageBytes;
  }

  __device__ __forceinline__ void LoadRope(const Piece& piece) {
    const int first = piece.token * args.heads + blockIdx.x * kHeads + row;
    const int rows = args.tokens * args.heads;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      // Padding may be any row.
      const __nv_bfloat16* from =
          args.queries + int64_t{min(first + 8 * h, rows - 1)} * kColumns + kRank + lane % 4 * 2;
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        q_rope[step][h] = *reinterpret_cast<const uint32_t*>(from + 16 * step);
        q_rope[step][2 + h] = *reinterpret_cast<const uint32_t*>(from + 16 * step + 8);
      }
    }
  }

  // score = queries x this warpgroup's page^T, tile by tile as they arrive.
  __device__ __forceinline__ void Scores(uint32_t phase) {
    PinSums(score);
    const uint32_t at = Again(place);
    const uint64_t queries = MatrixDescriptor(at + kQueries);
    const uint64_t page = MatrixDescriptor(at + kPages + kHalf * kPageBytes);
    BarrierWait(barriers.Full(kHalf, 8), phase);
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      WgmmaBf16(score, q_rope[step], page + 8 * (kTileBytes / 16) + step * 2, step > 0);
    }
#pragma unroll
    for (int tile = 0; tile < 8; ++tile) {
      BarrierWait(barriers.Full(kHalf, tile), phase);
      WgmmaFence();
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        const int at16 = tile * (kTileBytes / 16) + step * 2;
        WgmmaBf16Tile<64>(score, queries + at16, page + at16, true);
      }
    }
    WgmmaCommit();
    WgmmaWait<0>();
    PinSums(score);
  }
  __device__ __forceinline__ void NextScores(uint32_t& phase) {
    phase ^= 1;
    Scores(phase);
  }

  // out += probabilities in shared memory (those of the other warpgroup's page) x its values.
  __device__ __forceinline__ void AddTheirs() {
    WgmmaFence();
    const uint32_t at = Again(place);
    const uint64_t a = MatrixDescriptor(at + kProbabilities + (1 - kHalf) * kTileBytes);
    const uint64_t b = RowsDescriptor(
        at + kPages + (1 - kHalf) * kPageBytes + kHalf * kLeftTiles * kTileBytes, kTileBytes);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      WgmmaBf16Rows(out, a + step * 2, b + step * (16 * 128 / 16));
    }
    WgmmaCommit();
  }
  // The same with this warpgroup's own, from registers.
  __device__ __forceinline__ void AddOwn() {
    WgmmaFence();
    const uint64_t b = RowsDescriptor(
        Again(place) + kPages + kHalf * (kPageBytes + kLeftTiles * kTileBytes), kTileBytes);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      WgmmaBf16Rows(out, packed[step], b + step * (16 * 128 / 16));
    }
    WgmmaCommit();
  }

  // Columns from `valid` on are no rows of the sequence.
  __device__ __forceinline__ void Mask(int valid) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= valid) score[i] = kNone;
    }
  }
  // The rows' maxima with this page's scores, for the other warpgroup too, and what sums so far are
  // to be multiplied with because of them.
  __device__ __forceinline__ void NewMaxima(float (&factor)[2]) {
    float most[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float of[8];  // side by side: one after the other would take longer
#pragma unroll
      for (int j = 0; j < 8; ++j) of[j] = fmaxf(score[4 * j + 2 * h], score[4 * j + 2 * h + 1]);
#pragma unroll
      for (int step = 4; step > 0; step /= 2) {
#pragma unroll
        for (int j = 0; j < step; ++j) of[j] = fmaxf(of[j], of[j + step]);
      }
      most[h] = fmaxf(of[0], __shfl_xor_sync(~0u, of[0], 1));
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], 2)) * args.scale_log2;
      SetMaximum(h, most[h] > largest[h] + kSlack ? most[h] : largest[h], factor[h]);
      if (lane % 4 == 0) Maxima(kHalf)[row + 8 * h] = largest[h];
    }
  }
  // Likewise with the other warpgroup's.
  __device__ __forceinline__ void TheirMaxima(float (&factor)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) SetMaximum(h, Maxima(1 - kHalf)[row + 8 * h], factor[h]);
  }
  __device__ __forceinline__ void SetMaximum(int h, float now, float& factor) {
    factor = Exp2(largest[h] - now);
    largest[h] = now;
    total[h] *= factor;
  }
  // score = 2^(scaled score - largest), its sum, and the same in bf16.
  __device__ __forceinline__ void Exponentiate() {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      score[i] = Exp2(fmaf(score[i], args.scale_log2, -largest[i / 2 % 2]));
    }
#pragma unroll
    for (int i = 0; i < 32; ++i) total[i / 2 % 2] += score[i];
#pragma unroll
    for (int i = 0; i < 16; ++i) packed[i / 4][i % 4] = PackBf16(score[2 * i], score[2 * i + 1]);
  }
  // To shared memory, for the other warpgroup.
  __device__ __forceinline__ void StorePacked() {
    const int r = thread / 32 * 16 + lane % 16;
    const uint32_t to = base + kProbabilities + kHalf * kTileBytes + r * 128;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      StoreTiles(to + ((2 * step + lane / 16) ^ (r % 8)) * 16, packed[step]);
    }
    FenceAsyncProxy();
  }
  // out *= factor of the row; hardly ever anything but 1.
  __device__ __forceinline__ void Scale(const float (&factor)[2]) {
    if (__any_sync(~0u, factor[0] != 1 || factor[1] != 1)) {
#pragma unroll
      for (int i = 0; i < 128; ++i) out[i] *= factor[i / 2 % 2];
    }
  }
  // Rows behind the sequence's end may hold anything, and 0 times NaN is NaN: this warpgroup's
  // half of a page's values there becomes 0.
  __device__ __forceinline__ void ClearValues(int page, int valid) {
    if (valid >= kPage) return;
    valid = max(valid, 0);
    constexpr int kChunks = kLeftTiles * 8;  // of 16 bytes, in a row
    for (int i = thread; i < (kPage - valid) * kChunks; i += 128) {
      const uint32_t to = PageAt(page) + (kHalf * kLeftTiles + i % kChunks / 8) * kTileBytes +
                          (valid + i / kChunks) * 128 + i % 8 * 16;
      asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(to), "r"(0) : "memory");
    }
    FenceAsyncProxy();
    NamedBarrier(kWarpgroup + kHalf, 128);
  }

  // Gives a section of a page that this warpgroup used last back to who refills it.
  __device__ __forceinline__ void Release(int page, int section) {
    if (thread != 0) return;
    if (kPair) {
      BarrierArriveAt(SharedOfBlock(barriers.Empty(page, section), 0));
      BarrierArriveAt(SharedOfBlock(barriers.Empty(page, section), 1));
    } else {
      BarrierArrive(barriers.Empty(page, section));
    }
  }

  // A pair's page 0, and columns 0 to 255: scores are there; leaves those of the next pair.
  template <bool kLast>
  __device__ __forceinline__ void First(int valid, uint32_t& phase) {
    Release(0, kRope);
    if (kLast) Mask(valid);
    float factor[2];
    NewMaxima(factor);
    Exponentiate();
    StorePacked();
    NamedBarrierArrive(kFirstReady, kConsumers);
    Scale(factor);
    if (kLast) ClearValues(0, valid);
    PinSums(out);
    AddOwn();
    WgmmaWait<0>();
    PinSums(out);
    Release(0, kLeft);
    NamedBarrier(kSecondReady, kConsumers);
    TheirMaxima(factor);
    Scale(factor);
    if (kLast) ClearValues(1, valid - kPage);
    PinSums(out);
    AddTheirs();
    WgmmaWait<0>();
    PinSums(out);
    Release(1, kLeft);
    if (!kLast) NextScores(phase);
  }

  // A pair's page 1, and columns 256 to 511; likewise.
  template <bool kLast>
  __device__ __forceinline__ void Second(int valid, uint32_t& phase) {
    Release(1, kRope);
    if (kLast) Mask(valid - kPage);
    float factor[2];
    NamedBarrier(kFirstReady, kConsumers);
    TheirMaxima(factor);
    Scale(factor);
    if (kLast) ClearValues(0, valid);
    PinSums(out);
    AddTheirs();
    NewMaxima(factor);
    Exponentiate();
    StorePacked();
    NamedBarrierArrive(kSecondReady, kConsumers);
    WgmmaWait<0>();
    PinSums(out);
    Release(0, kRight);
    Scale(factor);
    if (kLast) ClearValues(1, valid - kPage);
    PinSums(out);
    AddOwn();
    WgmmaWait<0>();
    PinSums(out);
    Release(1, kRight);
    if (!kLast) NextScores(phase);
  }

  template <bool kLast>
  __device__ __forceinline__ void Step(int valid, uint32_t& phase) {
    if (kHalf == 0) {
      First<kLast>(valid, phase);
    } else {
      Second<kLast>(valid, phase);
    }
  }

  __device__ __forceinline__ void Store(const Piece& piece) {
    float* const sums = reinterpret_cast<float*>(shared + kSums);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      total[h] += __shfl_xor_sync(~0u, total[h], 1);
      total[h] += __shfl_xor_sync(~0u, total[h], 2);
      if (lane % 4 == 0) sums[kHalf * kHeads + row + 8 * h] = total[h];
    }
    NamedBarrierOfRoles(kSumsReady, kConsumers);
#pragma unroll
    for (int h = 0; h < 2; ++h) total[h] += sums[(1 - kHalf) * kHeads + row + 8 * h];
    const int heads = args.heads - blockIdx.x * kHeads;  // from here on in this token
    const bool begins = piece.first == 0;
    if (kHalf == 0 && thread == 0 && blockIdx.x == 0 && begins) {
      args.pieces[piece.token] = make_int2(piece.first_part, piece.parts);
    }
    const int64_t slot = (int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * 2 + begins;
    const float scale[2] = {1 / total[0], 1 / total[1]};
    if (piece.parts == 1) {
      const int64_t first = int64_t{piece.token} * args.heads + blockIdx.x * kHeads + row;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        __nv_bfloat16* const to = args.out + (first + 8 * h) * kRank + kHalf * kHalfColumns;
#pragma unroll
        for (int j = 0; j < 32; j += 4) {
          // Four lanes have the row's columns by twos; each stores eight that follow each other.
          uint32_t x[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int at = 4 * (j + i) + 2 * h;
            x[i] = PackBf16(out[at] * scale[h], out[at + 1] * scale[h]);
          }
          const bool odd = lane & 1, high = lane & 2;
#pragma unroll
          for (int i = 0; i < 4; i += 2) {
            const uint32_t got = __shfl_xor_sync(~0u, odd ? x[i] : x[i + 1], 1);
            if (odd) {
              x[i] = got;
            } else {
              x[i + 1] = got;
            }
          }
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const uint32_t got = __shfl_xor_sync(~0u, high ? x[i] : x[i + 2], 2);
            if (high) {
              x[i] = got;
            } else {
              x[i + 2] = got;
            }
          }
          if (row + 8 * h < heads) {
            *reinterpret_cast<uint4*>(to + 8 * (j + lane % 4)) = make_uint4(x[0], x[1], x[2], x[3]);
          }
        }
      }
      return;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (row + 8 * h >= heads) continue;
      const int64_t at = slot * kHeads + row + 8 * h;
      if (kHalf == 0 && lane % 4 == 0) args.part_lse[at] = largest[h] + log2f(total[h]);
      float* const to = args.part_out + at * kRank + kHalf * kHalfColumns + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < 32; ++j) {
        *reinterpret_cast<float2*>(to + 8 * j) =
            make_float2(out[4 * j + 2 * h] * scale[h], out[4 * j + 2 * h + 1] * scale[h]);
      }
    }
  }

  __device__ __forceinline__ void Run(Share& share) {
    Piece piece;
    uint32_t phase = 0, queries_phase = 0;
    if (!share.Next(&piece)) return;
    while (true) {
      LoadRope(piece);
#pragma unroll
      for (int i = 0; i < 128; ++i) out[i] = 0;
      largest[0] = largest[1] = kNone;
      total[0] = total[1] = 0;
      BarrierWait(barriers.QueriesFull(), queries_phase);
      queries_phase ^= 1;
      Scores(phase);
      for (int pair = piece.first; pair + 1 < piece.last; ++pair) Step<false>(kPage, phase);
      if (thread == 0) BarrierArrive(barriers.QueriesEmpty());
      Step<true>(piece.length - 2 * (piece.last - 1) * kPage, phase);
      phase ^= 1;
      Store(piece);
      if (!share.Next(&piece)) return;
    }
  }
};

template <bool kPair>
__global__ void __launch_bounds__(kThreads, 1)
    MlaDecodeKernel(const __grid_constant__ MlaDecodeArgs args) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = SharedAddress(shared);
  const Barriers barriers = {base + kBarriers};
  if (threadIdx.x == 0) {
    BarrierInit(barriers.QueriesFull(), 1);
    BarrierInit(barriers.QueriesEmpty(), 2);
    for (int page = 0; page < 2; ++page) {
      for (int tile = 0; tile < kTiles; ++tile) BarrierInit(barriers.Full(page, tile), 1);
      for (int section = 0; section < 3; ++section) {
        BarrierInit(barriers.Empty(page, section), kPair ? 2 : 1);
      }
    }
    FenceBarrierInit();
    PrefetchMap(&args.q);
    PrefetchMap(&args.cache);
  }
  StartAfterEarlier();
  Share share(args, blockIdx.y, reinterpret_cast<int*>(shared + kScan));  // synchronises
  if (kPair) ClusterSync();
  const int warpgroup = threadIdx.x / 128;
  if (warpgroup == 0) {
    GiveRegisters<40>();
    if (threadIdx.x < 32) Produce<kPair>(args, share, base, barriers);
    __syncwarp();
  } else {
    TakeRegisters<232>();
    const uint32_t place = base & 0x3ffff;
    const int thread = threadIdx.x % 128, lane = thread % 32, row = thread / 32 * 16 + lane / 4;
    if (warpgroup == 1) {
      Consumer<0, kPair> consumer{args, base, place, shared, barriers, thread, lane, row};
      consumer.Run(share);
    } else {
      Consumer<1, kPair> consumer{args, base, place, shared, barriers, thread, lane, row};
      consumer.Run(share);
    }
  }
  // The other block may still let TMA write here, and count towards barriers here.
  if (kPair) ClusterSync();
}

// A warp for each head of each token (kTogether: a block, its warps share the pieces): adds the
// pieces of those that have several.
template <bool kTogether>
__global__ void __launch_bounds__(256) CombineKernel(MlaDecodeArgs args, int groups) {
  __shared__ float4 sums[kTogether ? 8 : 1][kRank / 4];
  StartAfterEarlier();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t row = kTogether ? blockIdx.x : int64_t{blockIdx.x} * 8 + warp;
  const int token = static_cast<int>(row / args.heads), head = static_cast<int>(row % args.heads);
  const int2 pieces = args.pieces[token];
  if (pieces.y == 1) return;
  const auto at = [&](int piece) {
    const int64_t part = pieces.x + piece;
    return ((part * groups + head / kHeads) * 2 + (piece == 0)) * kHeads + head % kHeads;
  };
  float most = -INFINITY;
  for (int i = lane; i < pieces.y; i += 32) most = fmaxf(most, args.part_lse[at(i)]);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
  float total = 0;
  for (int i = lane; i < pieces.y; i += 32) total += Exp2(args.part_lse[at(i)] - most);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(~0u, total, step);
  float4 sum[4] = {};
#pragma unroll 2
  for (int i = kTogether ? warp : 0; i < pieces.y; i += kTogether ? 8 : 1) {
    const int64_t from = at(i);
    const float weight = Exp2(args.part_lse[from] - most);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float4 x = reinterpret_cast<const float4*>(args.part_out + from * kRank)[32 * c + lane];
      sum[c].x += weight * x.x;
      sum[c].y += weight * x.y;
      sum[c].z += weight * x.z;
      sum[c].w += weight * x.w;
    }
  }
  const auto store = [&](int at, float4 x) {
    const float inverse = 1 / total;
    reinterpret_cast<uint2*>(args.out + row * kRank)[at] =
        make_uint2(PackBf16(x.x * inverse, x.y * inverse), PackBf16(x.z * inverse, x.w * inverse));
  };
  if constexpr (kTogether) {
#pragma unroll
    for (int c = 0; c < 4; ++c) sums[warp][32 * c + lane] = sum[c];
    __syncthreads();
    if (threadIdx.x >= kRank / 4) return;
    float4 x = {};
    for (int w = 0; w < 8; ++w) {
      const float4 more = sums[w][threadIdx.x];
      x.x += more.x;
      x.y += more.y;
      x.z += more.z;
      x.w += more.w;
    }
    store(threadIdx.x, x);
  } else {
#pragma unroll
    for (int c = 0; c < 4; ++c) store(32 * c + lane, sum[c]);
  }
}

template <bool kPair>
cudaError_t LaunchCore(const MlaDecodeArgs& args, int groups, cudaStream_t stream) {
  const cudaError_t error = cudaFuncSetAttribute(
      MlaDecodeKernel<kPair>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  return LaunchEarly(MlaDecodeKernel<kPair>,
                     {dim3(groups, args.parts), kThreads, kSharedBytes, kPair ? 2 : 1}, stream,
                     args);
}

}  // namespace

cudaError_t LaunchMlaDecode(const MlaDecodeArgs& args, cudaStream_t stream) {
  if (args.tokens == 0) return cudaSuccess;
  const int groups = (args.heads + kHeads - 1) / kHeads;
  const cudaError_t error = groups == 2 ? LaunchCore<true>(args, groups, stream)
                                        : LaunchCore<false>(args, groups, stream);
  if (error != cudaSuccess) return error;
  const int rows = args.tokens * args.heads;
  constexpr int kFewRows = 1024;
  return rows <= kFewRows
             ? LaunchEarly(CombineKernel<true>, {dim3(rows), 256}, stream, args, groups)
             : LaunchEarly(CombineKernel<false>, {dim3(rows / 8), 256}, stream, args, groups);
}

}  // namespace sluice::cuda
