// Compiled with AMX-BF16, AVX512-BF16 and VBMI; the rules of kernels/cpu/simd/f32x16.h apply.
//
// out^T = w x^T, so that rows of w are rows of the first tile as they lie in memory, and only x has
// to be packed. A step is 32 columns; steps never cross the end of a chunk (a scale block of the
// whole matrix, or kChunk columns when there are no scales), so the last step of a chunk may be
// short: there both operands are filled up with zeros.
#include "kernels/cpu/linear_fast.h"
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
constexpr int kGroupTiles = 4;  // row tiles that are multiplied together
constexpr int kGroupRows = kGroupTiles * kEdge;
constexpr int kPanelSteps = 64;  // 256 KiB of widened weights
static_assert(kPanelSteps * kStep >= kChunk);
constexpr int kRowsMax = 4 * kGroupRows;  // per task
constexpr int kRowsMin = 32;
constexpr int kTokensMax = 256;
constexpr int64_t kPackedBytesMax = 1 << 20;  // per task: what stays in the second-level cache

struct Scratch {
  // Widened weights of a group: [row / 16][step][row % 16][column].
  alignas(64) char panels[2][kGroupTiles * kPanelSteps * kTileBytes];
  // Sums of a group, of gate and up: [row / 16][token / 16][row % 16][token % 16].
  alignas(64) float totals[2][kGroupRows * kTokensMax];
  alignas(64) float sums[2][4][kEdge * kEdge];  // of one chunk, two blocks of four tiles
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

// Tiles 0-3: sums; 4, 5: weights; 6, 7: tokens.
void ConfigureTiles() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = 16;
  }
  _tile_loadconfig(&config);
}

// The sums of a block of kRowTiles by kTokenTiles tiles (4 x 1 or 2 x 2 at most) over some steps.
// Tile (i, j) of the block goes to sums[i * kTokenTiles + j].
struct Steps {
  const char* w;  // of the first row tile at the first step
  int64_t w_row;  // bytes between its rows, steps and tiles
  int64_t w_step;
  int64_t w_tile;
  const char* x;  // of the first token tile at the first step
  int64_t x_tile;
  int64_t count;
};

template <int kRowTiles, int kTokenTiles>
inline void MultiplySteps(const Steps& steps, float* const* sums) {
  static_assert(kTokenTiles == 1 ? kRowTiles <= 4 : kRowTiles <= 2);
  _tile_zero(0);
  if constexpr (kRowTiles * kTokenTiles > 1) _tile_zero(1);
  if constexpr (kRowTiles * kTokenTiles > 2) _tile_zero(2);
  if constexpr (kRowTiles * kTokenTiles > 3) _tile_zero(3);
  for (int64_t step = 0; step < steps.count; ++step) {
    const char* w = steps.w + step * steps.w_step;
    const char* x = steps.x + step * kTileBytes;
    _tile_loadd(6, x, 64);
    _tile_loadd(4, w, steps.w_row);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kTokenTiles == 2) {
      _tile_loadd(7, x + steps.x_tile, 64);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (kRowTiles > 1) {
        _tile_loadd(5, w + steps.w_tile, steps.w_row);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    } else {
      if constexpr (kRowTiles > 1) {
        _tile_loadd(5, w + steps.w_tile, steps.w_row);
        _tile_dpbf16ps(1, 5, 6);
      }
      if constexpr (kRowTiles > 2) {
        _tile_loadd(4, w + 2 * steps.w_tile, steps.w_row);
        _tile_dpbf16ps(2, 4, 6);
      }
      if constexpr (kRowTiles > 3) {
        _tile_loadd(5, w + 3 * steps.w_tile, steps.w_row);
        _tile_dpbf16ps(3, 5, 6);
      }
    }
  }
  _tile_stored(0, sums[0], 64);
  if constexpr (kRowTiles * kTokenTiles > 1) _tile_stored(1, sums[1], 64);
  if constexpr (kRowTiles * kTokenTiles > 2) _tile_stored(2, sums[2], 64);
  if constexpr (kRowTiles * kTokenTiles > 3) _tile_stored(3, sums[3], 64);
}

// A block of tiles; its shape decides how operands are reused.
struct Block {
  int64_t row_tile, token_tile;
  int row_tiles, token_tiles;
  int tiles() const { return row_tiles * token_tiles; }
};

