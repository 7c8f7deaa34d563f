// Tiles of matrix products as dot products along k, for every arithmetic that works that way. To be
// included by kernels compiled per instruction set only (kernels/cpu/simd/f32x16.h).
//
// Arithmetic A provides
//   kTokensMax, RowsAtOnce(tokens)   what registers hold: at most 16 dot products
//   Panel                            the weight type that others are widened to, for many tokens
//   kXBytes                          bytes of x per column
//   X(tile), XStride(tile)           where x is (or its packed form), and bytes between tokens
//   kDirect<W>                       weights W need no widening when tokens are few
//   Widen(W, from, length, to)       turns weights into Panel's elements
//   Multiply(W, w, w_stride, x, x_stride, length, sum)
//                                    sum[n][t] += products of row n of w and token t of x, lane by
//                                    lane, in an order that depends on length alone
#pragma once

#include "kernels/cpu/linear_tile.h"
#include "kernels/cpu/simd/math.h"

namespace sluice {
namespace SLUICE_SIMD {

template <int kRows, int kTokens>
static SLUICE_SIMD_INLINE void CopyBlock(const F32x16 (&from)[kRows][kTokens],
                                         F32x16 (&to)[kRows][kTokens]) {
  for (int n = 0; n < kRows; ++n) {
    for (int t = 0; t < kTokens; ++t) to[n][t] = from[n][t];
  }
}

template <typename A>
struct DotProducts {
  static constexpr int kTileRows = 64;
  static constexpr int kTileTokens = 32;
  // Columns widened at a time: kPanel, or the scale blocks that fit into it, but at least one.
  static constexpr int64_t kPanel = 256, kPanelMax = 512;
  static_assert(kPanelMax >= kScaleBlockMax);
  static constexpr int kPanelRows = A::RowsAtOnce(A::kTokensMax);

  struct Scratch {
    alignas(64) typename A::Panel::Element panel[kPanelRows * kPanelMax];
    alignas(64) float totals[kTileRows * kTileTokens * 16];
    alignas(64) float gate[kTileRows * kTileTokens];
    alignas(64) float up[kTileRows * kTileTokens];
  };

  static inline int64_t Smaller(int64_t a, int64_t b) { return a < b ? a : b; }

  // Where results go.
  struct Target {
    float* out;
    int64_t stride;
    bool accumulate;
  };

  // target[t][n * row_stride] = the horizontal sum of totals[n][t].
  template <int kRows, int kTokens>
  static SLUICE_SIMD_INLINE void PutSums(const F32x16 (&totals)[kRows][kTokens], Target target,
                                         int64_t row_stride) {
    static_assert(kRows * kTokens <= 16);
    F32x16 lanes[16];
    for (int i = 0; i < 16; ++i) {
      lanes[i] = i < kRows * kTokens ? totals[i % kRows][i / kRows] : Zero();
    }
    float sums[16];
    Store(sums, SumEach(lanes));
    for (int t = 0; t < kTokens; ++t) {
      for (int n = 0; n < kRows; ++n) {
        float* place = target.out + t * target.stride + n * row_stride;
        *place = target.accumulate ? *place + sums[t * kRows + n] : sums[t * kRows + n];
        // Keeps the compiler from scattering vectors, which is slower.
        __asm__ volatile("" ::: "memory");
      }
    }
  }

  // Where in the whole matrix a run of columns lies, for its scales. block 0: no scales.
  struct ScaleColumns {
    int64_t block;
    int64_t begin;
  };

