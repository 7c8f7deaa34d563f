#include "kernels/cuda/fp8_linear.h"

#include <algorithm>
#include <cstdint>

#include "kernels/base/status.h"
#include "kernels/cuda/tensor_map.h"

namespace sluice {
namespace {

constexpr int64_t kBlock = 128;  // rows and columns of a weight's scale, columns of an activation's
constexpr int kBoxRows = 64;     // of weights

bool TakesWeight(const WeightView& w) {
  return w.dtype == DType::kF8E4M3 && w.scales != nullptr && w.scale_block == kBlock &&
         w.cols % kBlock == 0 && w.rows % 4 == 0 && w.row_begin % kBlock == 0 &&
         w.col_begin % kBlock == 0 && w.row_stride % 16 == 0 &&
         reinterpret_cast<uintptr_t>(w.data) % 16 == 0;
}

absl::StatusOr<cuda::Fp8Weight> ToFp8Weight(const WeightView& w) {
  cuda::Fp8Weight weight;
  SLUICE_ASSIGN_OR_RETURN(weight.map, MakeByteMap(w.data, w.rows, w.cols, w.row_stride, kBoxRows));
  weight.scales = w.scales + w.row_begin / kBlock * w.scale_row_stride + w.col_begin / kBlock;
  weight.scale_stride = w.scale_row_stride;
  return weight;
}

// Rows of x at once. Few, so that no work is done for rows that are not there; yet as many as a
// group has, so that its weights are read once.
int TokensPerTile(int64_t rows, int64_t groups) {
  const int64_t expected = groups == 1 ? rows : (rows + groups - 1) / groups * 5 / 4;
  for (const int tokens : {16, 32, 64}) {
    if (expected <= tokens) return tokens;
  }
  return 128;
}

}  // namespace

Fp8Linear::Fp8Linear(const CudaContext& context) : context_(context), tables_(ToFp8Weight) {}

bool Fp8Linear::Takes(const TensorView& x, absl::Span<const WeightView> weights,
                      absl::Span<const WeightView> ups, const TensorView& out) {
  return weights.size() <= cuda::kFp8GroupsMax && x.row_stride % 4 == 0 &&
         out.row_stride % 4 == 0 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(out.data) % 16 == 0 &&
         std::all_of(weights.begin(), weights.end(), TakesWeight) &&
         std::all_of(ups.begin(), ups.end(), TakesWeight);
}

absl::Status Fp8Linear::Reserve(int64_t rows, int64_t cols) {
  const int64_t bytes = rows * cols, scales = (rows + 3) / 4 * 4 * (cols / kBlock);
  if (partial_ != nullptr && bytes <= x_bytes_ && scales <= x_scales_count_) {
    return absl::OkStatus();
  }
  SLUICE_RETURN_IF_ERROR(
      CudaStatus(cudaStreamSynchronize(context_.stream), "waiting for the stream"));
  if (partial_ == nullptr) {
    const size_t blocks = static_cast<size_t>(context_.multiprocessors);
    SLUICE_ASSIGN_OR_RETURN(partial_, AllocateCuda(blocks * 128 * 128 * sizeof(float)));
    SLUICE_ASSIGN_OR_RETURN(flags_, AllocateCuda(blocks * sizeof(uint32_t)));
  }
  if (bytes > x_bytes_) {
    SLUICE_ASSIGN_OR_RETURN(x_, AllocateCuda(static_cast<size_t>(bytes)));
    x_bytes_ = bytes;
  }
  if (scales > x_scales_count_) {
    SLUICE_ASSIGN_OR_RETURN(x_scales_, AllocateCuda(static_cast<size_t>(scales) * sizeof(float)));
    x_scales_count_ = scales;
  }
  return absl::OkStatus();
}

absl::Status Fp8Linear::Run(const TensorView& x, absl::Span<const WeightView> weights,
                            absl::Span<const WeightView> ups, const TensorView& offsets,
                            const TensorView& out, bool accumulate) {
  const int64_t rows = x.rows(), cols = weights[0].cols;
  if (rows == 0) return absl::OkStatus();
  SLUICE_RETURN_IF_ERROR(Reserve(rows, cols));
  const int32_t groups = static_cast<int32_t>(weights.size());
  const bool grouped = offsets.data != nullptr;
  const cuda::QuantizeArgs quantize{
      .x = x.As<float>(),
      .x_stride = x.row_stride,
      .rows = static_cast<int32_t>(rows),
      .row_count = grouped ? offsets.As<int32_t>() + groups : nullptr,
      .k = static_cast<int32_t>(cols),
      .out = static_cast<uint8_t*>(x_.get()),
      .scales = static_cast<float*>(x_scales_.get()),
      .scale_stride = (rows + 3) / 4 * 4,
  };
  SLUICE_RETURN_IF_ERROR(
      CudaStatus(cuda::LaunchQuantize(quantize, context_.stream), "quantising activations"));

  cuda::Fp8LinearArgs args{};
  args.tokens_per_tile = TokensPerTile(rows, groups);
  SLUICE_ASSIGN_OR_RETURN(args.x, MakeByteMap(x_.get(), rows, cols, cols, args.tokens_per_tile));
  args.x_scales = quantize.scales;
  args.x_scale_stride = quantize.scale_stride;
  args.has_up = !ups.empty();
  if (grouped) {
    SLUICE_ASSIGN_OR_RETURN(args.w, tables_.Get(weights, context_.stream));
    if (args.has_up) {
      SLUICE_ASSIGN_OR_RETURN(args.up, tables_.Get(ups, context_.stream));
    }
    args.offsets = offsets.As<int32_t>();
  } else {
    SLUICE_ASSIGN_OR_RETURN(args.single, ToFp8Weight(weights[0]));
    if (args.has_up) {
      SLUICE_ASSIGN_OR_RETURN(args.single_up, ToFp8Weight(ups[0]));
    }
  }
  args.out = out.As<float>();
  args.out_stride = out.row_stride;
  args.m = static_cast<int32_t>(rows);
  args.n = static_cast<int32_t>(weights[0].rows);
  args.k = static_cast<int32_t>(cols);
  args.groups = groups;
  args.accumulate = accumulate;
  args.blocks = context_.multiprocessors;
  args.partial = static_cast<float*>(partial_.get());
  args.flags = static_cast<uint32_t*>(flags_.get());
  return CudaStatus(cuda::LaunchFp8Linear(args, context_.stream), "FP8 matrix product");
}

}  // namespace sluice
