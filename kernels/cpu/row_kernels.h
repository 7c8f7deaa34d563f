// Work on single rows, one table per instruction set; all give the same bits. Plain pointers and
// integers only: see kernels/cpu/simd/f32x16.h.
#pragma once

#include <stdint.h>

#include "kernels/base/tensor_view.h"
#include "kernels/cpu/simd/dispatch.h"

namespace sluice {

struct RowKernels {
  // out = x widened to f32; F8 is also multiplied by `scale`.
  void (*widen_bf16)(const uint16_t* x, int64_t n, float* out);
  void (*widen_f16)(const uint16_t* x, int64_t n, float* out);
  void (*widen_f8)(const uint8_t* x, int64_t n, float scale, float* out);
  // out = x rounded to bf16.
  void (*narrow_bf16)(const float* x, int64_t n, uint16_t* out);
  // out = x * rsqrt(mean(x^2) + eps) * weight; out may be x.
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float eps, float* out);
  // (x[2i], x[2i + 1]) turned by the angle with the given cosine and sine; out may be x.
  void (*rope)(const float* x, const float* cos, const float* sin, int64_t pairs, float* out);
  // out += (sum over k of weights[k] * rows[pair_rows[k] * stride ...]) + shared. Pairs with row -1
  // are left out; shared may be null.
  void (*combine)(const float* rows, int64_t stride, const int32_t* pair_rows, const float* weights,
                  int64_t top_k, const float* shared, int64_t n, float* out);
  void (*sigmoid)(const float* x, int64_t n, float* out);
  void (*softmax)(const float* x, int64_t n, float* out);
};

SLUICE_DECLARE_KERNELS(RowKernels, GetRowKernels);

// Row `row` of a weight as f32: the row itself if it is stored so, else widened into `scratch`
// (weight.cols floats).
const float* WidenWeightRow(const RowKernels& kernels, const WeightView& weight, int64_t row,
                            float* scratch);

// Rows [begin, begin + count) as f32, `stride` floats apart: in place, or widened into `scratch`
// (count * weight.cols floats).
struct WeightPanel {
  const float* rows;
  int64_t stride;
};
WeightPanel WidenWeightRows(const RowKernels& kernels, const WeightView& weight, int64_t begin,
                            int64_t count, float* scratch);

// All rows as bf16: in place, or rounded into `scratch` (as many elements as the weight has) by way
// of `wide_row` (weight.cols floats).
struct Bf16Rows {
  const uint16_t* rows;
  int64_t stride;
};
Bf16Rows RoundWeight(const RowKernels& kernels, const WeightView& weight, float* wide_row,
                     uint16_t* scratch);

// How many rows to widen at a time, so that they stay in the first cache.
inline constexpr int64_t kWeightPanelRows = 16;

}  // namespace sluice
