// Compiled with AVX512-BF16 and VBMI; the rules of kernels/cpu/simd/f32x16.h apply.
#include "kernels/cpu/linear_fast.h"
#include "kernels/cpu/simd/bf16_avx512.h"
#include "kernels/cpu/simd/math.h"

namespace sluice {
namespace {

using namespace simd_avx512;

constexpr int kTileRows = 64;
constexpr int kTileTokens = 32;
constexpr int kTokensAtOnce = 4;
constexpr int64_t kPanel = 512;  // inputs widened at a time when there are many tokens
static_assert(kPanel >= kScaleBlockMax);

struct Scratch {
  alignas(64) uint16_t panel[kTileRows * kPanel];
  alignas(64) float totals[kTileRows * kTileTokens * 16];
  alignas(64) float gate[kTileRows * kTileTokens];
  alignas(64) float up[kTileRows * kTileTokens];
};

inline int64_t Smaller(int64_t a, int64_t b) { return a < b ? a : b; }

constexpr int RowsAtOnce(int tokens) { return tokens == 1 ? 8 : 4; }

// A packed token: its k values in bf16, then zeros, so that 64 may be read from any of them.
int64_t PackedBytes(const LinearTile& whole) { return ((whole.k + 63) / 64 + 1) * 128; }

void Pack(const LinearTile& whole, int64_t token, char* packed) {
  const float* x = whole.x + token * whole.x_stride;
  for (int64_t k = 0; k < whole.k + 64; k += 64) {
    const Bf16x64 rounded = WidenTo64(F32Weights{}, x + k, First64(k < whole.k ? whole.k - k : 0));
    _mm512_storeu_si512(packed + k * 2, rounded.lo);
    _mm512_storeu_si512(packed + k * 2 + 64, rounded.hi);
  }
}

inline __m512 DotBf16(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

// sum[n][t] gains the products of up to 64 columns.
template <typename W, int kRows, int kTokens, typename Which>
inline void Step(const typename W::Element* w, int64_t w_stride, const char* x, int64_t x_stride,
                 Which which, __m512 (&sum)[kRows][kTokens]) {
  __m512i lo[kTokens], hi[kTokens];
  for (int t = 0; t < kTokens; ++t) {
    lo[t] = _mm512_loadu_si512(x + t * x_stride);
    hi[t] = _mm512_loadu_si512(x + t * x_stride + 64);
  }
  for (int n = 0; n < kRows; ++n) {
    const Bf16x64 weights = WidenTo64(W{}, w + n * w_stride, which);
    for (int t = 0; t < kTokens; ++t) sum[n][t] = DotBf16(sum[n][t], weights.lo, lo[t]);
    for (int t = 0; t < kTokens; ++t) sum[n][t] = DotBf16(sum[n][t], weights.hi, hi[t]);
  }
}

// total[n][t] gains the products of `length` columns of kRows rows of w and kTokens rows of x.
template <typename W, int kRows, int kTokens>
inline void Dot(const typename W::Element* w, int64_t w_stride, const char* x, int64_t x_stride,
                int64_t length, const float* const* scale_rows, int64_t scale_block, int64_t column,
                __m512 (&total)[kRows][kTokens]) {
  int64_t k = 0;
  while (k < length) {
    const bool scaled = scale_block != 0;
    const int64_t chunk_end =
        scaled ? Smaller(length, k + scale_block - (column + k) % scale_block) : length;
    const int64_t block = scaled ? (column + k) / scale_block : 0;
    __m512 sum[kRows][kTokens];
    for (int n = 0; n < kRows; ++n) {
      for (int t = 0; t < kTokens; ++t) sum[n][t] = scaled ? _mm512_setzero_ps() : total[n][t];
    }
    for (; k + 64 <= chunk_end; k += 64) {
      Step<W>(w + k, w_stride, x + k * 2, x_stride, All64{}, sum);
    }
    if (k < chunk_end) {
      Step<W>(w + k, w_stride, x + k * 2, x_stride, First64(chunk_end - k), sum);
    }
    k = chunk_end;
    for (int n = 0; n < kRows; ++n) {
      const __m512 scale = _mm512_set1_ps(scaled ? scale_rows[n][block] : 1.0f);
      for (int t = 0; t < kTokens; ++t) {
        total[n][t] = scaled ? _mm512_fmadd_ps(sum[n][t], scale, total[n][t]) : sum[n][t];
      }
    }
  }
}

struct Target {
  float* out;
  int64_t stride;
  bool accumulate;
  void Put(int64_t token, int64_t row, __m512 sums) const {
    float* place = out + token * stride + row;
    const float value = Sum(F32x16{sums});
    *place = accumulate ? *place + value : value;
  }
};

inline void FindScaleRows(const WeightRows& w, int64_t rows, const float** scale_rows) {
  for (int64_t n = 0; n < rows; ++n) {
    scale_rows[n] = w.scales == nullptr
                        ? nullptr
                        : w.scales + (w.row_begin + n) / w.scale_block * w.scale_stride;
  }
}

inline int64_t ScaleBlock(const WeightRows& w) { return w.scales == nullptr ? 0 : w.scale_block; }

// Few tokens: weights go from memory through registers, once. The kRows rows that are multiplied at
// a time lie apart, so that each is the head of a long run of memory: hardware prefetches runs, not
// the beginnings of rows. Returns the first row that is left.
template <typename W, int kRows, int kTokens>
inline int64_t DirectRows(const LinearTile& tile, const WeightRows& w,
                          const float* const* scale_rows, int64_t row_begin, Target target) {
  const int64_t spacing = (tile.rows - row_begin) / kRows;
  for (int64_t i = 0; i < spacing; ++i) {
    const float* rows_scales[kRows];
    __m512 total[kRows][kTokens];
    for (int n = 0; n < kRows; ++n) {
      rows_scales[n] = scale_rows[row_begin + n * spacing + i];
      for (int t = 0; t < kTokens; ++t) total[n][t] = _mm512_setzero_ps();
    }
    Dot<W>((const typename W::Element*)w.data + (row_begin + i) * w.stride, spacing * w.stride,
           tile.packed_x, tile.packed_group_bytes, tile.k, rows_scales, ScaleBlock(w), w.col_begin,
           total);
    for (int n = 0; n < kRows; ++n) {
      for (int t = 0; t < kTokens; ++t) {
        target.Put(t, row_begin + n * spacing + i, total[n][t]);
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

// Many tokens: a panel of weights becomes bf16 once and meets all of them.
template <int kRows, int kTokens>
inline void PanelBlock(const LinearTile& tile, const uint16_t* panel, int64_t token, int64_t k,
                       int64_t length, const float* const* scale_rows, int64_t scale_block,
                       int64_t column, float* totals) {
  __m512 total[kRows][kTokens];
  for (int n = 0; n < kRows; ++n) {
    for (int t = 0; t < kTokens; ++t) {
      total[n][t] = _mm512_load_ps(totals + (n * kTileTokens + token + t) * 16);
    }
  }
  Dot<Bf16Weights>(panel, kPanel, tile.packed_x + token * tile.packed_group_bytes + k * 2,
                   tile.packed_group_bytes, length, scale_rows, scale_block, column, total);
  for (int n = 0; n < kRows; ++n) {
    for (int t = 0; t < kTokens; ++t) {
      _mm512_store_ps(totals + (n * kTileTokens + token + t) * 16, total[n][t]);
    }
  }
}

template <int kRows>
void PanelRows(const LinearTile& tile, const uint16_t* panel, int64_t k, int64_t length,
               const float* const* scale_rows, int64_t scale_block, int64_t column, float* totals) {
  int64_t t = 0;
  for (; t + kTokensAtOnce <= tile.tokens; t += kTokensAtOnce) {
    PanelBlock<kRows, kTokensAtOnce>(tile, panel, t, k, length, scale_rows, scale_block, column,
                                     totals);
  }
  for (; t < tile.tokens; ++t) {
    PanelBlock<kRows, 1>(tile, panel, t, k, length, scale_rows, scale_block, column, totals);
  }
}

template <typename W>
void Panels(const LinearTile& tile, const WeightRows& w, Target target, Scratch& scratch) {
  const float* scale_rows[kTileRows];
  FindScaleRows(w, tile.rows, scale_rows);
  for (int64_t n = 0; n < tile.rows; ++n) {
    for (int64_t t = 0; t < tile.tokens; ++t) {
      _mm512_store_ps(scratch.totals + (n * kTileTokens + t) * 16, _mm512_setzero_ps());
    }
  }
  const int64_t block = ScaleBlock(w);
  for (int64_t k = 0; k < tile.k;) {
    int64_t end = k + kPanel;
    // Panels end where scale blocks of the whole matrix do.
    if (block != 0) end = (w.col_begin + end) / block * block - w.col_begin;
    const int64_t length = Smaller(end, tile.k) - k;
    for (int64_t n = 0; n < tile.rows; ++n) {
      const auto* from = (const typename W::Element*)w.data + n * w.stride + k;
      for (int64_t i = 0; i < length; i += 64) {
        const Bf16x64 weights = WidenTo64(W{}, from + i, First64(length - i));
        _mm512_store_si512(scratch.panel + n * kPanel + i, weights.lo);
        _mm512_store_si512(scratch.panel + n * kPanel + i + 32, weights.hi);
      }
    }
    constexpr int kRows = RowsAtOnce(kTokensAtOnce);
    int64_t n = 0;
    for (; n + kRows <= tile.rows; n += kRows) {
      PanelRows<kRows>(tile, scratch.panel + n * kPanel, k, length, scale_rows + n, block,
                       w.col_begin + k, scratch.totals + n * kTileTokens * 16);
    }
    for (; n < tile.rows; ++n) {
      PanelRows<1>(tile, scratch.panel + n * kPanel, k, length, scale_rows + n, block,
                   w.col_begin + k, scratch.totals + n * kTileTokens * 16);
    }
    k += length;
  }
  for (int64_t t = 0; t < tile.tokens; ++t) {
    for (int64_t n = 0; n < tile.rows; ++n) {
      target.Put(t, n, _mm512_load_ps(scratch.totals + (n * kTileTokens + t) * 16));
    }
  }
}

template <typename W>
void Multiply(const LinearTile& tile, const WeightRows& w, Target target, Scratch& scratch) {
  if constexpr (W::kExact) {
    switch (tile.tokens) {
      case 1:
        return Direct<W, 1>(tile, w, target);
      case 2:
        return Direct<W, 2>(tile, w, target);
      case 3:
        return Direct<W, 3>(tile, w, target);
      case 4:
        return Direct<W, 4>(tile, w, target);
      default:
        break;
    }
  }
  Panels<W>(tile, w, target, scratch);
}

void MultiplyAny(const LinearTile& tile, const WeightRows& w, Target target, Scratch& scratch) {
  switch (w.dtype) {
    case DType::kBF16:
      return Multiply<Bf16Weights>(tile, w, target, scratch);
    case DType::kF16:
      return Multiply<F16Weights>(tile, w, target, scratch);
    case DType::kF8E4M3:
      return Multiply<F8Weights>(tile, w, target, scratch);
    default:
      return Multiply<F32Weights>(tile, w, target, scratch);
  }
}

void Linear(const LinearTile& tile, void* memory) {
  MultiplyAny(tile, tile.w, Target{tile.out, tile.out_stride, tile.accumulate}, *(Scratch*)memory);
}

void Gated(const LinearTile& tile, void* memory) {
  Scratch& scratch = *(Scratch*)memory;
  MultiplyAny(tile, tile.w, Target{scratch.gate, kTileRows, false}, scratch);
  MultiplyAny(tile, tile.up, Target{scratch.up, kTileRows, false}, scratch);
  for (int64_t t = 0; t < tile.tokens; ++t) {
    for (int64_t n = 0; n < tile.rows; n += 16) {
      const int lanes = (int)Smaller(16, tile.rows - n);
      const F32x16 product = Silu(LoadN(scratch.gate + t * kTileRows + n, lanes)) *
                             LoadN(scratch.up + t * kTileRows + n, lanes);
      StoreN(tile.out + t * tile.out_stride + n, product, lanes);
    }
  }
}

}  // namespace

const LinearKernels& GetBf16LinearKernels() {
  static constexpr LinearKernels kTable{
      .rows_max = kTileRows,
      .rows_min = kTileRows,
      .tokens_max = kTileTokens,
      .scratch_bytes = sizeof(Scratch),
      .linear = &Linear,
      .gated = &Gated,
      .pack_tokens = 1,
      .packed_bytes = &PackedBytes,
      .pack = &Pack,
  };
  return kTable;
}

}  // namespace sluice
