// Attention of prompts with DeepSeek-V3's dimensions on the tensor cores, in bf16 and unabsorbed:
// the latents of a pass (mla_prompt_plan.h) are gathered from their pages and multiplied by kv_b,
// which gives the keys and values of all heads; then causal attention (mla_prompt.cu).
#pragma once

#include "absl/status/status.h"
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/ops/attention.h"

namespace sluice {

class MlaPrompt {
 public:
  explicit MlaPrompt(const CudaContext& context) : context_(context), cublas_(context) {}

  // 128 + 64 columns of q, values of 128, latents of 512, any number of heads; a cache in bf16.
  static bool Takes(const MlaPromptParams& params);

  // As kernels/ops/attention.h has it, for what Takes.
  // Scratch memory (kPromptPassRows keys and values of all heads, and kv_b in bf16 unless it is) is
  // allocated by the first call with more heads than any before; what pieces of long sequences are
  // put together by, by the first with more tokens. Those calls wait for the stream.
  absl::Status Run(const MlaPromptParams& params);

 private:
  absl::Status Reserve(int64_t heads, int64_t lse_count);
  // kv_b in bf16, [heads * 256, 512] without gaps.
  absl::StatusOr<const void*> Bf16Weights(const WeightView& kv_b);

  const CudaContext& context_;
  Cublas cublas_;
  CudaMemory latents_;   // bf16 [kPromptPassRows, 576]
  CudaMemory expanded_;  // bf16 [kPromptPassRows, heads * 256]
  CudaMemory weights_;   // bf16 [heads * 256, 512]
  CudaMemory lse_;       // f32 [tokens, heads]
  CudaMemory counter_;
  int64_t heads_ = 0, lse_count_ = 0;  // that there is room for
};

}  // namespace sluice
