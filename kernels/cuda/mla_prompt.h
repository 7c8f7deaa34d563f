// Attention of prompts with DeepSeek-V3's dimensions on the tensor cores, in bf16 and unabsorbed:
// the latents of a pass (mla_prompt_plan.h) are gathered from their pages and multiplied by kv_b,
// which gives the keys and values of all heads; then causal attention (mla_prompt.cu).
#pragma once

#include "absl/status/status.h"
#include "kernels/cuda/bf16_copies.h"
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/ops/attention.h"

namespace sluice {

class MlaPrompt {
 public:
  // `copies` must outlive the object.
  MlaPrompt(const CudaContext& context, Bf16Copies* copies)
      : context_(context), copies_(copies), cublas_(context) {}

  // 128 + 64 columns of q, values of 128, latents of 512, any number of heads; a cache in bf16.
  // MlaDecode takes no others.
  static bool Takes(const MlaDims& dims, DType cache);
  // The same, and whether addresses and strides suit.
  static bool Takes(const MlaPromptParams& params);

  // As kernels/ops/attention.h has it, for what Takes.
  absl::Status Run(const MlaPromptParams& params);

 private:
  absl::Status Reserve(int64_t heads, int64_t lse_count);

  const CudaContext& context_;
  Bf16Copies* const copies_;
  Cublas cublas_;
  CudaScratch latents_;   // bf16 [kPromptPassRows, 576]
  CudaScratch expanded_;  // bf16 [kPromptPassRows, heads * 256]
  CudaScratch lse_;       // f32 [tokens, heads]
  CudaScratch counter_;
};

}  // namespace sluice
