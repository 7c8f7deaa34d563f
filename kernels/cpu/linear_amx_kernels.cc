// Compiled with AMX-BF16, AVX512-BF16 and VBMI; the rules of kernels/cpu/simd/f32x16.h apply.
//
// out^T = w x^T, so that rows of w are rows of the first tile as they lie in memory, and only x has
// to be packed. A step is 32 columns; steps never cross the end of a chunk (a scale block of the
// whole matrix, or kChunk columns when there are no scales), so the last step of a chunk may be
// short: there both operands are filled up with zeros.
#include "kernels/cpu/linear_fast.h"
#include "kernels/cpu/simd/amx.h"
#include "kernels/cpu/simd/bf16_avx512.h"
#include "kernels/cpu/simd/math.h"
#include "kernels/cpu/simd/transpose_avx512.h"

namespace sluice {
namespace {

using namespace simd_avx512;

constexpr int kEdge = 16;         // rows of weights, or tokens, of a tile
constexpr int kStep = 32;         // columns of a tile
constexpr int kTileBytes = 1024;  // of every tile
constexpr int64_t kChunk = 512;
static_assert(kChunk >= kScaleBlockMax);
constexpr int kPanelSteps = 16;
static_assert(kPanelSteps * kStep >= kChunk);
constexpr int kRowsMax = 256;  // per task
constexpr int kRowsMin = 32;
constexpr int kTokensMax = 256;
constexpr int64_t kPackedBytesMax = 1 << 20;  // per task: what stays in the second-level cache
constexpr int64_t kPrefetchBytes = 512;       // a panel's share of a row of FP8
constexpr int kBlockTiles = 4;                // tiles of tokens that meet a tile of weights at once

struct Scratch {
  alignas(64) char panels[2][kPanelSteps * kTileBytes];  // widened weights: [step][row][column]
  // Sums of a row tile, of gate and up: [token / 16][row][token % 16].
  alignas(64) float totals[2][kEdge * kTokensMax];
  alignas(64) float sums[2][kBlockTiles * kEdge * kEdge];  // of one chunk, two blocks
};

inline int64_t Smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How columns are cut into chunks and steps.
struct Chunks {
  int64_t k;
  int64_t length;  // of a full chunk
  int64_t first;   // of the first one

  explicit Chunks(const WeightRows& w, int64_t k_in) : k(k_in), length(kChunk), first(kChunk) {
    if (w.scales != nullptr) {
      length = w.scale_block;
      first = length - w.col_begin % length;
    }
    first = Smaller(first, k);
  }
  int64_t count() const { return k == 0 ? 0 : 1 + CeilDiv(k - first, length); }
  int64_t Begin(int64_t chunk) const { return chunk == 0 ? 0 : first + (chunk - 1) * length; }
  int64_t End(int64_t chunk) const { return Smaller(first + chunk * length, k); }
  // Steps before the chunk.
  int64_t StepBegin(int64_t chunk) const {
    return chunk == 0 ? 0 : CeilDiv(first, kStep) + (chunk - 1) * CeilDiv(length, kStep);
  }
  int64_t Steps(int64_t chunk) const { return CeilDiv(End(chunk) - Begin(chunk), kStep); }
  int64_t steps() const { return k == 0 ? 0 : StepBegin(count() - 1) + Steps(count() - 1); }
};

// A packed group of 16 tokens is one tile per step: [column / 2][token][column % 2], bf16.
int64_t PackedBytes(const LinearTile& whole) {
  return Chunks(whole.w, whole.k).steps() * kTileBytes;
}

void Pack(const LinearTile& whole, int64_t group, char* packed) {
  const Chunks chunks(whole.w, whole.k);
  const int tokens = (int)Smaller(kEdge, whole.tokens - group * kEdge);
  const float* x = whole.x + group * kEdge * whole.x_stride;
  for (int64_t chunk = 0; chunk < chunks.count(); ++chunk) {
    const int64_t end = chunks.End(chunk);
    for (int64_t k = chunks.Begin(chunk); k < end; k += kStep, packed += kTileBytes) {
      const uint32_t mask = (uint32_t)First64(Smaller(kStep, end - k)).mask;
      __m512i pairs[kEdge];
      for (int t = 0; t < kEdge; ++t) pairs[t] = _mm512_setzero_si512();
      for (int t = 0; t < tokens; ++t) {
        const float* from = x + t * whole.x_stride + k;
        pairs[t] = RoundPair(_mm512_maskz_loadu_ps((__mmask16)mask, from),
                             _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), from + 16));
      }
      Transpose16x16(pairs);
      for (int pair = 0; pair < kEdge; ++pair) {
        _mm512_store_si512(packed + pair * 64, pairs[pair]);
      }
    }
  }
}