void MultiplySteps(const Block& block, const Steps& steps, float* const* sums) {
  switch (block.row_tiles * 2 + block.token_tiles - 1) {
    case 2:
      return MultiplySteps<1, 1>(steps, sums);
    case 3:
      return MultiplySteps<1, 2>(steps, sums);
    case 4:
      return MultiplySteps<2, 1>(steps, sums);
    case 5:
      return MultiplySteps<2, 2>(steps, sums);
    case 6:
      return MultiplySteps<3, 1>(steps, sums);
    default:
      return MultiplySteps<4, 1>(steps, sums);
  }
}

// Calls fn(block) for the blocks that cover all tiles.
template <typename Fn>
inline void ForEachBlock(int64_t row_tiles, int64_t token_tiles, Fn fn) {
  const int rows = token_tiles == 1 ? 4 : 2, tokens = token_tiles == 1 ? 1 : 2;
  for (int64_t row = 0; row < row_tiles; row += rows) {
    for (int64_t token = 0; token < token_tiles; token += tokens) {
      fn(Block{row, token, (int)Smaller(rows, row_tiles - row),
               (int)Smaller(tokens, token_tiles - token)});
    }
  }
}
inline int64_t BlockCount(int64_t row_tiles, int64_t token_tiles) {
  return token_tiles == 1 ? CeilDiv(row_tiles, 4) : CeilDiv(row_tiles, 2) * CeilDiv(token_tiles, 2);
}

// Up to kGroupRows rows of one weight matrix times all tokens of the task.
struct Group {
  WeightRows w;
  int64_t rows;
  float* totals;
};

inline int64_t TokenTiles(const LinearTile& tile) { return CeilDiv(tile.tokens, kEdge); }

// Where the totals of each tile of a block are.
inline void FindTotals(const LinearTile& tile, float* totals, const Block& block, float** places) {
  for (int i = 0; i < block.tiles(); ++i) {
    const int64_t row_tile = block.row_tile + i / block.token_tiles;
    const int64_t token_tile = block.token_tile + i % block.token_tiles;
    places[i] = totals + (row_tile * TokenTiles(tile) + token_tile) * kEdge * kEdge;
  }
}

// The group `index` of a matrix.
inline Group GroupOf(const LinearTile& tile, const WeightRows& w, int64_t index, float* totals) {
  Group group{w, Smaller(kGroupRows, tile.rows - index * kGroupRows), totals};
  const int64_t element = w.dtype == DType::kF32 ? 4 : w.dtype == DType::kF8E4M3 ? 1 : 2;
  group.w.data = (const char*)w.data + index * kGroupRows * w.stride * element;
  group.w.row_begin += index * kGroupRows;
  return group;
}

// bf16 weights in whole tiles: all columns at once, straight from the matrix.
bool MultipliesInPlace(const LinearTile& tile, const Group& group) {
  return group.w.dtype == DType::kBF16 && tile.k % kStep == 0 && group.rows % kEdge == 0;
}
void MultiplyInPlace(const LinearTile& tile, const Group& group) {
  const int64_t row_bytes = group.w.stride * 2;
  ForEachBlock(group.rows / kEdge, TokenTiles(tile), [&](const Block& block) {
    const Steps steps{(const char*)group.w.data + block.row_tile * kEdge * row_bytes,
                      row_bytes,
                      2 * kStep,
                      kEdge * row_bytes,
                      tile.packed_x + block.token_tile * tile.packed_group_bytes,
                      tile.packed_group_bytes,
                      tile.k / kStep};
    float* sums[4];
    FindTotals(tile, group.totals, block, sums);
    MultiplySteps(block, steps, sums);
  });
}

// Some chunks of a group, on their way through one of the two panels.
struct Panel {
  Group group;
  int64_t chunk_begin, chunk_end;
  char* data;
};

inline void StorePanel(Bf16x64 widened, const Panel& panel, int64_t tile, int64_t step, int64_t row,
                       int steps) {
  char* to = panel.data + (tile * kPanelSteps + step) * kTileBytes + row * 64;
  _mm512_store_si512(to, widened.lo);
  if (steps == 2) _mm512_store_si512(to + kTileBytes, widened.hi);
}

