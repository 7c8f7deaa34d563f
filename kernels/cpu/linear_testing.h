// Random matrices for the tests of kernels/cpu, and LinearOps with threads of their own.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/base/float_convert.h"
#include "kernels/cpu/linear.h"

namespace sluice::testing_linear {

inline constexpr int kSeed = 20261122;
inline constexpr float kPoison = -7777.25f;

// A slice of a larger matrix with random contents, as a checkpoint would hold it.
struct Weights {
  std::vector<uint8_t> bytes;
  std::vector<float> scales;
  WeightView view;
  std::vector<double> values;  // of the slice, scales included

  Weights(std::mt19937& rng, DType dtype, int64_t rows, int64_t cols, int64_t row_begin = 0,
          int64_t col_begin = 0, int64_t cols_after = 0) {
    const int64_t whole_rows = row_begin + rows, whole_cols = col_begin + cols + cols_after;
    const int64_t element = static_cast<int64_t>(DTypeBytes(dtype));
    bytes.resize(whole_rows * whole_cols * element);
    std::normal_distribution<float> normal(0.0f, dtype == DType::kF8E4M3 ? 60.0f : 1.0f);
    for (int64_t i = 0; i < whole_rows * whole_cols; ++i) {
      const float value = normal(rng);
      const uint32_t f32 = std::bit_cast<uint32_t>(value);
      // Any finite f16 will do: a bf16 pattern with its top exponent bit cleared.
      const uint16_t bf16 = F32ToBf16(value), f16 = bf16 & 0xbfff;
      const uint8_t f8 = F32ToF8E4M3(value);
      const void* from = dtype == DType::kF32    ? static_cast<const void*>(&f32)
                         : dtype == DType::kBF16 ? static_cast<const void*>(&bf16)
                         : dtype == DType::kF16  ? static_cast<const void*>(&f16)
                                                 : static_cast<const void*>(&f8);
      std::memcpy(bytes.data() + i * element, from, element);
    }
    WeightView whole{bytes.data(), dtype, whole_rows, whole_cols, whole_cols};
    if (dtype == DType::kF8E4M3) {
      const int64_t scale_cols = (whole_cols + 127) / 128;
      for (int64_t i = 0; i < (whole_rows + 127) / 128 * scale_cols; ++i) {
        scales.push_back(std::uniform_real_distribution<float>(0.001f, 0.03f)(rng));
      }
      whole.scales = scales.data();
      whole.scale_row_stride = scale_cols;
    }
    view = whole.RowSlice(row_begin, rows).ColSlice(col_begin, cols);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) values.push_back(Widened(r, c));
    }
  }

  double Widened(int64_t row, int64_t col) const {
    const char* at = static_cast<const char*>(view.data) +
                     (row * view.row_stride + col) * static_cast<int64_t>(DTypeBytes(view.dtype));
    uint16_t half;
    float f32;
    switch (view.dtype) {
      case DType::kBF16:
        std::memcpy(&half, at, 2);
        return Bf16ToF32(half);
      case DType::kF16:
        std::memcpy(&half, at, 2);
        return F16ToF32(half);
      case DType::kF8E4M3:
        return double{F8E4M3ToF32(static_cast<uint8_t>(*at))} * double{view.ScaleAt(row, col)};
      default:
        std::memcpy(&f32, at, 4);
        return f32;
    }
  }
};

// f32 [rows, cols] inside a wider matrix, poisoned everywhere until filled.
struct Matrix {
  int64_t rows, cols, stride;
  std::vector<float> values;

  Matrix(int64_t rows_in, int64_t cols_in, int64_t padding = 0)
      : rows(rows_in), cols(cols_in), stride(cols_in + padding), values(rows * stride, kPoison) {}
  static Matrix Random(std::mt19937& rng, int64_t rows, int64_t cols, int64_t padding = 0) {
    Matrix matrix(rows, cols, padding);
    std::normal_distribution<float> normal;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) matrix.At(r, c) = normal(rng);
    }
    return matrix;
  }
  float& At(int64_t row, int64_t col) { return values[row * stride + col]; }
  float At(int64_t row, int64_t col) const { return values[row * stride + col]; }
  TensorView View() {
    TensorView view(values.data(), DType::kF32, {rows, cols});
    view.row_stride = stride;
    return view;
  }
};

inline double Product(const Matrix& x, int64_t token, const Weights& w, int64_t row) {
  double sum = 0;
  for (int64_t k = 0; k < x.cols; ++k) sum += double{x.At(token, k)} * w.values[row * x.cols + k];
  return sum;
}

inline double Silu(double value) { return value / (1 + std::exp(-value)); }

// One LinearOps with its thread pool.
struct Ops {
  ThreadPool pool;
  CpuLinearOps linear;
  Ops(CpuIsa isa, int threads, Numerics numerics)
      : pool(threads), linear(CpuContext{pool, isa, numerics}) {}
};

}  // namespace sluice::testing_linear