// A tile of weights, and up to kBlockTiles of tokens, over some steps. Tiles 0-3 hold sums, 4
// weights, 5-7 tokens.
struct Steps {
  const char* w;  // at the first step
  int64_t w_row;  // bytes between its rows, and between steps
  int64_t w_step;
  const char* x;   // the first tile of tokens at the first step
  int64_t x_tile;  // bytes between tiles of tokens
  int64_t count;
};

// sums[tile of tokens][row][token]
template <int kTiles>
inline void MultiplySteps(const Steps& steps, float* sums) {
  FinishStores();
  _tile_zero(0);
  if constexpr (kTiles > 1) _tile_zero(1);
  if constexpr (kTiles > 2) _tile_zero(2);
  if constexpr (kTiles > 3) _tile_zero(3);
  for (int64_t step = 0; step < steps.count; ++step) {
    const char* x = steps.x + step * kTileBytes;
    _tile_loadd(4, steps.w + step * steps.w_step, steps.w_row);
    _tile_loadd(5, x, 64);
    _tile_dpbf16ps(0, 4, 5);
    if constexpr (kTiles > 1) {
      _tile_loadd(6, x + steps.x_tile, 64);
      _tile_dpbf16ps(1, 4, 6);
    }
    if constexpr (kTiles > 2) {
      _tile_loadd(7, x + 2 * steps.x_tile, 64);
      _tile_dpbf16ps(2, 4, 7);
    }
    if constexpr (kTiles > 3) {
      _tile_loadd(5, x + 3 * steps.x_tile, 64);
      _tile_dpbf16ps(3, 4, 5);
    }
  }
  _tile_stored(0, sums, 64);
  if constexpr (kTiles > 1) _tile_stored(1, sums + 256, 64);
  if constexpr (kTiles > 2) _tile_stored(2, sums + 512, 64);
  if constexpr (kTiles > 3) _tile_stored(3, sums + 768, 64);
}

void MultiplySteps(int64_t tiles, const Steps& steps, float* sums) {
  switch (tiles) {
    case 1:
      return MultiplySteps<1>(steps, sums);
    case 2:
      return MultiplySteps<2>(steps, sums);
    case 3:
      return MultiplySteps<3>(steps, sums);
    default:
      return MultiplySteps<4>(steps, sums);
  }
}

inline int64_t TokenTiles(const LinearTile& tile) { return CeilDiv(tile.tokens, kEdge); }

// Up to kEdge rows of one weight matrix, to be multiplied with all tokens of the task. One tile of
// rows at a time: hardware prefetches 16 runs of memory well, but not 32.
struct Group {
  WeightRows w;
  int64_t rows;
  float* totals;
  int64_t index;   // kEdge * index is the first row in the task
  bool completes;  // the outputs of these rows can be written when it is done
};

inline Group GroupOf(const LinearTile& tile, const WeightRows& w, int64_t index, float* totals,
                     bool completes) {
  Group group{w, Smaller(kEdge, tile.rows - index * kEdge), totals, index, completes};
  const int64_t element = w.dtype == DType::kF32 ? 4 : w.dtype == DType::kF8E4M3 ? 1 : 2;
  group.w.data = (const char*)w.data + index * kEdge * w.stride * element;
  group.w.row_begin += index * kEdge;
  return group;
}

// bf16 weights in whole tiles: all columns at once, straight from the matrix.
bool MultipliesInPlace(const LinearTile& tile, const Group& group) {
  return group.w.dtype == DType::kBF16 && tile.k % kStep == 0 && group.rows == kEdge;
}
void MultiplyInPlace(const LinearTile& tile, const Group& group) {
  const int64_t tiles = TokenTiles(tile);
  for (int64_t first = 0; first < tiles; first += kBlockTiles) {
    const Steps steps{(const char*)group.w.data,
                      group.w.stride * 2,
                      kStep * 2,
                      tile.packed_x + first * tile.packed_group_bytes,
                      tile.packed_group_bytes,
                      tile.k / kStep};
    MultiplySteps(Smaller(kBlockTiles, tiles - first), steps, group.totals + first * kEdge * kEdge);
  }
}

// Some chunks of a group, on their way through one of the two panels.
struct Panel {
  Group group;
  int64_t chunk_begin, chunk_end;
  char* data;
};

