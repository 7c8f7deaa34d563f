// Sampling on the CPU: rows are independent, one task each.
#include <algorithm>
#include <bit>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "kernels/cpu/cpu_context.h"
#include "kernels/cpu/sample_row.h"
#include "kernels/ops/checks.h"

namespace sluice {
namespace {

absl::Status CheckIds(absl::string_view what, int64_t row, const TensorView& ids, int32_t begin,
                      int32_t end, int64_t vocab) {
  if (begin >= end) return absl::OkStatus();
  if (begin < 0 || end > ids.rows()) {
    return absl::InvalidArgumentError(absl::StrCat("sampling row ", row, ": ", what, " [", begin,
                                                   ", ", end, ") of ", ids.rows(), " entries"));
  }
  for (int32_t i = begin; i < end; ++i) {
    const int32_t id = ids.As<int32_t>()[i];
    if (id < 0 || id >= vocab) {
      return absl::InvalidArgumentError(absl::StrCat("sampling row ", row, ": ", what, " ", id,
                                                     " is outside the vocabulary of ", vocab));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRow(const SampleParams& params, int64_t index) {
  const SamplingRow& row = params.rows[index];
  const int64_t vocab = params.logits.dims[1];
  const int64_t slots = params.tokens_by_slot.rows();
  if (row.slot < 0 || row.slot >= slots) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampling row ", index, ": slot ", row.slot, " of ", slots));
  }
  SLUICE_RETURN_IF_ERROR(
      CheckIds("bias", index, params.bias_ids, row.bias_begin, row.bias_end, vocab));
  SLUICE_RETURN_IF_ERROR(
      CheckIds("banned", index, params.banned_ids, row.banned_begin, row.banned_end, vocab));
  const bool penalized = row.repetition_penalty != 1.0f || row.presence_penalty != 0.0f ||
                         row.frequency_penalty != 0.0f;
  if ((penalized && params.prompt_mask.data == nullptr) ||
      ((penalized || row.counts_tokens) && params.output_counts.data == nullptr)) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampling row ", index, ": penalties without prompt_mask and output_counts"));
  }
  const int64_t top_max = params.top_ids.data == nullptr ? 0 : params.top_ids.dims[1];
  if (row.num_logprobs > std::min(top_max, vocab)) {
    return absl::InvalidArgumentError(absl::StrCat("sampling row ", index, ": ", row.num_logprobs,
                                                   " logprobs, room for ",
                                                   std::min(top_max, vocab)));
  }
  if (row.num_logprobs >= 0 && params.logprobs.data == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampling row ", index, ": logprobs asked for, none given room"));
  }
  return absl::OkStatus();
}

class CpuSamplingOps final : public SamplingOps {
 public:
  explicit CpuSamplingOps(const CpuContext& context) : pool_(context.pool), calls_(context.calls) {
    const SamplingKernels& kernels = SLUICE_CHOOSE_KERNELS(context.isa, GetSamplingKernels);
    for (int i = 0; i < pool_.threads(); ++i) samplers_.emplace_back(kernels);
  }

  absl::Status Sample(const SampleParams& params, StreamId) override {
    calls_->Count("sample", "cpu");
    SLUICE_RETURN_IF_ERROR(CheckSample(params));
    for (int64_t row = 0; row < params.logits.rows(); ++row) {
      SLUICE_RETURN_IF_ERROR(CheckRow(params, row));
    }
    pool_.ParallelFor(params.logits.rows(),
                      [&](int64_t row, int worker) { SampleOne(params, row, samplers_[worker]); });
    return absl::OkStatus();
  }

 private:
  static bool AllFinite(const float* x, int64_t n) {
    uint32_t odd = 0;
    for (int64_t i = 0; i < n; ++i) {
      odd |= (std::bit_cast<uint32_t>(x[i]) & 0x7f800000u) == 0x7f800000u ? 1 : 0;
    }
    return odd == 0;
  }

  static void SampleOne(const SampleParams& params, int64_t index, RowSampler& sampler) {
    const SamplingRow& row = params.rows[index];
    SampleRowTables tables;
    tables.logits = params.logits.Row<float>(index);
    tables.vocab = params.logits.dims[1];
    tables.bias_ids = params.bias_ids.As<int32_t>();
    tables.bias_values = params.bias_values.As<float>();
    tables.banned_ids = params.banned_ids.As<int32_t>();
    if (params.prompt_mask.data != nullptr) {
      tables.prompt_mask = params.prompt_mask.Row<uint8_t>(row.slot);
    }
    if (params.output_counts.data != nullptr) {
      tables.output_counts = params.output_counts.Row<int32_t>(row.slot);
    }
    sampler.Reserve(tables.vocab);
    if (params.not_finite.data != nullptr) {
      params.not_finite.As<uint8_t>()[index] = AllFinite(tables.logits, tables.vocab) ? 0 : 1;
    }
    const int32_t token = sampler.Sample(row, tables);
    params.tokens.As<int32_t>()[index] = token;
    params.tokens_by_slot.As<int32_t>()[row.slot] = token;
    if (row.num_logprobs < 0) return;
    const bool top = params.top_ids.data != nullptr;
    params.logprobs.As<float>()[index] =
        sampler.Logprobs(row, tables, token, top ? params.top_ids.Row<int32_t>(index) : nullptr,
                         top ? params.top_logprobs.Row<float>(index) : nullptr);
  }

  ThreadPool& pool_;
  const std::shared_ptr<KernelCalls> calls_;
  std::vector<RowSampler> samplers_;  // one per worker
};

}  // namespace

std::unique_ptr<SamplingOps> MakeCpuSamplingOps(const CpuContext& context) {
  return std::make_unique<CpuSamplingOps>(context);
}

}  // namespace sluice
