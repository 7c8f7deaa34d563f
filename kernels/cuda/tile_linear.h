// Products with weights on the tensor cores by our own kernels (tile_linear.cuh), or by cuBLASLt
// where that is faster: block-scaled FP8, x quantised to FP8 with one scale per row and 128
// columns, as DeepSeek-V3's reference does it; and bf16, x rounded to bf16.
#pragma once

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/base/tensor_view.h"
#include "kernels/cuda/cublas_lt.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/tile_linear_launch.h"
#include "kernels/cuda/weight_tables.h"

namespace sluice {

// As kernels/ops/linear.h has it. Dense: one out for each weight. Gated: with as many ups as
// weights. Grouped: when offsets has data; one out.
struct TileProduct {
  TensorView x;
  absl::Span<const WeightView> weights;
  absl::Span<const WeightView> ups;
  TensorView offsets;
  absl::Span<const TensorView> outs;
  bool accumulate = false;
  TensorView pair_rows;  // or no data

  int64_t rows() const { return outs[0].rows(); }
  bool grouped() const { return offsets.data != nullptr; }
};

class TileLinear {
 public:
  // Of weights of this type: kF8E4M3 or kBF16.
  TileLinear(const CudaContext& context, DType dtype);

  // Whether the product can be done here: types, and sizes and places that TMA takes.
  bool Takes(const TileProduct& product) const;

  // For what Takes. The first call with a span of grouped weights waits for the stream.
  absl::Status Run(const TileProduct& product);
  // Whether that is by cuBLASLt.
  absl::StatusOr<bool> OnCublasLt(const TileProduct& product);

  // By one or the other, whatever is faster. RunOnCublasLt: what CublasLtTakes, too.
  absl::Status Run(const TileProduct& product, const cuda::TilePlan& plan);
  bool CublasLtTakes(const TileProduct& product) const;
  absl::Status RunOnCublasLt(const TileProduct& product);

 private:
  bool TakesWeight(const WeightView& w) const;
  absl::StatusOr<cuda::TileWeight> ToTileWeight(const WeightView& w, int box_rows) const;
  absl::Status Reserve(int64_t rows, int64_t cols);
  // x as operands, into x_ and x_scales_.
  absl::Status MakeOperand(const TileProduct& product);
  // Without what MakeOperand makes, and without rows beyond a multiple of what cuBLASLt takes.
  static CublasLtProduct ForCublasLt(const TileProduct& product);

  const CudaContext& context_;
  const DType dtype_;
  const int64_t element_bytes_;
  WeightTables<cuda::TileWeight> tables_;
  CublasLt cublas_lt_;
  CudaScratch partial_, flags_, x_, x_scales_;
};

}  // namespace sluice
