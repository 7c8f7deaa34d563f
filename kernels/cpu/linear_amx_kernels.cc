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
constexpr int kChunkSteps = kChunk / kStep;
constexpr int kRowsMax = 256;  // rows of weights per task
constexpr int kTokensMax = 256;
constexpr int kRowsMin = 32;
// Up to so many tokens, bf16 weights go from where they lie into tiles, and are read once.
constexpr int kDirectTokensMax = 32;

struct Scratch {
  // Widened weights of one chunk: [row / 16][step][row % 16][column].
  alignas(64) char panel[kRowsMax / kEdge * kChunkSteps * kTileBytes];
  // Sums: [row / 16][token / 16][row % 16][token % 16].
  alignas(64) float totals[kRowsMax * kTokensMax];
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
      const uint32_t mask = (uint32_t)FirstOf64(Smaller(kStep, end - k));
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

// Calls fn(block) for blocks that cover the row tiles [row_begin, row_end) and all token tiles.
template <typename Fn>
inline void ForEachBlock(int64_t row_begin, int64_t row_end, int64_t token_tiles, Fn fn) {
  const int rows = token_tiles == 1 ? 4 : 2, tokens = token_tiles == 1 ? 1 : 2;
  for (int64_t row = row_begin; row < row_end; row += rows) {
    for (int64_t token = 0; token < token_tiles; token += tokens) {
      fn(Block{row, token, (int)Smaller(rows, row_end - row),
               (int)Smaller(tokens, token_tiles - token)});
    }
  }
}

// The rows of one weight matrix that a task multiplies with its tokens, into totals.
struct Job {
  const LinearTile& tile;
  const WeightRows& w;
  float* totals;
  Scratch& scratch;

  int64_t row_tiles() const { return CeilDiv(tile.rows, kEdge); }
  int64_t token_tiles() const { return CeilDiv(tile.tokens, kEdge); }
  float* TotalsOf(int64_t row_tile, int64_t token_tile) const {
    return totals + (row_tile * token_tiles() + token_tile) * kEdge * kEdge;
  }
  void FindTotals(const Block& block, float** places) const {
    for (int i = 0; i < block.tiles(); ++i) {
      places[i] = TotalsOf(block.row_tile + i / block.token_tiles,
                           block.token_tile + i % block.token_tiles);
    }
  }
};

// Whole row tiles of bf16 weights, all columns at once; whole steps, at most two token tiles.
// Returns the number of row tiles done.
int64_t MultiplyInPlace(const Job& job) {
  const LinearTile& tile = job.tile;
  const int64_t row_bytes = job.w.stride * 2;
  const int64_t whole_tiles = tile.rows / kEdge;
  ForEachBlock(0, whole_tiles, job.token_tiles(), [&](const Block& block) {
    const char* w = (const char*)job.w.data + block.row_tile * kEdge * row_bytes;
    const Steps steps{w,
                      row_bytes,
                      64,
                      kEdge * row_bytes,
                      tile.packed_x,
                      tile.packed_group_bytes,
                      tile.k / kStep};
    float* sums[4];
    job.FindTotals(block, sums);
    MultiplySteps(block, steps, sums);
  });
  return whole_tiles;
}

// The weights of one chunk, as bf16 tiles.
template <typename W>
void WidenChunk(const WeightRows& w, int64_t row_begin, int64_t row_end, int64_t begin,
                int64_t length, char* panel) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const auto* from = (const typename W::Element*)w.data + row * w.stride + begin;
    char* to = panel + row / kEdge * kChunkSteps * kTileBytes + row % kEdge * 64;
    for (int64_t k = 0; k < length; k += 64, to += 2 * kTileBytes) {
      const Bf16x64 widened = WidenTo64(W{}, from + k, FirstOf64(length - k));
      _mm512_store_si512(to, widened.lo);
      if (length - k > kStep) _mm512_store_si512(to + kTileBytes, widened.hi);
    }
  }
}

void WidenAny(const WeightRows& w, int64_t row_begin, int64_t row_end, int64_t begin,
              int64_t length, char* panel) {
  switch (w.dtype) {
    case DType::kBF16:
      return WidenChunk<Bf16Weights>(w, row_begin, row_end, begin, length, panel);
    case DType::kF16:
      return WidenChunk<F16Weights>(w, row_begin, row_end, begin, length, panel);
    case DType::kF8E4M3:
      return WidenChunk<F8Weights>(w, row_begin, row_end, begin, length, panel);
    default:
      return WidenChunk<F32Weights>(w, row_begin, row_end, begin, length, panel);
  }
}

// totals += the sums of a chunk times the scale of each row; = for the first chunk.
void AddChunk(const Job& job, int64_t begin, const Block& block, float (*sums)[kEdge * kEdge]) {
  const WeightRows& w = job.w;
  const int64_t scale_column = w.scales == nullptr ? 0 : (w.col_begin + begin) / w.scale_block;
  float* totals[4];
  job.FindTotals(block, totals);
  for (int i = 0; i < block.tiles(); ++i) {
    const int64_t first_row = (block.row_tile + i / block.token_tiles) * kEdge;
    for (int row = 0; row < kEdge; ++row) {
      __m512 scale = _mm512_set1_ps(1.0f);
      if (w.scales != nullptr) {
        // Rows beyond the last of the tile are never stored: any scale will do.
        const int64_t r = w.row_begin + Smaller(first_row + row, job.tile.rows - 1);
        scale = _mm512_set1_ps(w.scales[r / w.scale_block * w.scale_stride + scale_column]);
      }
      const __m512 sum = _mm512_load_ps(sums[i] + row * kEdge);
      float* total = totals[i] + row * kEdge;
      _mm512_store_ps(total, begin == 0 ? _mm512_mul_ps(sum, scale)
                                        : _mm512_fmadd_ps(sum, scale, _mm512_load_ps(total)));
    }
  }
}

