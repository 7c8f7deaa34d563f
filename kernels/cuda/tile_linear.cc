#include "kernels/cuda/tile_linear.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/tile_plan.h"

namespace sluice {
namespace {

constexpr int64_t kBlock = 128;  // rows and columns of a weight's scale, columns of an activation's
constexpr int64_t kStepBytes = 128;
constexpr int64_t kCublasLtRows = 4;  // of x: it takes multiples
constexpr int kTokensMax = 256, kOutputsMax = 128;

bool Aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

int64_t ScaleStride(int64_t rows) { return (rows + 3) / 4 * 4; }

// Of the first row and column of the view.
const float* ScalesOf(const WeightView& w) {
  return w.scales + w.row_begin / kBlock * w.scale_row_stride + w.col_begin / kBlock;
}

}  // namespace

TileLinear::TileLinear(const CudaContext& context, DType dtype)
    : context_(context),
      dtype_(dtype),
      element_bytes_(DTypeBytes(dtype)),
      tables_([this](const WeightView& w) {
        return ToTileWeight(w, cuda::WeightBoxRows(kOutputsMax, /*gated=*/false));
      }),
      cublas_lt_(context) {}

bool TileLinear::TakesWeight(const WeightView& w) const {
  if (w.dtype != dtype_ || w.cols * element_bytes_ % kStepBytes != 0 || w.rows % 4 != 0 ||
      w.row_stride * element_bytes_ % 16 != 0 || !Aligned(w.data)) {
    return false;
  }
  return dtype_ != DType::kF8E4M3 || (w.scales != nullptr && w.scale_block == kBlock &&
                                      w.row_begin % kBlock == 0 && w.col_begin % kBlock == 0);
}

bool TileLinear::Takes(const TileProduct& product) const {
  const auto takes = [this](const WeightView& w) { return TakesWeight(w); };
  const auto aligned = [](const TensorView& out) {
    return out.row_stride % 4 == 0 && Aligned(out.data);
  };
  return product.weights.size() <=
             static_cast<size_t>(product.grouped() ? cuda::kTileGroupsMax : cuda::kTilePartsMax) &&
         product.x.row_stride % 4 == 0 && Aligned(product.x.data) &&
         std::all_of(product.outs.begin(), product.outs.end(), aligned) &&
         std::all_of(product.weights.begin(), product.weights.end(), takes) &&
         std::all_of(product.ups.begin(), product.ups.end(), takes);
}

bool TileLinear::CublasLtTakes(const TileProduct& product) const {
  if (dtype_ != DType::kF8E4M3 || product.grouped() || product.weights.size() != 1 ||
      !product.ups.empty()) {
    return false;
  }
  const WeightView& w = product.weights[0];
  const int64_t blocks = w.cols / kBlock;
  return product.rows() >= kCublasLtRows && w.rows % 16 == 0 && w.cols % kBlock == 0 &&
         blocks % 4 == 0 && w.scale_row_stride == blocks && Aligned(ScalesOf(w));
}

CublasLtProduct TileLinear::ForCublasLt(const TileProduct& product) {
  const WeightView& w = product.weights[0];
  return {.m = product.rows() / kCublasLtRows * kCublasLtRows,
          .n = w.rows,
          .k = w.cols,
          .w = w.data,
          .w_stride = w.row_stride,
          .w_scales = ScalesOf(w),
          .out = product.outs[0].As<float>(),
          .out_stride = product.outs[0].row_stride,
          .accumulate = product.accumulate};
}

absl::StatusOr<bool> TileLinear::OnCublasLt(const TileProduct& product) {
  if (!CublasLtIsFaster(product.rows(), product.rows() % kCublasLtRows == 0) ||
      !CublasLtTakes(product)) {
    return false;
  }
  CublasLtProduct shape = ForCublasLt(product);
  shape.x_scales = shape.w_scales;
  return cublas_lt_.Takes(shape);
}

absl::StatusOr<cuda::TileWeight> TileLinear::ToTileWeight(const WeightView& w, int box_rows) const {
  cuda::TileWeight weight{};
  SLUICE_ASSIGN_OR_RETURN(weight.map, MakeByteMap(w.data, w.rows, w.cols * element_bytes_,
                                                  w.row_stride * element_bytes_, box_rows));
  if (dtype_ == DType::kF8E4M3) {
    weight.scales = ScalesOf(w);
    weight.scale_stride = w.scale_row_stride;
  }
  return weight;
}

absl::Status TileLinear::Reserve(int64_t rows, int64_t cols) {
  const size_t blocks = static_cast<size_t>(context_.multiprocessors);
  SLUICE_RETURN_IF_ERROR(
      partial_.Reserve(blocks * kTokensMax * kOutputsMax * sizeof(float)).status());
  SLUICE_RETURN_IF_ERROR(flags_.Reserve((blocks * 2 + 1) * sizeof(uint32_t)).status());
  SLUICE_RETURN_IF_ERROR(x_.Reserve(static_cast<size_t>(rows * cols * element_bytes_)).status());
  const int64_t scales = dtype_ == DType::kF8E4M3 ? ScaleStride(rows) * (cols / kBlock) : 0;
  return x_scales_.Reserve(static_cast<size_t>(scales + cuda::kTileScaleSlack) * sizeof(float))
      .status();
}

absl::Status TileLinear::MakeOperand(const TileProduct& product) {
  const int64_t rows = product.rows(), cols = product.weights[0].cols;
  const bool placed = product.pair_rows.data != nullptr;
  SLUICE_RETURN_IF_ERROR(Reserve(rows, cols));
  const cuda::OperandArgs operand{
      .x = product.x.As<float>(),
      .x_stride = product.x.row_stride,
      .rows = static_cast<int32_t>(product.x.rows()),
      .row_count = product.grouped() && !placed
                       ? product.offsets.As<int32_t>() + product.weights.size()
                       : nullptr,
      .places = product.pair_rows.As<int32_t>(),
      .places_stride = product.pair_rows.row_stride,
      .places_each = static_cast<int32_t>(product.pair_rows.dims[1]),
      .k = static_cast<int32_t>(cols),
      .out = x_.get(),
      .scales = x_scales_.As<float>(),
      .scale_stride = ScaleStride(rows),
  };
  return dtype_ == DType::kF8E4M3
             ? CudaStatus(cuda::LaunchQuantize(operand, context_.stream), "quantising activations")
             : CudaStatus(cuda::LaunchRoundOperand(operand, context_.stream),
                          "rounding activations");
}

absl::Status TileLinear::RunOnCublasLt(const TileProduct& product) {
  const int64_t rest = product.rows() % kCublasLtRows;
  if (rest > 0) {
    const int64_t most = product.rows() - rest;
    const TensorView out = product.outs[0].Prefix(most), last = product.outs[0].Slice(most, rest);
    TileProduct part = product;
    part.x = product.x.Prefix(most);
    part.outs = {&out, 1};
    SLUICE_RETURN_IF_ERROR(RunOnCublasLt(part));
    part.x = product.x.Slice(most, rest);
    part.outs = {&last, 1};
    return Run(part);
  }
  SLUICE_RETURN_IF_ERROR(MakeOperand(product));
  CublasLtProduct whole = ForCublasLt(product);
  whole.x = x_.get();
  whole.x_scales = x_scales_.As<float>();
  return cublas_lt_.Multiply(whole);
}

absl::Status TileLinear::Run(const TileProduct& product) {
  if (product.x.rows() == 0) return absl::OkStatus();
  SLUICE_ASSIGN_OR_RETURN(const bool on_cublas_lt, OnCublasLt(product));
  if (on_cublas_lt) {
    const absl::Status status = RunOnCublasLt(product);
    if (!absl::IsUnimplemented(status)) return status;
  }
  // So that no later call has to, in service or while recording.
  if (dtype_ == DType::kF8E4M3) SLUICE_RETURN_IF_ERROR(cublas_lt_.Start());
  TileProblem problem{.rows = product.rows(),
                      .groups = 1,
                      .grouped = product.grouped(),
                      .n = 0,
                      .steps = product.weights[0].cols * element_bytes_ / kStepBytes,
                      .blocks = context_.multiprocessors};
  if (product.grouped()) {
    problem.groups = static_cast<int64_t>(product.weights.size());
    problem.n = product.weights[0].rows;
  } else {
    for (const WeightView& w : product.weights) problem.n += w.rows;
  }
  if (!product.ups.empty()) problem.n *= 2;
  return Run(product, dtype_ == DType::kF8E4M3 ? Fp8Plan(problem) : Bf16Plan(problem));
}

absl::Status TileLinear::Run(const TileProduct& product, const cuda::TilePlan& plan) {
  if (product.rows() == 0) return absl::OkStatus();
  if (product.grouped() && !product.ups.empty() && plan.outputs != kOutputsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("gated groups: a plan of ", plan.outputs, " outputs, wanted ", kOutputsMax));
  }
  cuda::TileLinearArgs args{};
  args.plan = plan;
  args.m = static_cast<int32_t>(product.rows());
  args.steps = static_cast<int32_t>(product.weights[0].cols * element_bytes_ / kStepBytes);
  args.groups = product.grouped() ? static_cast<int32_t>(product.weights.size()) : 1;
  args.gated = !product.ups.empty();
  args.accumulate = product.accumulate;
  args.blocks = context_.multiprocessors;
  if (plan.sharing == cuda::Sharing::kColumns) {
    // A cluster for each tile: they do not wait for each other.
    int64_t tiles = 0;
    for (const WeightView& w : product.weights) {
      const int64_t outputs = args.gated ? plan.outputs / 2 : plan.outputs;
      tiles += (w.rows + outputs - 1) / outputs;
    }
    tiles *= (product.rows() + plan.tokens - 1) / plan.tokens;
    args.blocks = static_cast<int32_t>(tiles * plan.blocks);
  }
  args.part_count = static_cast<int32_t>(product.outs.size());
  for (size_t p = 0; p < product.outs.size(); ++p) {
    args.parts[p].out = product.outs[p].As<float>();
    args.parts[p].out_stride = product.outs[p].row_stride;
    args.parts[p].n = static_cast<int32_t>(product.weights[p].rows);
  }
  if (product.grouped()) {
    args.offsets = product.offsets.As<int32_t>();
    SLUICE_ASSIGN_OR_RETURN(args.group_weights, tables_.Get(product.weights, context_.stream));
    if (args.gated) {
      SLUICE_ASSIGN_OR_RETURN(args.group_ups, tables_.Get(product.ups, context_.stream));
    }
  } else {
    const int box_rows = cuda::WeightBoxRows(plan.outputs, args.gated);
    for (size_t p = 0; p < product.weights.size(); ++p) {
      SLUICE_ASSIGN_OR_RETURN(args.parts[p].w, ToTileWeight(product.weights[p], box_rows));
    }
    if (args.gated) {
      SLUICE_ASSIGN_OR_RETURN(args.up, ToTileWeight(product.ups[0], box_rows));
    }
  }
  SLUICE_RETURN_IF_ERROR(MakeOperand(product));
  args.x_scales = x_scales_.As<float>();
  args.x_scale_stride = ScaleStride(product.rows());
  // No more rows than there are, when that is known here.
  const int64_t rows = product.rows(), bytes = product.weights[0].cols * element_bytes_;
  const int64_t tile_rows = product.grouped() ? plan.tokens : std::min<int64_t>(rows, plan.tokens);
  const int64_t boxes = plan.sharing == cuda::Sharing::kTokens ? 2 : 1;
  args.x_box_rows = static_cast<int32_t>((tile_rows + 8 * boxes - 1) / (8 * boxes) * 8);
  SLUICE_ASSIGN_OR_RETURN(args.x, MakeByteMap(x_.get(), rows, bytes, bytes, args.x_box_rows));
  args.partial = partial_.As<float>();
  args.flags = flags_.As<uint32_t>();
  args.ticket = args.flags + 2 * context_.multiprocessors;
  args.wait = context_.wait;
  return dtype_ == DType::kF8E4M3
             ? CudaStatus(cuda::LaunchFp8Tiles(args, context_.stream), "FP8 matrix product")
             : CudaStatus(cuda::LaunchBf16Tiles(args, context_.stream), "bf16 matrix product");
}

}  // namespace sluice
