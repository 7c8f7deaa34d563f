// Embedding, RMS norm, row gathering and random matrices on the CPU: one task per row.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/base/float_convert.h"
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
      : pool_(context.pool),
        calls_(context.calls),
        kernels_(SLUICE_CHOOSE_KERNELS(context.isa, GetRowKernels)) {}

  absl::Status Embed(const EmbedParams& params, StreamId) override {
    calls_->Count("embed", "cpu");
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
    calls_->Count("rms_norm", "cpu");
    const int64_t width = params.weight.rows();
    SLUICE_RETURN_IF_ERROR(CheckRmsNorm(params));
    ForkIfWorth(pool_, params.x.rows(), width / 8, [&](int64_t row) {
      kernels_.rms_norm(params.x.Row<float>(row), params.weight.As<float>(), width, params.eps,
                        params.out.Row<float>(row));
    });
    return absl::OkStatus();
  }

  absl::Status GatherRows(const GatherRowsParams& params, StreamId) override {
    calls_->Count("gather_rows", "cpu");
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

  absl::Status FillRandom(const FillRandomParams& params, StreamId) override {
    calls_->Count("fill_random", "cpu");
    SLUICE_RETURN_IF_ERROR(CheckFillRandom(params));
    const WeightView& out = params.out;
    if (out.dtype == DType::kF8E4M3) {
      const int64_t block = out.scale_block;
      const int64_t first = params.row_begin / block;
      const int64_t end = (params.row_begin + out.rows + block - 1) / block;
      const int64_t work = block * out.cols * 8;
      ForkIfWorth(pool_, out.rows == 0 || out.cols == 0 ? 0 : end - first, work,
                  [&](int64_t i) { FillBlockRow(params, first + i); });
      return absl::OkStatus();
    }
    ForkIfWorth(pool_, out.rows, out.cols, [&](int64_t row) {
      for (int64_t col = 0; col < out.cols; ++col) {
        const float value = Number(params, params.row_begin + row, params.col_begin + col);
        const int64_t at = row * out.row_stride + col;
        if (out.dtype == DType::kF32) {
          Writable<float>(out)[at] = value;
        } else {
          Writable<uint16_t>(out)[at] = F32ToBf16(value);
        }
      }
    });
    return absl::OkStatus();
  }

 private:
  template <typename T>
  static T* Writable(const WeightView& view) {
    return static_cast<T*>(const_cast<void*>(view.data));
  }
  static float Number(const FillRandomParams& params, int64_t row, int64_t col) {
    return RandomNumber(params.numbers, static_cast<uint64_t>(row * params.cols + col));
  }

  // What `out` has of a row of blocks of the whole matrix.
  static void FillBlockRow(const FillRandomParams& params, int64_t block_row) {
    const WeightView& out = params.out;
    const int64_t block = out.scale_block;
    const int64_t top = block_row * block, bottom = std::min(top + block, params.rows);
    const int64_t out_right = params.col_begin + out.cols;
    for (int64_t left = params.col_begin / block * block; left < out_right; left += block) {
      const int64_t right = std::min(left + block, params.cols);
      float amax = 0;
      for (int64_t row = top; row < bottom; ++row) {
        for (int64_t col = left; col < right; ++col) {
          amax = std::max(amax, std::fabs(Number(params, row, col)));
        }
      }
      const float scale = amax == 0 ? 1.0f : amax / 448.0f;
      const int64_t scale_row = (top - params.row_begin + out.row_begin) / block;
      const int64_t scale_col = (left - params.col_begin + out.col_begin) / block;
      const_cast<float*>(out.scales)[scale_row * out.scale_row_stride + scale_col] = scale;
      const int64_t row_end = std::min(bottom, params.row_begin + out.rows);
      for (int64_t row = std::max(top, params.row_begin); row < row_end; ++row) {
        for (int64_t col = std::max(left, params.col_begin); col < std::min(right, out_right);
             ++col) {
          Writable<uint8_t>(
              out)[(row - params.row_begin) * out.row_stride + col - params.col_begin] =
              F32ToF8E4M3(Number(params, row, col) / scale);
        }
      }
    }
  }

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
  const std::shared_ptr<KernelCalls> calls_;
  const RowKernels& kernels_;
};

}  // namespace

std::unique_ptr<ElementwiseOps> MakeCpuElementwiseOps(const CpuContext& context) {
  return std::make_unique<CpuElementwiseOps>(context);
}

}  // namespace sluice
