// Descriptions of matrices for Hopper's copy engine (TMA), which copies boxes of them to shared
// memory.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "absl/status/statusor.h"

namespace sluice {

// Of a matrix of bytes [rows, cols], a row every `row_stride` bytes. Boxes are `box_rows` rows (at
// most 256) of 128 bytes, swizzled by 128 bytes; what lies outside the matrix is read as zeros.
// InvalidArgument unless data and row_stride are multiples of 16 bytes; Internal when the driver
// refuses.
absl::StatusOr<CUtensorMap> MakeByteMap(const void* data, int64_t rows, int64_t cols,
                                        int64_t row_stride, int box_rows);

}  // namespace sluice