// Row tiles from `first_row_tile` on, chunk by chunk through the panel.
void MultiplyWidened(const Job& job, int64_t first_row_tile) {
  const LinearTile& tile = job.tile;
  const Chunks chunks(job.w, tile.k);
  for (int64_t chunk = 0; chunk < chunks.count(); ++chunk) {
    const int64_t begin = chunks.Begin(chunk);
    WidenAny(job.w, first_row_tile * kEdge, tile.rows, begin, chunks.End(chunk) - begin,
             job.scratch.panel);
    const char* x = tile.packed_x + chunks.StepBegin(chunk) * kTileBytes;
    const bool direct = begin == 0 && job.w.scales == nullptr;
    // The sums of a block are added while the tiles multiply the next one.
    Block before{};
    int buffer = 0;
    ForEachBlock(first_row_tile, job.row_tiles(), job.token_tiles(), [&](const Block& block) {
      const Steps steps{job.scratch.panel + block.row_tile * kChunkSteps * kTileBytes,
                        64,
                        kTileBytes,
                        kChunkSteps * kTileBytes,
                        x + block.token_tile * tile.packed_group_bytes,
                        tile.packed_group_bytes,
                        chunks.Steps(chunk)};
      float* sums[4];
      if (direct) {
        job.FindTotals(block, sums);
        return MultiplySteps(block, steps, sums);
      }
      for (int i = 0; i < 4; ++i) sums[i] = job.scratch.sums[buffer][i];
      MultiplySteps(block, steps, sums);
      buffer ^= 1;
      if (before.row_tiles != 0) AddChunk(job, begin, before, job.scratch.sums[buffer]);
      before = block;
    });
    if (before.row_tiles != 0) AddChunk(job, begin, before, job.scratch.sums[buffer ^ 1]);
  }
}

void Multiply(const Job& job) {
  const LinearTile& tile = job.tile;
  int64_t done = 0;
  if (job.w.dtype == DType::kBF16 && tile.tokens <= kDirectTokensMax && tile.k % kStep == 0) {
    done = MultiplyInPlace(job);
  }
  if (done < job.row_tiles()) MultiplyWidened(job, done);
}

// Loads a tile of totals, turned: one vector of 16 rows per token.
inline void LoadTurned(const float* totals, __m512i (&tokens)[kEdge]) {
  for (int row = 0; row < kEdge; ++row) tokens[row] = _mm512_load_si512(totals + row * kEdge);
  Transpose16x16(tokens);
}

template <typename Store>
void ForEachTile(const Job& job, Store store) {
  for (int64_t row_tile = 0; row_tile < job.row_tiles(); ++row_tile) {
    for (int64_t token_tile = 0; token_tile < job.token_tiles(); ++token_tile) {
      store(job.TotalsOf(row_tile, token_tile), row_tile * kEdge, token_tile * kEdge);
    }
  }
}

void Linear(const LinearTile& tile, void* memory) {
  Scratch& scratch = *(Scratch*)memory;
  const Job job{tile, tile.w, scratch.totals, scratch};
  ConfigureTiles();
  Multiply(job);
  _tile_release();
  ForEachTile(job, [&](const float* totals, int64_t row, int64_t token) {
    __m512i values[kEdge];
    LoadTurned(totals, values);
    const int rows = (int)Smaller(kEdge, tile.rows - row);
    const int tokens = (int)Smaller(kEdge, tile.tokens - token);
    for (int t = 0; t < tokens; ++t) {
      float* place = tile.out + (token + t) * tile.out_stride + row;
      F32x16 value = FromBits(I32x16{values[t]});
      if (tile.accumulate) value = LoadN(place, rows) + value;
      StoreN(place, value, rows);
    }
  });
}

void Gated(const LinearTile& tile, void* memory) {
  Scratch& scratch = *(Scratch*)memory;
  const Job gate{tile, tile.w, scratch.totals, scratch};
  const Job up{tile, tile.up, scratch.totals + kRowsMax * kTokensMax / 2, scratch};
  ConfigureTiles();
  Multiply(gate);
  Multiply(up);
  _tile_release();
  ForEachTile(gate, [&](const float* totals, int64_t row, int64_t token) {
    __m512i gates[kEdge], ups[kEdge];
    LoadTurned(totals, gates);
    LoadTurned(up.totals + (totals - gate.totals), ups);
    const int rows = (int)Smaller(kEdge, tile.rows - row);
    const int tokens = (int)Smaller(kEdge, tile.tokens - token);
    for (int t = 0; t < tokens; ++t) {
      const F32x16 product = Silu(FromBits(I32x16{gates[t]})) * FromBits(I32x16{ups[t]});
      StoreN(tile.out + (token + t) * tile.out_stride + row, product, rows);
    }
  });
}

}  // namespace

const LinearKernels& GetAmxLinearKernels() {
  static constexpr LinearKernels kTable{kRowsMax,        kRowsMax / 2, kRowsMin,     kTokensMax,
                                        sizeof(Scratch), kEdge,        &PackedBytes, &Pack,
                                        &Linear,         &Gated};
  return kTable;
}

}  // namespace sluice
