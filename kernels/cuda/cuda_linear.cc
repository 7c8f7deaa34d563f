#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "kernels/cuda/bf16_linear.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/gate_linear.h"
#include "kernels/cuda/tile_linear.h"
#include "kernels/cuda/weight_tables.h"
#include "kernels/ops/checks.h"

namespace sluice {
namespace {

class CudaLinearOps final : public LinearOps {
 public:
  explicit CudaLinearOps(const CudaContext& context)
      : context_(context),
        tables_(ToWeight),
        fp8_(context, DType::kF8E4M3),
        bf16_tiles_(context, DType::kBF16),
        bf16_(context) {}

  absl::Status Linear(const LinearParams& params, StreamId) override {
    SLUICE_RETURN_IF_ERROR(CheckLinear(params));
    if (params.precision == Precision::kBackend) {
      const TileProduct product{.x = params.x,
                                .weights = {&params.w, 1},
                                .outs = {&params.out, 1},
                                .accumulate = params.accumulate};
      if (Fast() && fp8_.Takes(product)) return OnTiles("linear", &fp8_, product);
      if (Fast() && Bf16Linear::Takes(params.x, params.w, params.out)) {
        context_.calls->Count("linear", "bf16_cublas");
        return bf16_.Run(params.x, params.w, params.out, params.accumulate);
      }
    }
    if (params.precision == Precision::kF32 && OnGateLinear(params)) {
      context_.calls->Count("linear", "f32_tiled");
      return GateLinear(params);
    }
    context_.calls->Count("linear", "general");
    cuda::LinearArgs args = Args(params.x, params.w, params.out);
    args.single = ToWeight(params.w);
    args.accumulate = params.accumulate;
    return Launch(args);
  }

  absl::Status MultiLinear(const MultiLinearParams& params, StreamId stream) override {
    SLUICE_RETURN_IF_ERROR(CheckMultiLinear(params));
    if (params.weights.empty()) return absl::OkStatus();
    const TileProduct product{.x = params.x, .weights = params.weights, .outs = params.outs};
    TileLinear* const tiles = Tiles(product);
    // With many rows of bf16 cuBLAS is faster, one weight after the other.
    if (tiles == &fp8_ || (tiles != nullptr && params.x.rows() <= 128)) {
      return OnTiles("multi_linear", tiles, product);
    }
    context_.calls->Count("multi_linear", "linear");
    for (size_t i = 0; i < params.weights.size(); ++i) {
      SLUICE_RETURN_IF_ERROR(
          Linear({.x = params.x, .w = params.weights[i], .out = params.outs[i]}, stream));
    }
    return absl::OkStatus();
  }

  absl::Status GatedLinear(const GatedLinearParams& params, StreamId) override {
    SLUICE_RETURN_IF_ERROR(CheckGatedLinear(params));
    SLUICE_RETURN_IF_ERROR(CheckSameType("up", params.up, params.gate));
    const TileProduct product{.x = params.x,
                              .weights = {&params.gate, 1},
                              .ups = {&params.up, 1},
                              .outs = {&params.out, 1}};
    if (TileLinear* const tiles = Tiles(product)) return OnTiles("gated_linear", tiles, product);
    context_.calls->Count("gated_linear", "general");
    cuda::LinearArgs args = Args(params.x, params.gate, params.out);
    args.single = ToWeight(params.gate);
    args.single_up = ToWeight(params.up);
    args.has_up = true;
    return Launch(args);
  }

  absl::Status GroupedLinear(const GroupedLinearParams& params, StreamId) override {
    SLUICE_RETURN_IF_ERROR(CheckGroupedLinear(params));
    return Grouped(params.x, {}, params.weights, {}, params.offsets, params.out);
  }

  absl::Status GroupedGatedLinear(const GroupedGatedLinearParams& params, StreamId) override {
    SLUICE_RETURN_IF_ERROR(CheckGroupedGatedLinear(params));
    return Grouped(params.x, params.pair_rows, params.gates, params.ups, params.offsets,
                   params.out);
  }

 private:
  static absl::Status CheckSameType(absl::string_view what, const WeightView& w,
                                    const WeightView& other) {
    if (w.dtype == other.dtype) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(what, ": is ", DTypeName(w.dtype), ", wanted ",
                                                   DTypeName(other.dtype), " as the others"));
  }

  static cuda::LinearArgs Args(const TensorView& x, const WeightView& w, const TensorView& out) {
    cuda::LinearArgs args{};
    args.x = x.As<float>();
    args.x_stride = x.row_stride;
    args.out = out.As<float>();
    args.out_stride = out.row_stride;
    args.m = static_cast<int32_t>(x.rows());
    args.n = static_cast<int32_t>(w.rows);
    args.k = static_cast<int32_t>(w.cols);
    args.element = ToElement(w.dtype);
    args.groups = 1;
    return args;
  }