// Rows [begin, end) of the panel.
template <typename W>
void WidenRows(const Chunks& chunks, const Panel& panel, int64_t begin, int64_t end) {
  const WeightRows& w = panel.group.w;
  for (int64_t row = begin; row < Smaller(end, panel.group.rows); ++row) {
    const auto* from = (const typename W::Element*)w.data + row * w.stride;
    char* to = panel.data + row * 64;
    for (int64_t chunk = panel.chunk_begin; chunk < panel.chunk_end; ++chunk) {
      const int64_t chunk_end = chunks.End(chunk);
      int64_t k = chunks.Begin(chunk);
      for (; k + 64 <= chunk_end; k += 64, to += 2 * kTileBytes) {
        _mm_prefetch((const char*)(from + k) + kPrefetchBytes, _MM_HINT_T0);
        const Bf16x64 widened = WidenTo64(W{}, from + k, All64{});
        _mm512_store_si512(to, widened.lo);
        _mm512_store_si512(to + kTileBytes, widened.hi);
      }
      if (k < chunk_end) {
        const Bf16x64 widened = WidenTo64(W{}, from + k, First64(chunk_end - k));
        _mm512_store_si512(to, widened.lo);
        to += kTileBytes;
        if (chunk_end - k > kStep) {
          _mm512_store_si512(to, widened.hi);
          to += kTileBytes;
        }
      }
    }
  }
}

void Widen(const Chunks& chunks, const Panel& panel, int64_t begin, int64_t end) {
  switch (panel.group.w.dtype) {
    case DType::kBF16:
      return WidenRows<Bf16Weights>(chunks, panel, begin, end);
    case DType::kF16:
      return WidenRows<F16Weights>(chunks, panel, begin, end);
    case DType::kF8E4M3:
      return WidenRows<F8Weights>(chunks, panel, begin, end);
    default:
      return WidenRows<F32Weights>(chunks, panel, begin, end);
  }
}

// The sums of some tiles of tokens over one chunk, not yet added to the totals.
struct Pending {
  Group group;
  int64_t chunk, first_tile, tiles;
};

// totals += sums times the scale of each row; = for the first chunk.
void AddSums(const Chunks& chunks, const Pending& pending, const float* sums) {
  const WeightRows& w = pending.group.w;
  __m512 scales[kEdge];
  for (int row = 0; row < kEdge; ++row) scales[row] = _mm512_set1_ps(1.0f);
  if (w.scales != nullptr) {
    const float* column = w.scales + (w.col_begin + chunks.Begin(pending.chunk)) / w.scale_block;
    int64_t scale_row = w.row_begin / w.scale_block;
    int64_t next_row = (scale_row + 1) * w.scale_block - w.row_begin;
    for (int row = 0; row < pending.group.rows; ++row) {
      if (row == next_row) {
        ++scale_row;
        next_row += w.scale_block;
      }
      scales[row] = _mm512_set1_ps(column[scale_row * w.scale_stride]);
    }
  }
  float* totals = pending.group.totals + pending.first_tile * kEdge * kEdge;
  for (int64_t tile = 0; tile < pending.tiles; ++tile, sums += 256, totals += 256) {
    for (int row = 0; row < kEdge; ++row) {
      const __m512 sum = _mm512_load_ps(sums + row * kEdge);
      float* total = totals + row * kEdge;
      _mm512_store_ps(total, pending.chunk == 0
                                 ? _mm512_mul_ps(sum, scales[row])
                                 : _mm512_fmadd_ps(sum, scales[row], _mm512_load_ps(total)));
    }
  }
}

// Writes the outputs of a group from the totals.
template <bool kGated>
void Store(const LinearTile& tile, int64_t group, Scratch& scratch) {
  const int rows = (int)Smaller(kEdge, tile.rows - group * kEdge);
  for (int64_t token = 0; token < tile.tokens; token += kEdge) {
    __m512i values[kEdge], ups[kEdge];  // one vector of rows per token, once transposed
    for (int i = 0; i < kEdge; ++i) {
      values[i] = _mm512_load_si512(scratch.totals[0] + (token + i) * kEdge);
      if (kGated) ups[i] = _mm512_load_si512(scratch.totals[1] + (token + i) * kEdge);
    }
    Transpose16x16(values);
    if (kGated) Transpose16x16(ups);
    const int tokens = (int)Smaller(kEdge, tile.tokens - token);
    for (int t = 0; t < tokens; ++t) {
      float* place = tile.out + (token + t) * tile.out_stride + group * kEdge;
      F32x16 value = FromBits(I32x16{values[t]});
      if (kGated) value = Silu(value) * FromBits(I32x16{ups[t]});
      if (!kGated && tile.accumulate) value = LoadN(place, rows) + value;
      StoreN(place, value, rows);
    }
  }
}

// Multiplies groups by way of panels, and stores what is complete. While the tiles multiply one
// panel, the vector units widen the next and add up the sums of the block before.
template <bool kGated>
class Pipeline {
 public:
  Pipeline(const LinearTile& tile, Scratch& scratch)
      : tile_(tile), chunks_(tile.w, tile.k), scratch_(scratch) {}