  // total[n][t] gains the products of `length` columns of kRows rows of w and kTokens rows of x:
  // chunk by chunk, where there are scales.
  template <typename W, int kRows, int kTokens>
  static SLUICE_SIMD_INLINE void Dot(const typename W::Element* w, int64_t w_stride, const char* x,
                                     int64_t x_stride, int64_t length,
                                     const float* const* scale_rows, ScaleColumns columns,
                                     F32x16 (&total)[kRows][kTokens]) {
    if (columns.block == 0) {
      return A::Multiply(W{}, w, w_stride, x, x_stride, length, total);
    }
    for (int64_t k = 0; k < length;) {
      const int64_t block = (columns.begin + k) / columns.block;
      const int64_t end = Smaller(length, (block + 1) * columns.block - columns.begin);
      F32x16 sum[kRows][kTokens];
      for (int n = 0; n < kRows; ++n) {
        for (int t = 0; t < kTokens; ++t) sum[n][t] = Zero();
      }
      A::Multiply(W{}, w + k, w_stride, x + k * A::kXBytes, x_stride, end - k, sum);
      for (int n = 0; n < kRows; ++n) {
        const F32x16 scale = Set1(scale_rows[n][block]);
        for (int t = 0; t < kTokens; ++t) total[n][t] = MulAdd(sum[n][t], scale, total[n][t]);
      }
      k = end;
    }
  }

  // Few tokens: weights go from memory through registers, once. The kRows rows that are multiplied
  // at a time lie apart, so that each is the head of a long run of memory: hardware prefetches
  // runs, not the beginnings of rows. Returns the first row that is left.
  template <typename W, int kRows, int kTokens>
  static inline int64_t DirectRows(const LinearTile& tile, const WeightRows& w,
                                   const float* const* scale_rows, int64_t row_begin,
                                   Target target) {
    const ScaleColumns columns{w.scales == nullptr ? 0 : w.scale_block, w.col_begin};
    const int64_t spacing = (tile.rows - row_begin) / kRows;
    for (int64_t row = row_begin; row < row_begin + spacing; ++row) {
      const float* scales[kRows];
      F32x16 total[kRows][kTokens];
      for (int n = 0; n < kRows; ++n) {
        scales[n] = scale_rows[row + n * spacing];
        for (int t = 0; t < kTokens; ++t) total[n][t] = Zero();
      }
      Dot<W>((const typename W::Element*)w.data + row * w.stride, spacing * w.stride, A::X(tile),
             A::XStride(tile), tile.k, scales, columns, total);
      PutSums(total, Target{target.out + row, target.stride, target.accumulate}, spacing);
    }
    return row_begin + kRows * spacing;
  }

  template <typename W, int kTokens>
  static void Direct(const LinearTile& tile, const WeightRows& w, const float* const* scale_rows,
                     Target target) {
    constexpr int kRows = A::RowsAtOnce(kTokens);
    const int64_t row = DirectRows<W, kRows, kTokens>(tile, w, scale_rows, 0, target);
    DirectRows<W, 1, kTokens>(tile, w, scale_rows, row, target);
  }

  // Many tokens: a panel of a few rows is widened into the first-level cache and meets all of them.
  // Totals wait in memory from panel to panel.
  struct PanelColumns {
    ScaleColumns scales;
    int64_t begin, length;
    bool first, last;
  };

  template <int kRows, int kTokens>
  static inline void PanelBlock(const LinearTile& tile, const typename A::Panel::Element* panel,
                                const float* const* scale_rows, const PanelColumns& columns,
                                int64_t token, float* totals, Target target) {
    F32x16 total[kRows][kTokens];
    for (int n = 0; n < kRows; ++n) {
      for (int t = 0; t < kTokens; ++t) {
        total[n][t] = columns.first ? Zero() : Load(totals + (n * kTileTokens + token + t) * 16);
      }
    }
    Dot<typename A::Panel>(panel, kPanelMax,
                           A::X(tile) + token * A::XStride(tile) + columns.begin * A::kXBytes,
                           A::XStride(tile), columns.length, scale_rows, columns.scales, total);
    if (columns.last) {
      const Target place{target.out + token * target.stride, target.stride, target.accumulate};
      return PutSums(total, place, 1);
    }
    for (int n = 0; n < kRows; ++n) {
      for (int t = 0; t < kTokens; ++t) {
        Store(totals + (n * kTileTokens + token + t) * 16, total[n][t]);
      }
    }
  }

