// Compiled once per instruction set; see kernels/cpu/simd/f32x16.h.
#include "kernels/cpu/linear_exact.h"
#include "kernels/cpu/simd/math.h"

namespace sluice {
namespace SLUICE_SIMD {
namespace {

constexpr int kTileRows = 64;
constexpr int kTileTokens = 32;
constexpr int64_t kPanel = 512;  // inputs widened at a time; holds at least one scale block
static_assert(kPanel >= kScaleBlockMax);

// Widened weights, running totals, two tiles of results.
constexpr int64_t kScratchFloats =
    kTileRows * kPanel + kTileRows * kTileTokens * 16 + 2 * kTileRows * kTileTokens;

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
struct F8 {
  uint8_t bits;
};

inline F32x16 Widen(const float* p) { return Load(p); }
inline F32x16 Widen(const Bf16* p) { return LoadBf16(&p->bits); }
inline F32x16 Widen(const F16* p) { return LoadF16(&p->bits); }
inline F32x16 Widen(const F8* p) { return LoadF8(&p->bits); }
inline F32x16 WidenN(const float* p, int n) { return LoadN(p, n); }
inline F32x16 WidenN(const Bf16* p, int n) { return LoadBf16N(&p->bits, n); }
inline F32x16 WidenN(const F16* p, int n) { return LoadF16N(&p->bits, n); }
inline F32x16 WidenN(const F8* p, int n) { return LoadF8N(&p->bits, n); }

// Registers decide how many rows of w and of x are multiplied at a time.
#if defined(__AVX512F__)
constexpr int kTokensMax = 4;
constexpr int RowsAtOnce(int tokens) { return tokens == 1 ? 8 : 4; }
#else
constexpr int kTokensMax = 3;
constexpr int RowsAtOnce(int tokens) { return tokens == 1 ? 4 : 2; }
#endif

inline int64_t Smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Where in the whole matrix a run of columns lies, for its scales. block 0: no scales.
struct ScaleColumns {
  int64_t block;
  int64_t begin;
};

// total[n][t] gains the products of `length` columns of kRows rows of w and kTokens rows of x.
template <typename W, int kRows, int kTokens>
inline void Dot(const W* w, int64_t w_stride, const float* x, int64_t x_stride, int64_t length,
                const float* const* scale_rows, ScaleColumns scale_columns,
                F32x16 (&total)[kRows][kTokens]) {
  const bool scaled = scale_columns.block != 0;
  int64_t k = 0;
  while (k < length) {
    int64_t chunk_end = length;
    F32x16 sum[kRows][kTokens];
    if (scaled) {
      const int64_t column = scale_columns.begin + k;
      chunk_end = Smaller(length, k + scale_columns.block - column % scale_columns.block);
    }
    for (int n = 0; n < kRows; ++n) {
      for (int t = 0; t < kTokens; ++t) sum[n][t] = scaled ? Zero() : total[n][t];
    }
    const int64_t chunk_begin = k;
    for (; k + 16 <= chunk_end; k += 16) {
      F32x16 xs[kTokens];
      for (int t = 0; t < kTokens; ++t) xs[t] = Load(x + t * x_stride + k);
      for (int n = 0; n < kRows; ++n) {
        const F32x16 weights = Widen(w + n * w_stride + k);
        for (int t = 0; t < kTokens; ++t) sum[n][t] = MulAdd(weights, xs[t], sum[n][t]);
      }
    }
    if (k < chunk_end) {
      const int rest = (int)(chunk_end - k);
      for (int n = 0; n < kRows; ++n) {
        const F32x16 weights = WidenN(w + n * w_stride + k, rest);
        for (int t = 0; t < kTokens; ++t) {
          sum[n][t] = MulAdd(weights, LoadN(x + t * x_stride + k, rest), sum[n][t]);
        }
      }
      k = chunk_end;
    }
    for (int n = 0; n < kRows; ++n) {
      if (scaled) {
        const int64_t block = (scale_columns.begin + chunk_begin) / scale_columns.block;
        const F32x16 scale = Set1(scale_rows[n][block]);
        for (int t = 0; t < kTokens; ++t) total[n][t] = MulAdd(sum[n][t], scale, total[n][t]);
      } else {
        for (int t = 0; t < kTokens; ++t) total[n][t] = sum[n][t];
      }
    }
  }
}

struct Target {
  float* out;
  int64_t stride;
  bool accumulate;
  void Put(int64_t token, int64_t row, float value) const {
    float* place = out + token * stride + row;
    *place = accumulate ? *place + value : value;
  }
};

// The scale row of each row of the tile.
inline void FindScaleRows(const WeightRows& w, int64_t rows, const float** scale_rows) {
  for (int64_t n = 0; n < rows; ++n) {
    scale_rows[n] = w.scales == nullptr
                        ? nullptr
                        : w.scales + (w.row_begin + n) / w.scale_block * w.scale_stride;
  }
}

// Few tokens: weights go from memory through registers, once. The kRows rows that are multiplied at
// a time lie apart, so that each is the head of a long run of memory: hardware prefetches runs, not
// the beginnings of rows. Returns the first row that is left.
template <typename W, int kRows, int kTokens>
inline int64_t DirectRows(const LinearTile& tile, const WeightRows& w,
                          const float* const* scale_rows, int64_t row_begin, Target target) {
  const ScaleColumns columns{w.scales == nullptr ? 0 : w.scale_block, w.col_begin};
  const int64_t spacing = (tile.rows - row_begin) / kRows;
  for (int64_t i = 0; i < spacing; ++i) {
    const float* rows_scales[kRows];
    F32x16 total[kRows][kTokens];
    for (int n = 0; n < kRows; ++n) {
      rows_scales[n] = scale_rows[row_begin + n * spacing + i];
      for (int t = 0; t < kTokens; ++t) total[n][t] = Zero();
    }
    Dot((const W*)w.data + (row_begin + i) * w.stride, spacing * w.stride, tile.x, tile.x_stride,
        tile.k, rows_scales, columns, total);
    for (int n = 0; n < kRows; ++n) {
      for (int t = 0; t < kTokens; ++t) {
        target.Put(t, row_begin + n * spacing + i, Sum(total[n][t]));
      }
    }
  }
  return row_begin + kRows * spacing;
}

template <typename W, int kTokens>
void Direct(const LinearTile& tile, const WeightRows& w, Target target) {
  const float* scale_rows[kTileRows];
  FindScaleRows(w, tile.rows, scale_rows);
  const int64_t row = DirectRows<W, RowsAtOnce(kTokens), kTokens>(tile, w, scale_rows, 0, target);
  DirectRows<W, 1, kTokens>(tile, w, scale_rows, row, target);
}

// Many tokens: a panel of weights is widened once and meets all of them; the totals wait in memory.
template <int kRows, int kTokens>
inline void PanelBlock(const float* w, const float* x, int64_t x_stride, int64_t length,
                       const float* const* scale_rows, ScaleColumns columns, float* totals) {
  F32x16 total[kRows][kTokens];
  float* place[kRows][kTokens];
  for (int n = 0; n < kRows; ++n) {
    for (int t = 0; t < kTokens; ++t) {
      place[n][t] = totals + (n * kTileTokens + t) * 16;
      total[n][t] = Load(place[n][t]);
    }
  }
  Dot(w, kPanel, x, x_stride, length, scale_rows, columns, total);
  for (int n = 0; n < kRows; ++n) {
    for (int t = 0; t < kTokens; ++t) Store(place[n][t], total[n][t]);
  }
}

template <int kRows>
void PanelRows(const LinearTile& tile, const float* w, int64_t k, int64_t length,
               const float* const* scale_rows, ScaleColumns columns, float* totals) {
  const float* x = tile.x + k;
  int64_t t = 0;
  for (; t + kTokensMax <= tile.tokens; t += kTokensMax) {
    PanelBlock<kRows, kTokensMax>(w, x + t * tile.x_stride, tile.x_stride, length, scale_rows,
                                  columns, totals + t * 16);
  }
  for (; t < tile.tokens; ++t) {
    PanelBlock<kRows, 1>(w, x + t * tile.x_stride, tile.x_stride, length, scale_rows, columns,
                         totals + t * 16);
  }
}

template <typename W>
void WidenPanel(const WeightRows& w, int64_t rows, int64_t k, int64_t length, float* panel) {
  for (int64_t n = 0; n < rows; ++n) {
    const W* from = (const W*)w.data + n * w.stride + k;
    float* to = panel + n * kPanel;
    int64_t i = 0;
    for (; i + 16 <= length; i += 16) Store(to + i, Widen(from + i));
    if (i < length) StoreN(to + i, WidenN(from + i, (int)(length - i)), (int)(length - i));
  }
}

template <typename W>
void Panels(const LinearTile& tile, const WeightRows& w, Target target, float* scratch) {
  constexpr int kRows = RowsAtOnce(kTokensMax);
  float* panel = scratch;
  float* totals = scratch + kTileRows * kPanel;
  const float* scale_rows[kTileRows];
  FindScaleRows(w, tile.rows, scale_rows);
  for (int64_t n = 0; n < tile.rows; ++n) {
    for (int64_t t = 0; t < tile.tokens; ++t) {
      Store(totals + (n * kTileTokens + t) * 16, Zero());
    }
  }
  for (int64_t k = 0; k < tile.k;) {
    ScaleColumns columns{0, w.col_begin + k};
    int64_t end = k + kPanel;
    if (w.scales != nullptr) {
      columns.block = w.scale_block;
      // Panels end where scale blocks of the whole matrix do.
      end = (w.col_begin + end) / w.scale_block * w.scale_block - w.col_begin;
    }
    const int64_t length = Smaller(end, tile.k) - k;
    WidenPanel<W>(w, tile.rows, k, length, panel);
    int64_t n = 0;
    for (; n + kRows <= tile.rows; n += kRows) {
      PanelRows<kRows>(tile, panel + n * kPanel, k, length, scale_rows + n, columns,
                       totals + n * kTileTokens * 16);
    }
    for (; n < tile.rows; ++n) {
      PanelRows<1>(tile, panel + n * kPanel, k, length, scale_rows + n, columns,
                   totals + n * kTileTokens * 16);
    }
    k += length;
  }
  for (int64_t t = 0; t < tile.tokens; ++t) {
    for (int64_t n = 0; n < tile.rows; ++n) {
      target.Put(t, n, Sum(Load(totals + (n * kTileTokens + t) * 16)));
    }
  }
}

template <typename W>
void Multiply(const LinearTile& tile, const WeightRows& w, Target target, float* scratch) {
  switch (tile.tokens) {
    case 1:
      return Direct<W, 1>(tile, w, target);
    case 2:
      return Direct<W, 2>(tile, w, target);
    case 3:
      return Direct<W, 3>(tile, w, target);
    default:
      return Panels<W>(tile, w, target, scratch);
  }
}

void MultiplyAny(const LinearTile& tile, const WeightRows& w, Target target, float* scratch) {
  switch (w.dtype) {
    case DType::kBF16:
      return Multiply<Bf16>(tile, w, target, scratch);
    case DType::kF16:
      return Multiply<F16>(tile, w, target, scratch);
    case DType::kF8E4M3:
      return Multiply<F8>(tile, w, target, scratch);
    default:
      return Multiply<float>(tile, w, target, scratch);
  }
}

void Linear(const LinearTile& tile, void* scratch) {
  MultiplyAny(tile, tile.w, Target{tile.out, tile.out_stride, tile.accumulate}, (float*)scratch);
}

void Gated(const LinearTile& tile, void* memory) {
  float* scratch = (float*)memory;
  float* gate = scratch + kScratchFloats - 2 * kTileRows * kTileTokens;
  float* up = gate + kTileRows * kTileTokens;
  MultiplyAny(tile, tile.w, Target{gate, kTileRows, false}, scratch);
  MultiplyAny(tile, tile.up, Target{up, kTileRows, false}, scratch);
  for (int64_t t = 0; t < tile.tokens; ++t) {
    for (int64_t n = 0; n < tile.rows; n += 16) {
      const int lanes = (int)Smaller(16, tile.rows - n);
      const F32x16 product =
          Silu(LoadN(gate + t * kTileRows + n, lanes)) * LoadN(up + t * kTileRows + n, lanes);
      StoreN(tile.out + t * tile.out_stride + n, product, lanes);
    }
  }
}

}  // namespace

const LinearKernels& GetExactLinearKernels() {
  static constexpr LinearKernels kTable{
      .rows_max = kTileRows,
      .rows_min = kTileRows,
      .tokens_max = kTileTokens,
      .scratch_bytes = kScratchFloats * 4,
      .linear = &Linear,
      .gated = &Gated,
  };
  return kTable;
}

}  // namespace SLUICE_SIMD
}  // namespace sluice
