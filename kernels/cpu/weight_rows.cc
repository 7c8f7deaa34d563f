#include <algorithm>

#include "kernels/cpu/row_kernels.h"

namespace sluice {

const float* WidenWeightRow(const RowKernels& kernels, const WeightView& weight, int64_t row,
                            float* scratch) {
  const int64_t begin = row * weight.row_stride;
  switch (weight.dtype) {
    case DType::kBF16:
      kernels.widen_bf16(static_cast<const uint16_t*>(weight.data) + begin, weight.cols, scratch);
      return scratch;
    case DType::kF16:
      kernels.widen_f16(static_cast<const uint16_t*>(weight.data) + begin, weight.cols, scratch);
      return scratch;
    case DType::kF8E4M3: {
      const uint8_t* data = static_cast<const uint8_t*>(weight.data) + begin;
      for (int64_t col = 0; col < weight.cols;) {
        const int64_t block_end =
            ((weight.col_begin + col) / weight.scale_block + 1) * weight.scale_block -
            weight.col_begin;
        const int64_t end = std::min(block_end, weight.cols);
        kernels.widen_f8(data + col, end - col, weight.ScaleAt(row, col), scratch + col);
        col = end;
      }
      return scratch;
    }
    default:
      return static_cast<const float*>(weight.data) + begin;
  }
}

WeightPanel WidenWeightRows(const RowKernels& kernels, const WeightView& weight, int64_t begin,
                            int64_t count, float* scratch) {
  if (weight.dtype == DType::kF32) {
    return {static_cast<const float*>(weight.data) + begin * weight.row_stride, weight.row_stride};
  }
  for (int64_t row = 0; row < count; ++row) {
    WidenWeightRow(kernels, weight, begin + row, scratch + row * weight.cols);
  }
  return {scratch, weight.cols};
}

Bf16Rows RoundWeight(const RowKernels& kernels, const WeightView& weight, float* wide_row,
                     uint16_t* scratch) {
  if (weight.dtype == DType::kBF16) {
    return {static_cast<const uint16_t*>(weight.data), weight.row_stride};
  }
  for (int64_t row = 0; row < weight.rows; ++row) {
    kernels.narrow_bf16(WidenWeightRow(kernels, weight, row, wide_row), weight.cols,
                        scratch + row * weight.cols);
  }
  return {scratch, weight.cols};
}

}  // namespace sluice
