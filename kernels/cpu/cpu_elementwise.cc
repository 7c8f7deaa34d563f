// Embedding, RMS norm and row gathering on the CPU: one task per row.
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "kernels/cpu/cpu_context.h"
#include "kernels/cpu/fork.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/ops/checks.h"

namespace sluice {
namespace {

class CpuElementwiseOps final : public ElementwiseOps {
 public:
  explicit CpuElementwiseOps(const CpuContext& context)
      : pool_(context.pool), kernels_(SLUICE_CHOOSE_KERNELS(context.isa, GetRowKernels)) {}

  absl::Status Embed(const EmbedParams& params, StreamId) override {
    const int64_t tokens = params.ids.rows();
    const int64_t hidden = params.table.cols;
    SLUICE_RETURN_IF_ERROR(CheckEmbed(params));
    SLUICE_RETURN_IF_ERROR(ResolveIds(params));
    const int32_t* ids = params.resolved_ids.As<int32_t>();
    ForkIfWorth(pool_, tokens, hidden / 8, [&](int64_t token) {
      float* out = params.out.Row<float>(token);
      const float* row = WidenWeightRow(kernels_, params.table, ids[token], out);
      if (row != out) std::memcpy(out, row, static_cast<size_t>(hidden) * sizeof(float));
    });
    return absl::OkStatus();
  }

  absl::Status RmsNorm(const RmsNormParams& params, StreamId) override {
    const int64_t width = params.weight.rows();
    SLUICE_RETURN_IF_ERROR(CheckRmsNorm(params));
    ForkIfWorth(pool_, params.x.rows(), width / 8, [&](int64_t row) {
      kernels_.rms_norm(params.x.Row<float>(row), params.weight.As<float>(), width, params.eps,
                        params.out.Row<float>(row));
    });
    return absl::OkStatus();
  }

  absl::Status GatherRows(const GatherRowsParams& params, StreamId) override {
    SLUICE_RETURN_IF_ERROR(CheckGatherRows(params));
    const int64_t count = params.rows.rows();
    const int64_t width = params.x.dims[1];
    const int32_t* rows = params.rows.As<int32_t>();
    for (int64_t i = 0; i < count; ++i) {
      if (rows[i] < 0 || rows[i] >= params.x.rows()) {
        return absl::InvalidArgumentError(
            absl::StrCat("rows[", i, "] is ", rows[i], ", x has ", params.x.rows(), " rows"));
      }
    }
    ForkIfWorth(pool_, count, width / 8, [&](int64_t i) {
      std::memcpy(params.out.Row<float>(i), params.x.Row<float>(rows[i]),
                  static_cast<size_t>(width) * sizeof(float));
    });
    return absl::OkStatus();
  }

 private:
  static absl::Status ResolveIds(const EmbedParams& params) {
    const int32_t* ids = params.ids.As<int32_t>();
    int32_t* resolved = params.resolved_ids.As<int32_t>();
    for (int64_t i = 0; i < params.ids.rows(); ++i) {
      int32_t id = ids[i];
      if (id < 0) {
        const int64_t slot = -(static_cast<int64_t>(id) + 1);
        if (slot >= params.tokens_by_slot.rows() || params.tokens_by_slot.data == nullptr) {
          return absl::InvalidArgumentError(absl::StrCat("ids[", i, "] is ", id, ": slot ", slot,
                                                         " of tokens_by_slot, which has ",
                                                         params.tokens_by_slot.rows()));
        }
        id = params.tokens_by_slot.As<int32_t>()[slot];
      }
      if (id < 0 || id >= params.table.rows) {
        return absl::InvalidArgumentError(absl::StrCat(
            "ids[", i, "] means token ", id, ", the table has ", params.table.rows, " rows"));
      }
      resolved[i] = id;
    }
    return absl::OkStatus();
  }

  ThreadPool& pool_;
  const RowKernels& kernels_;
};

}  // namespace

std::unique_ptr<ElementwiseOps> MakeCpuElementwiseOps(const CpuContext& context) {
  return std::make_unique<CpuElementwiseOps>(context);
}

}  // namespace sluice
