// The part of a matrix product that one task computes, as plain pointers: what kernels compiled for
// one instruction set may touch (kernels/cpu/simd/f32x16.h says why nothing richer).
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"

namespace sluice {

// Some rows of a WeightView.
struct WeightRows {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t stride = 0;             // elements between rows
  const float* scales = nullptr;  // block (0, 0) of the whole matrix, or null
  int64_t scale_stride = 0;
  int64_t scale_block = 128;
  int64_t row_begin = 0;  // where the first row and column lie in the whole matrix
  int64_t col_begin = 0;
};

struct LinearTile {
  const float* x = nullptr;  // [tokens, k]
  int64_t x_stride = 0;
  int64_t tokens = 0;
  int64_t k = 0;
  WeightRows w;          // [rows, k]
  WeightRows up;         // the same shape; gated products only
  int64_t rows = 0;      // outputs
  float* out = nullptr;  // [tokens, rows]
  int64_t out_stride = 0;
  bool accumulate = false;
};

}  // namespace sluice
