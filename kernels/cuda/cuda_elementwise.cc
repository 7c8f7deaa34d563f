#include <memory>

#include "kernels/base/status.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/weight_tables.h"
#include "kernels/ops/checks.h"

namespace sluice {
namespace {

class CudaElementwiseOps final : public ElementwiseOps {
 public:
  explicit CudaElementwiseOps(const CudaContext& context) : context_(context) {}

  absl::Status Embed(const EmbedParams& params, StreamId) override {
    context_.calls->Count("embed", "cuda");
    SLUICE_RETURN_IF_ERROR(CheckEmbed(params));
    return CudaStatus(cuda::LaunchEmbed({.ids = params.ids.As<int32_t>(),
                                         .tokens_by_slot = params.tokens_by_slot.As<int32_t>(),
                                         .table = ToWeight(params.table),
                                         .element = ToElement(params.table.dtype),
                                         .tokens = static_cast<int32_t>(params.ids.rows()),
                                         .hidden = static_cast<int32_t>(params.table.cols),
                                         .out = params.out.As<float>(),
                                         .out_stride = params.out.row_stride,
                                         .resolved_ids = params.resolved_ids.As<int32_t>()},
                                        context_.stream),
                      "embedding");
  }

  absl::Status RmsNorm(const RmsNormParams& params, StreamId) override {
    context_.calls->Count("rms_norm", "cuda");
    SLUICE_RETURN_IF_ERROR(CheckRmsNorm(params));
    return CudaStatus(cuda::LaunchRmsNorm({.x = params.x.As<float>(),
                                           .x_stride = params.x.row_stride,
                                           .weight = params.weight.As<float>(),
                                           .eps = params.eps,
                                           .rows = static_cast<int32_t>(params.x.rows()),
                                           .n = static_cast<int32_t>(params.weight.rows()),
                                           .out = params.out.As<float>(),
                                           .out_stride = params.out.row_stride},
                                          context_.stream),
                      "RMS norm");
  }

  absl::Status GatherRows(const GatherRowsParams& params, StreamId) override {
    context_.calls->Count("gather_rows", "cuda");
    SLUICE_RETURN_IF_ERROR(CheckGatherRows(params));
    return CudaStatus(cuda::LaunchGatherRows({.x = params.x.As<float>(),
                                              .x_stride = params.x.row_stride,
                                              .rows = params.rows.As<int32_t>(),
                                              .count = static_cast<int32_t>(params.rows.rows()),
                                              .n = static_cast<int32_t>(params.x.dims[1]),
                                              .out = params.out.As<float>(),
                                              .out_stride = params.out.row_stride},
                                             context_.stream),
                      "gathering rows");
  }

  absl::Status FillRandom(const FillRandomParams& params, StreamId) override {
    context_.calls->Count("fill_random", "cuda");
    SLUICE_RETURN_IF_ERROR(CheckFillRandom(params));
    const WeightView& out = params.out;
    return CudaStatus(cuda::LaunchFillRandom({.key = params.numbers.key,
                                              .scale = params.numbers.scale,
                                              .mean = params.numbers.mean,
                                              .whole_rows = params.rows,
                                              .whole_cols = params.cols,
                                              .row_begin = params.row_begin,
                                              .col_begin = params.col_begin,
                                              .element = ToElement(out.dtype),
                                              .out = const_cast<void*>(out.data),
                                              .out_stride = out.row_stride,
                                              .rows = out.rows,
                                              .cols = out.cols,
                                              .scales = const_cast<float*>(out.scales),
                                              .scale_row_stride = out.scale_row_stride,
                                              .scale_row_begin = out.row_begin,
                                              .scale_col_begin = out.col_begin,
                                              .scale_block = out.scale_block},
                                             context_.stream),
                      "random numbers");
  }

 private:
  const CudaContext& context_;
};

}  // namespace

std::unique_ptr<ElementwiseOps> MakeCudaElementwiseOps(const CudaContext& context) {
  return std::make_unique<CudaElementwiseOps>(context);
}

}  // namespace sluice
