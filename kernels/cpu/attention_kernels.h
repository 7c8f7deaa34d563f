// The inner loops of attention, one table per instruction set; all give the same bits, and each
// output element's bits depend on its own inputs alone (not on how many rows a call has). Plain
// pointers and integers only: see kernels/cpu/simd/f32x16.h.
#pragma once

#include <stdint.h>

#include "kernels/cpu/simd/dispatch.h"

namespace sluice {

struct AttentionKernels {
  // out[i][j] = a[i] . b[j], i < rows_a, j < rows_b: 16 sums over every 16th element, added up in
  // the order of Sum().
  void (*dot_rows)(const float* a, int64_t stride_a, int64_t rows_a, const float* b,
                   int64_t stride_b, int64_t rows_b, int64_t n, float* out, int64_t stride_out);
  // out[i][c] += sum over r of w[i][r] * b[r][c], r rising, each product added with one rounding;
  // c < n.
  void (*accumulate_rows)(const float* w, int64_t stride_w, int64_t rows_w, const float* b,
                          int64_t stride_b, int64_t rows_b, int64_t n, float* out,
                          int64_t stride_out);
  // One page of the running softmax of a row. scores[0, 64): on entry `count` dot products, on
  // return exp(scale * score - largest so far), 0 from count on. Updates the largest and the sum;
  // returns the factor by which everything summed so far shrinks.
  float (*softmax_page)(float* scores, int count, float scale, float* largest, float* sum);
  // x *= factor.
  void (*scale)(float* x, int64_t n, float factor);
};

SLUICE_DECLARE_KERNELS(AttentionKernels, GetAttentionKernels);

}  // namespace sluice