// Widens parts [begin, end) of kEdge parts of the panel: part i has the i-th row of each row tile.
// Each row tile is then a long run of memory to read: hardware prefetches few runs, but those well.
template <typename W>
void WidenParts(const Chunks& chunks, const Panel& panel, int64_t begin, int64_t end) {
  const WeightRows& w = panel.group.w;
  const auto* weights = (const typename W::Element*)w.data;
  for (int64_t part = begin; part < end; ++part) {
    const int64_t tiles = CeilDiv(panel.group.rows - part, kEdge);
    int64_t step = 0;
    for (int64_t chunk = panel.chunk_begin; chunk < panel.chunk_end; ++chunk) {
      const int64_t chunk_end = chunks.End(chunk);
      int64_t k = chunks.Begin(chunk);
      for (; k + 64 <= chunk_end; k += 64, step += 2) {
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const auto* from = weights + (tile * kEdge + part) * w.stride + k;
          StorePanel(WidenTo64(W{}, from, All64{}), panel, tile, step, part, 2);
        }
      }
      if (k < chunk_end) {
        const int steps = (int)CeilDiv(chunk_end - k, kStep);
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const auto* from = weights + (tile * kEdge + part) * w.stride + k;
          StorePanel(WidenTo64(W{}, from, First64(chunk_end - k)), panel, tile, step, part, steps);
        }
        step += steps;
      }
    }
  }
}

void Widen(const Chunks& chunks, const Panel& panel, int64_t begin, int64_t end) {
  switch (panel.group.w.dtype) {
    case DType::kBF16:
      return WidenParts<Bf16Weights>(chunks, panel, begin, end);
    case DType::kF16:
      return WidenParts<F16Weights>(chunks, panel, begin, end);
    case DType::kF8E4M3:
      return WidenParts<F8Weights>(chunks, panel, begin, end);
    default:
      return WidenParts<F32Weights>(chunks, panel, begin, end);
  }
}

// The sums of one block over one chunk, not yet added to the totals.
struct Pending {
  Group group;
  Block block;
  int64_t chunk;
};

// totals += sums times the scale of each row; = for the first chunk.
void AddSums(const LinearTile& tile, const Chunks& chunks, const Pending& pending,
             float (*sums)[kEdge * kEdge]) {
  const WeightRows& w = pending.group.w;
  const bool scaled = w.scales != nullptr;
  const int64_t scale_column =
      scaled ? (w.col_begin + chunks.Begin(pending.chunk)) / w.scale_block : 0;
  float* totals[4];
  FindTotals(tile, pending.group.totals, pending.block, totals);
  for (int i = 0; i < pending.block.tiles(); ++i) {
    const int64_t first_row =
        w.row_begin + (pending.block.row_tile + i / pending.block.token_tiles) * kEdge;
    // A row tile touches few scale rows, mostly one; rows beyond the last are never stored.
    const int64_t last_row = Smaller(first_row + kEdge, w.row_begin + pending.group.rows) - 1;
    int64_t scale_row = scaled ? first_row / w.scale_block : 0;
    int64_t next_change = scaled ? (scale_row + 1) * w.scale_block - first_row : kEdge;
    __m512 scale =
        _mm512_set1_ps(scaled ? w.scales[scale_row * w.scale_stride + scale_column] : 1.0f);
    for (int row = 0; row < kEdge; ++row) {
      if (row == next_change && first_row + row <= last_row) {
        ++scale_row;
        next_change += w.scale_block;
        scale = _mm512_set1_ps(w.scales[scale_row * w.scale_stride + scale_column]);
      }
      const __m512 sum = _mm512_load_ps(sums[i] + row * kEdge);
      float* total = totals[i] + row * kEdge;
      _mm512_store_ps(total, pending.chunk == 0
                                 ? _mm512_mul_ps(sum, scale)
                                 : _mm512_fmadd_ps(sum, scale, _mm512_load_ps(total)));
    }
  }
}

// Multiplies groups by way of panels. While the tiles multiply one panel, the vector units widen
// the next and add up the sums of the block before.
class Pipeline {
 public:
  Pipeline(const LinearTile& tile, Scratch& scratch)
      : tile_(tile), chunks_(tile.w, tile.k), scratch_(scratch) {}

