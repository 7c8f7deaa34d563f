// How a matrix product is cut into tasks, and the interface of the kernels that compute them: plain
// pointers, which code compiled for one instruction set may touch (kernels/cpu/simd/f32x16.h says
// why nothing richer).
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"

namespace sluice {

inline constexpr int64_t kScaleBlockMax = 512;

// The storage types of weights, to choose overloads by.
struct F32Weights {
  using Element = float;
};
struct Bf16Weights {
  using Element = uint16_t;
};
struct F16Weights {
  using Element = uint16_t;
};
struct F8Weights {
  using Element = uint8_t;
};

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

// The outputs of one task, or of a whole product.
struct LinearTile {
  const float* x = nullptr;  // [tokens, k]
  int64_t x_stride = 0;
  const char* packed_x = nullptr;  // what LinearKernels::pack made of x
  int64_t packed_group_bytes = 0;  // LinearKernels::packed_bytes
  int64_t tokens = 0;
  int64_t k = 0;
  WeightRows w;          // [rows, k]
  WeightRows up;         // the same shape; gated products only
  int64_t rows = 0;      // outputs
  float* out = nullptr;  // [tokens, rows]
  int64_t out_stride = 0;
  bool accumulate = false;
};

// One way to compute tiles.
struct LinearKernels {
  // Limits of a task; none is made smaller than rows_min to have more of them.
  int64_t rows_max;
  int64_t rows_min;
  int64_t tokens_max;
  int64_t scratch_bytes;  // that a task needs, aligned to 64

  // out = x w^T, or += when accumulate.
  void (*linear)(const LinearTile& tile, void* scratch);
  // out = silu(x w^T) * (x up^T).
  void (*gated)(const LinearTile& tile, void* scratch);

  // If not 0, x is first packed by groups of this many tokens, each to packed_bytes(whole product)
  // bytes. Tasks begin with a group, and have at most packed_bytes_max bytes of packed x (0: any).
  int64_t pack_tokens = 0;
  int64_t packed_bytes_max = 0;
  int64_t (*packed_bytes)(const LinearTile& whole) = nullptr;
  void (*pack)(const LinearTile& whole, int64_t group, char* packed) = nullptr;
};

}  // namespace sluice