  template <typename W, int kRows>
  static inline int64_t PanelRows(const LinearTile& tile, const WeightRows& w, Scratch& scratch,
                                  const float* const* scale_rows, const PanelColumns& columns,
                                  int64_t row, Target target) {
    for (; row + kRows <= tile.rows; row += kRows) {
      for (int n = 0; n < kRows; ++n) {
        const auto* from = (const typename W::Element*)w.data + (row + n) * w.stride;
        A::Widen(W{}, from + columns.begin, columns.length, scratch.panel + n * kPanelMax);
      }
      float* totals = scratch.totals + row * kTileTokens * 16;
      const Target place{target.out + row, target.stride, target.accumulate};
      int64_t t = 0;
      for (; t + A::kTokensMax <= tile.tokens; t += A::kTokensMax) {
        PanelBlock<kRows, A::kTokensMax>(tile, scratch.panel, scale_rows + row, columns, t, totals,
                                         place);
      }
      for (; t < tile.tokens; ++t) {
        PanelBlock<kRows, 1>(tile, scratch.panel, scale_rows + row, columns, t, totals, place);
      }
    }
    return row;
  }

  template <typename W>
  static void Panels(const LinearTile& tile, const WeightRows& w, const float* const* scale_rows,
                     Target target, Scratch& scratch) {
    PanelColumns columns{{w.scales == nullptr ? 0 : w.scale_block, w.col_begin}, 0, 0, true, false};
    do {
      columns.length = kPanel;
      if (w.scales != nullptr) {
        // Panels end where scale blocks of the whole matrix do.
        const int64_t at = w.col_begin + columns.begin;
        const int64_t end = (at + kPanel) / w.scale_block * w.scale_block;
        columns.length = (end > at ? end : (at / w.scale_block + 1) * w.scale_block) - at;
      }
      columns.length = Smaller(columns.length, tile.k - columns.begin);
      columns.last = columns.begin + columns.length == tile.k;
      const int64_t row =
          PanelRows<W, kPanelRows>(tile, w, scratch, scale_rows, columns, 0, target);
      PanelRows<W, 1>(tile, w, scratch, scale_rows, columns, row, target);
      columns.begin += columns.length;
      columns.scales.begin += columns.length;
      columns.first = false;
    } while (!columns.last);
  }

  template <typename W>
  static void Multiply(const LinearTile& tile, const WeightRows& w, Target target,
                       Scratch& scratch) {
    const float* scale_rows[kTileRows];
    for (int64_t n = 0; n < tile.rows; ++n) {
      scale_rows[n] = w.scales == nullptr
                          ? nullptr
                          : w.scales + (w.row_begin + n) / w.scale_block * w.scale_stride;
    }
    if constexpr (A::template kDirect<W>) {
      if (tile.tokens == 1) return Direct<W, 1>(tile, w, scale_rows, target);
      if (tile.tokens == 2) return Direct<W, 2>(tile, w, scale_rows, target);
      if (tile.tokens == 3) return Direct<W, 3>(tile, w, scale_rows, target);
      if constexpr (A::kTokensMax >= 4) {
        if (tile.tokens == 4) return Direct<W, 4>(tile, w, scale_rows, target);
      }
    }
    Panels<W>(tile, w, scale_rows, target, scratch);
  }

  static void MultiplyAny(const LinearTile& tile, const WeightRows& w, Target target,
                          Scratch& scratch) {
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

  static void Linear(const LinearTile& tile, void* scratch) {
    MultiplyAny(tile, tile.w, Target{tile.out, tile.out_stride, tile.accumulate},
                *(Scratch*)scratch);
  }

  static void Gated(const LinearTile& tile, void* memory) {
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
};

}  // namespace SLUICE_SIMD
}  // namespace sluice