  absl::Status Grouped(const TensorView& x, const TensorView& pair_rows,
                       absl::Span<const WeightView> weights, absl::Span<const WeightView> ups,
                       const TensorView& offsets, const TensorView& out) {
    if (weights.empty()) return absl::OkStatus();
    for (size_t g = 0; g < weights.size(); ++g) {
      const std::string name = absl::StrCat("weights[", g, "]");
      SLUICE_RETURN_IF_ERROR(CheckWeight(name, weights[g], weights[0].rows, weights[0].cols));
      SLUICE_RETURN_IF_ERROR(CheckSameType(name, weights[g], weights[0]));
      if (ups.empty()) continue;
      const std::string up_name = absl::StrCat("ups[", g, "]");
      SLUICE_RETURN_IF_ERROR(CheckWeight(up_name, ups[g], weights[0].rows, weights[0].cols));
      SLUICE_RETURN_IF_ERROR(CheckSameType(up_name, ups[g], weights[0]));
    }
    const TileProduct product{.x = x,
                              .weights = weights,
                              .ups = ups,
                              .offsets = offsets,
                              .outs = {&out, 1},
                              .pair_rows = pair_rows};
    const char* const op = ups.empty() ? "grouped_linear" : "grouped_gated_linear";
    if (TileLinear* const tiles = Tiles(product)) return OnTiles(op, tiles, product);
    context_.calls->Count(op, "general");
    TensorView gathered = x;
    if (pair_rows.data != nullptr) {
      SLUICE_ASSIGN_OR_RETURN(gathered, Gather(x, pair_rows, out.rows()));
    }
    cuda::LinearArgs args = Args(gathered, weights[0], out);
    args.groups = static_cast<int32_t>(weights.size());
    SLUICE_ASSIGN_OR_RETURN(args.w, tables_.Get(weights, context_.stream));
    if (!ups.empty()) {
      SLUICE_ASSIGN_OR_RETURN(args.up, tables_.Get(ups, context_.stream));
      args.has_up = true;
    }
    args.offsets = offsets.As<int32_t>();
    return Launch(args);
  }

  // The rows that x stands for.
  absl::StatusOr<TensorView> Gather(const TensorView& x, const TensorView& pair_rows,
                                    int64_t rows) {
    const int64_t columns = x.dims[1];
    SLUICE_ASSIGN_OR_RETURN(void* const memory,
                            gathered_.Reserve(static_cast<size_t>(rows * columns) * sizeof(float)));
    TensorView gathered(memory, DType::kF32, {rows, columns});
    const cuda::GatherPairsArgs args{.x = x.As<float>(),
                                     .x_stride = x.row_stride,
                                     .pair_rows = pair_rows.As<int32_t>(),
                                     .pair_stride = pair_rows.row_stride,
                                     .tokens = static_cast<int32_t>(x.rows()),
                                     .top_k = static_cast<int32_t>(pair_rows.dims[1]),
                                     .hidden = static_cast<int32_t>(columns),
                                     .out = gathered.As<float>(),
                                     .out_stride = columns};
    SLUICE_RETURN_IF_ERROR(
        CudaStatus(cuda::LaunchGatherPairs(args, context_.stream), "gathering rows of experts"));
    return gathered;
  }

  absl::Status GateLinear(const LinearParams& params) {
    const int64_t floats = cuda::GateLinearScratch(params.w.rows, params.w.cols);
    SLUICE_ASSIGN_OR_RETURN(void* const partial,
                            gate_scratch_.Reserve(static_cast<size_t>(floats) * sizeof(float)));
    return CudaStatus(cuda::LaunchGateLinear({.x = params.x.As<float>(),
                                              .x_stride = params.x.row_stride,
                                              .w = params.w.data,
                                              .w_stride = params.w.row_stride,
                                              .w_bf16 = params.w.dtype == DType::kBF16,
                                              .out = params.out.As<float>(),
                                              .out_stride = params.out.row_stride,
                                              .m = static_cast<int32_t>(params.x.rows()),
                                              .n = static_cast<int32_t>(params.w.rows),
                                              .k = static_cast<int32_t>(params.w.cols),
                                              .partial = static_cast<float*>(partial)},
                                             context_.stream),
                      "the router's product");
  }

  static bool OnGateLinear(const LinearParams& params) {
    const auto aligned = [](const void* data, int64_t stride, int64_t bytes) {
      return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * bytes % 16 == 0;
    };
    const bool known = params.w.dtype == DType::kBF16 || params.w.dtype == DType::kF32;
    return known && !params.accumulate && params.w.cols % 8 == 0 &&
           aligned(params.x.data, params.x.row_stride, 4) &&
           aligned(params.w.data, params.w.row_stride, DTypeBytes(params.w.dtype));
  }

  bool Fast() const { return context_.numerics == Numerics::kFast; }

  // Null: a product for the general kernels.
  TileLinear* Tiles(const TileProduct& product) {
    if (!Fast()) return nullptr;
    if (fp8_.Takes(product)) return &fp8_;
    return bf16_tiles_.Takes(product) ? &bf16_tiles_ : nullptr;
  }

  absl::Status OnTiles(const char* op, TileLinear* tiles, const TileProduct& product) {
    SLUICE_ASSIGN_OR_RETURN(const bool on_cublas_lt, tiles->OnCublasLt(product));
    context_.calls->Count(op, on_cublas_lt     ? "fp8_cublaslt"
                              : tiles == &fp8_ ? "fp8_wgmma"
                                               : "bf16_wgmma");
    return tiles->Run(product);
  }

  absl::Status Launch(const cuda::LinearArgs& args) {
    return CudaStatus(cuda::LaunchLinear(args, context_.stream), "matrix product");
  }

  const CudaContext& context_;
  WeightTables<cuda::Weight> tables_;
  TileLinear fp8_, bf16_tiles_;
  Bf16Linear bf16_;  // dense
  CudaScratch gate_scratch_;
  CudaScratch gathered_;  // rows of experts, for the general kernel
};

}  // namespace

std::unique_ptr<LinearOps> MakeCudaLinearOps(const CudaContext& context) {
  return std::make_unique<CudaLinearOps>(context);
}

}  // namespace sluice
