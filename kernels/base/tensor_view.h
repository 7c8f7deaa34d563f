// Views of memory somebody else owns: what ops take. A view is three words and is passed by value.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/base/dtype.h"

namespace sluice {

// A dense row-major tensor of up to four dimensions. Only the stride of the outermost dimension may
// exceed the product of the inner ones (rows of a wider matrix); the rest is contiguous.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;
  std::array<int64_t, 4> dims = {1, 1, 1, 1};
  int64_t row_stride = 0;  // elements between successive entries of dimension 0

  TensorView() = default;
  TensorView(void* data, DType dtype, std::initializer_list<int64_t> shape);

  bool empty() const;  // any dimension is 0
  int64_t rows() const { return dims[0]; }
  int64_t row_elements() const;  // product of the inner dimensions
  bool contiguous() const { return row_stride == row_elements() || rows() <= 1; }

  // The caller has checked dtype; rows are reached through row_stride.
  template <typename T>
  T* As() const {
    return static_cast<T*>(data);
  }
  template <typename T>
  T* Row(int64_t row) const {
    return static_cast<T*>(data) + row * row_stride;
  }

  // The first `count` entries of dimension 0.
  TensorView Prefix(int64_t count) const { return Slice(0, count); }
  // Entries [begin, begin + count) of dimension 0.
  TensorView Slice(int64_t begin, int64_t count) const;
};

// A weight matrix [rows = outputs N, cols = inputs K] as checkpoints store it, perhaps a slice of a
// larger one. FP8 weights carry one f32 scale per block of scale_block x scale_block elements of
// the *whole* matrix: element (r, c) of this view lies in block ((row_begin + r) / scale_block,
// (col_begin + c) / scale_block). value = element * scale.
struct WeightView {
  const void* data = nullptr;  // aligned to the element size
  DType dtype = DType::kF32;   // kF32, kBF16, kF16 or kF8E4M3
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;         // elements
  const float* scales = nullptr;  // null unless kF8E4M3; block (0, 0) of the whole matrix
  int64_t scale_row_stride = 0;
  int64_t scale_block = 128;
  int64_t row_begin = 0;
  int64_t col_begin = 0;

  bool present() const { return data != nullptr; }
  float ScaleAt(int64_t row, int64_t col) const {
    return scales == nullptr ? 1.0f
                             : scales[(row_begin + row) / scale_block * scale_row_stride +
                                      (col_begin + col) / scale_block];
  }
  // Rows [begin, begin + count) of this view.
  WeightView RowSlice(int64_t begin, int64_t count) const;
  WeightView ColSlice(int64_t begin, int64_t count) const;
};

// InvalidArgument naming `what`, the wanted and the actual type or shape; -1 in `shape` matches
// any.
absl::Status CheckTensor(absl::string_view what, const TensorView& view, DType dtype,
                         std::initializer_list<int64_t> shape);

}  // namespace sluice