  void Add(const Group& group) {
    for (int64_t chunk = 0; chunk < chunks_.count();) {
      Panel panel{group, chunk, chunk, scratch_.panels[panel_index_]};
      panel_index_ ^= 1;
      int64_t steps = 0;
      while (chunk < chunks_.count() && steps + chunks_.Steps(chunk) <= kPanelSteps) {
        steps += chunks_.Steps(chunk++);
      }
      panel.chunk_end = chunk;
      if (has_widened_) {
        Multiply(&panel);
      } else {
        Widen(chunks_, panel, 0, kEdge);
      }
      widened_ = panel;
      has_widened_ = true;
    }
    if (chunks_.count() == 0) StoreZeros(group);
  }

  void Flush() {
    if (has_widened_) Multiply(nullptr);
    has_widened_ = false;
  }

 private:
  void StoreZeros(const Group& group) {
    for (int64_t i = 0; i < kEdge * TokenTiles(tile_) * kEdge; i += 16) {
      _mm512_store_ps(group.totals + i, _mm512_setzero_ps());
    }
    if (group.completes) Store<kGated>(tile_, group.index, scratch_);
  }

  // Multiplies the panel that is widened, widening `next`, if any, meanwhile.
  void Multiply(const Panel* next) {
    const Panel& now = widened_;
    const int64_t tiles = TokenTiles(tile_);
    const int64_t blocks = CeilDiv(tiles, kBlockTiles) * (now.chunk_end - now.chunk_begin);
    int64_t block = 0;
    Pending pending{};
    for (int64_t chunk = now.chunk_begin; chunk < now.chunk_end; ++chunk) {
      const int64_t step = chunks_.StepBegin(chunk);
      const char* w = now.data + (step - chunks_.StepBegin(now.chunk_begin)) * kTileBytes;
      for (int64_t first = 0; first < tiles; first += kBlockTiles, ++block) {
        const Steps steps{w,
                          64,
                          kTileBytes,
                          tile_.packed_x + first * tile_.packed_group_bytes + step * kTileBytes,
                          tile_.packed_group_bytes,
                          chunks_.Steps(chunk)};
        const int64_t block_tiles = Smaller(kBlockTiles, tiles - first);
        MultiplySteps(block_tiles, steps, scratch_.sums[block % 2]);
        if (block > 0) AddSums(chunks_, pending, scratch_.sums[(block + 1) % 2]);
        pending = {now.group, chunk, first, block_tiles};
        if (next != nullptr) {
          Widen(chunks_, *next, kEdge * block / blocks, kEdge * (block + 1) / blocks);
        }
      }
    }
    AddSums(chunks_, pending, scratch_.sums[(block + 1) % 2]);
    if (now.chunk_end == chunks_.count() && now.group.completes) {
      Store<kGated>(tile_, now.group.index, scratch_);
    }
  }

  const LinearTile& tile_;
  const Chunks chunks_;
  Scratch& scratch_;
  Panel widened_{};
  bool has_widened_ = false;
  int panel_index_ = 0;
};

template <bool kGated>
void Run(const LinearTile& tile, void* memory) {
  Scratch& scratch = *(Scratch*)memory;
  Pipeline<kGated> pipeline(tile, scratch);
  ConfigureTiles();
  for (int64_t index = 0; index * kEdge < tile.rows; ++index) {
    const Group group = GroupOf(tile, tile.w, index, scratch.totals[0], !kGated);
    const Group up = kGated ? GroupOf(tile, tile.up, index, scratch.totals[1], true) : group;
    // In place are all groups or all but the last.
    if (MultipliesInPlace(tile, group) && MultipliesInPlace(tile, up)) {
      MultiplyInPlace(tile, group);
      if (kGated) MultiplyInPlace(tile, up);
      Store<kGated>(tile, index, scratch);
    } else {
      pipeline.Add(group);
      if (kGated) pipeline.Add(up);
    }
  }
  pipeline.Flush();
  ReleaseTiles();
}

}  // namespace

const LinearKernels& GetAmxLinearKernels() {
  static constexpr LinearKernels kTable{
      .rows_max = kRowsMax,
      .rows_min = kRowsMin,
      .tokens_max = kTokensMax,
      .scratch_bytes = sizeof(Scratch),
      .linear = &Run<false>,
      .gated = &Run<true>,
      .pack_tokens = kEdge,
      .packed_bytes_max = kPackedBytesMax,
      .packed_bytes = &PackedBytes,
      .pack = &Pack,
  };
  return kTable;
}

}  // namespace sluice
