#include "kernels/cuda/weight_tables.h"

#include <tuple>

namespace sluice {

cuda::Element ToElement(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return cuda::Element::kBF16;
    case DType::kF16:
      return cuda::Element::kF16;
    case DType::kF8E4M3:
      return cuda::Element::kF8E4M3;
    default:
      return cuda::Element::kF32;
  }
}

cuda::Weight ToWeight(const WeightView& view) {
  return {view.data,
          view.scales,
          view.row_stride,
          view.scale_row_stride,
          static_cast<int32_t>(view.scale_block),
          static_cast<int32_t>(view.row_begin),
          static_cast<int32_t>(view.col_begin)};
}

bool SameView(const WeightView& a, const WeightView& b) {
  const auto fields = [](const WeightView& v) {
    return std::tie(v.data, v.dtype, v.rows, v.cols, v.row_stride, v.scales, v.scale_row_stride,
                    v.scale_block, v.row_begin, v.col_begin);
  };
  return fields(a) == fields(b);
}

}  // namespace sluice
