#include "kernels/base/tensor_view.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace sluice {

TensorView::TensorView(void* data_in, DType dtype_in, std::initializer_list<int64_t> shape)
    : data(data_in), dtype(dtype_in) {
  for (const int64_t dim : shape) dims[rank++] = dim;
  row_stride = row_elements();
}

bool TensorView::empty() const { return rank == 0 || dims[0] * row_elements() == 0; }

int64_t TensorView::row_elements() const { return dims[1] * dims[2] * dims[3]; }

TensorView TensorView::Slice(int64_t begin, int64_t count) const {
  TensorView slice = *this;
  slice.data = static_cast<char*>(data) + begin * row_stride * DTypeBytes(dtype);
  slice.dims[0] = count;
  return slice;
}

WeightView WeightView::RowSlice(int64_t begin, int64_t count) const {
  WeightView slice = *this;
  slice.data = static_cast<const char*>(data) + begin * row_stride * DTypeBytes(dtype);
  slice.rows = count;
  slice.row_begin += begin;
  return slice;
}

WeightView WeightView::ColSlice(int64_t begin, int64_t count) const {
  WeightView slice = *this;
  slice.data = static_cast<const char*>(data) + begin * DTypeBytes(dtype);
  slice.cols = count;
  slice.col_begin += begin;
  return slice;
}

absl::Status CheckTensor(absl::string_view what, const TensorView& view, DType dtype,
                         std::initializer_list<int64_t> shape) {
  bool matches = view.dtype == dtype && view.rank == static_cast<int>(shape.size());
  int index = 0;
  for (const int64_t dim : shape) {
    if (index < view.rank && dim >= 0 && view.dims[index] != dim) matches = false;
    ++index;
  }
  if (matches && (view.data != nullptr || view.empty())) return absl::OkStatus();
  if (matches) return absl::InvalidArgumentError(absl::StrCat(what, ": null data"));
  return absl::InvalidArgumentError(
      absl::StrCat(what, ": is ", DTypeName(view.dtype), " [",
                   absl::StrJoin(view.dims.begin(), view.dims.begin() + view.rank, ", "),
                   "], wanted ", DTypeName(dtype), " [", absl::StrJoin(shape, ", "), "]"));
}

}  // namespace sluice