  // The group's totals are complete after the next Add or Flush, and untouched until then.
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
    if (chunks_.count() == 0) Clear(group);
  }

  void Flush() {
    if (has_widened_) Multiply(nullptr);
    has_widened_ = false;
  }

 private:
  void Clear(const Group& group) {
    for (int64_t i = 0; i < kGroupRows * TokenTiles(tile_) * kEdge; i += 16) {
      _mm512_store_ps(group.totals + i, _mm512_setzero_ps());
    }
  }

  // Multiplies the panel that is widened, widening `next`, if any, meanwhile.
  void Multiply(const Panel* next) {
    const Panel& now = widened_;
    const int64_t row_tiles = CeilDiv(now.group.rows, kEdge), token_tiles = TokenTiles(tile_);
    const int64_t blocks = BlockCount(row_tiles, token_tiles) * (now.chunk_end - now.chunk_begin);
    int64_t index = 0;
    Pending pending{};
    for (int64_t chunk = now.chunk_begin; chunk < now.chunk_end; ++chunk) {
      const int64_t step = chunks_.StepBegin(chunk);
      const char* w = now.data + (step - chunks_.StepBegin(now.chunk_begin)) * kTileBytes;
      const char* x = tile_.packed_x + step * kTileBytes;
      ForEachBlock(row_tiles, token_tiles, [&](const Block& block) {
        const Steps steps{w + block.row_tile * kPanelSteps * kTileBytes,
                          64,
                          kTileBytes,
                          kPanelSteps * kTileBytes,
                          x + block.token_tile * tile_.packed_group_bytes,
                          tile_.packed_group_bytes,
                          chunks_.Steps(chunk)};
        float* sums[4];
        for (int i = 0; i < 4; ++i) sums[i] = scratch_.sums[index % 2][i];
        MultiplySteps(block, steps, sums);
        if (index > 0) AddSums(tile_, chunks_, pending, scratch_.sums[(index + 1) % 2]);
        pending = {now.group, block, chunk};
        if (next != nullptr) {
          Widen(chunks_, *next, kEdge * index / blocks, kEdge * (index + 1) / blocks);
        }
        ++index;
      });
    }
    AddSums(tile_, chunks_, pending, scratch_.sums[(index + 1) % 2]);
  }

  const LinearTile& tile_;
  const Chunks chunks_;
  Scratch& scratch_;
  Panel widened_{};
  bool has_widened_ = false;
  int panel_index_ = 0;
};

// Writes the outputs of a group from the totals.
template <bool kGated>
void Store(const LinearTile& tile, int64_t group, Scratch& scratch) {
  const int64_t rows = Smaller(kGroupRows, tile.rows - group * kGroupRows);
  for (int64_t row = 0; row < rows; row += kEdge) {
    const int row_count = (int)Smaller(kEdge, rows - row);
    for (int64_t token = 0; token < tile.tokens; token += kEdge) {
      const int64_t at = (row / kEdge * TokenTiles(tile) + token / kEdge) * kEdge * kEdge;
      __m512i values[kEdge], ups[kEdge];  // one vector of rows per token, once transposed
      for (int i = 0; i < kEdge; ++i) {
        values[i] = _mm512_load_si512(scratch.totals[0] + at + i * kEdge);
        if (kGated) ups[i] = _mm512_load_si512(scratch.totals[1] + at + i * kEdge);
      }
      Transpose16x16(values);
      if (kGated) Transpose16x16(ups);
      const int token_count = (int)Smaller(kEdge, tile.tokens - token);
      for (int t = 0; t < token_count; ++t) {
        float* place = tile.out + (token + t) * tile.out_stride + group * kGroupRows + row;
        F32x16 value = FromBits(I32x16{values[t]});
        if (kGated) value = Silu(value) * FromBits(I32x16{ups[t]});
        if (!kGated && tile.accumulate) value = LoadN(place, row_count) + value;
        StoreN(place, value, row_count);
      }
    }
  }
}

template <bool kGated>
void Run(const LinearTile& tile, void* memory) {
  Scratch& scratch = *(Scratch*)memory;
  Pipeline pipeline(tile, scratch);
  int64_t unfinished = -1;  // the group whose outputs are still to be written
  ConfigureTiles();
  for (int64_t index = 0; index * kGroupRows < tile.rows; ++index) {
    const Group group = GroupOf(tile, tile.w, index, scratch.totals[0]);
    const Group up = kGated ? GroupOf(tile, tile.up, index, scratch.totals[1]) : group;
    // In place are all groups or all but the last.
    if (MultipliesInPlace(tile, group) && MultipliesInPlace(tile, up)) {
      MultiplyInPlace(tile, group);
      if (kGated) MultiplyInPlace(tile, up);
      Store<kGated>(tile, index, scratch);
      continue;
    }
    pipeline.Add(group);
    if (unfinished >= 0) Store<kGated>(tile, unfinished, scratch);
    if (kGated) pipeline.Add(up);
    unfinished = index;
  }
  pipeline.Flush();
  if (unfinished >= 0) Store<kGated>(tile, unfinished, scratch);
  _tile_release();
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
