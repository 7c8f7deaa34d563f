#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/launch.h"
#include "kernels/ops/checks.h"

namespace sluice {
namespace {

class CudaSamplingOps final : public SamplingOps {
 public:
  explicit CudaSamplingOps(const CudaContext& context) : context_(context) {}

  absl::Status Sample(const SampleParams& params, StreamId) override {
    context_.calls->Count("sample", "cuda");
    SLUICE_RETURN_IF_ERROR(CheckSample(params));
    const int64_t rows = params.logits.rows();
    const int64_t vocab = params.logits.dims[1];
    if (vocab > cuda::kSampleVocabMax) {
      return absl::InvalidArgumentError(absl::StrCat("logits: a vocabulary of ", vocab,
                                                     ", sampling on a GPU takes at most ",
                                                     cuda::kSampleVocabMax));
    }
    return CudaStatus(cuda::LaunchSample({.logits = params.logits.As<float>(),
                                          .logits_stride = params.logits.row_stride,
                                          .rows = params.rows,
                                          .count = static_cast<int32_t>(rows),
                                          .vocab = static_cast<int32_t>(vocab),
                                          .bias_ids = params.bias_ids.As<int32_t>(),
                                          .bias_values = params.bias_values.As<float>(),
                                          .banned_ids = params.banned_ids.As<int32_t>(),
                                          .prompt_mask = params.prompt_mask.As<uint8_t>(),
                                          .mask_stride = params.prompt_mask.row_stride,
                                          .output_counts = params.output_counts.As<int32_t>(),
                                          .counts_stride = params.output_counts.row_stride,
                                          .tokens = params.tokens.As<int32_t>(),
                                          .tokens_by_slot = params.tokens_by_slot.As<int32_t>(),
                                          .logprobs = params.logprobs.As<float>(),
                                          .top_ids = params.top_ids.As<int32_t>(),
                                          .top_ids_stride = params.top_ids.row_stride,
                                          .top_logprobs = params.top_logprobs.As<float>(),
                                          .top_logprobs_stride = params.top_logprobs.row_stride,
                                          .not_finite = params.not_finite.As<uint8_t>()},
                                         context_.stream),
                      "sampling");
  }

 private:
  const CudaContext& context_;
};

}  // namespace

std::unique_ptr<SamplingOps> MakeCudaSamplingOps(const CudaContext& context) {
  return std::make_unique<CudaSamplingOps>(context);
}

}  // namespace sluice
