#include <memory>

#include "kernels/base/status.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/launch.h"
#include "kernels/ops/checks.h"

namespace sluice {
namespace {

class CudaSamplingOps final : public SamplingOps {
 public:
  explicit CudaSamplingOps(const CudaContext& context) : context_(context) {}
  ~CudaSamplingOps() override { cudaFree(values_); }

  absl::Status Sample(const SampleParams& params, StreamId) override {
    SLUICE_RETURN_IF_ERROR(CheckSample(params));
    const int64_t rows = params.logits.rows();
    const int64_t vocab = params.logits.dims[1];
    SLUICE_RETURN_IF_ERROR(Reserve(rows * vocab));
    return CudaStatus(cuda::LaunchSample({.logits = params.logits.As<float>(),
                                          .logits_stride = params.logits.row_stride,
                                          .values = values_,
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
  absl::Status Reserve(int64_t elements) {
    if (elements <= capacity_) return absl::OkStatus();
    SLUICE_RETURN_IF_ERROR(
        CudaStatus(cudaStreamSynchronize(context_.stream), "waiting for the stream"));
    SLUICE_RETURN_IF_ERROR(CudaStatus(cudaFree(values_), "freeing memory for sampling"));
    values_ = nullptr;
    capacity_ = 0;
    SLUICE_RETURN_IF_ERROR(
        CudaStatus(cudaMalloc(reinterpret_cast<void**>(&values_), elements * sizeof(float)),
                   "memory for sampling"));
    capacity_ = elements;
    return absl::OkStatus();
  }

  const CudaContext& context_;
  float* values_ = nullptr;  // logits on their way to a token
  int64_t capacity_ = 0;
};

}  // namespace

std::unique_ptr<SamplingOps> MakeCudaSamplingOps(const CudaContext& context) {
  return std::make_unique<CudaSamplingOps>(context);
}

}  // namespace sluice
