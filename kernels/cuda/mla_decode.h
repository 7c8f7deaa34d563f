// Absorbed attention with DeepSeek-V3's dimensions on the tensor cores, in bf16: queries go into
// the space of the latents (W_UK), attend there (mla_decode.cu), and come back (W_UV).
#pragma once

#include <unordered_map>

#include "absl/status/status.h"
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/launch.h"
#include "kernels/ops/attention.h"

namespace sluice {

// What is asked: `AbsorbedArgs` of the general kernel, and the shapes it has no use for.
struct MlaDecodeRequest {
  cuda::AbsorbedArgs args;
  WeightView kv_b;
  int64_t cache_pages = 0;
};

class MlaDecode {
 public:
  explicit MlaDecode(const CudaContext& context) : context_(context), cublas_(context) {}

  // 128 heads or fewer, a multiple of 16; 128 + 64 columns of q, values of 128, latents of 512; a
  // cache in bf16; q aligned to 16 bytes.
  static bool Takes(const MlaDecodeRequest& request);

  // A layer's first call makes a bf16 copy of its kv_b, unless it is bf16 already, and the first
  // call with more tokens than any before allocates scratch memory; both wait for the stream. What
  // is launched depends on the numbers of tokens and heads alone, so that it can be captured.
  absl::Status Run(const MlaDecodeRequest& request);

 private:
  struct Copy {
    WeightView of;
    CudaMemory memory;
  };

  // kv_b in bf16, [heads * 256, 512] without gaps.
  absl::StatusOr<const void*> Bf16Weights(const MlaDecodeRequest& request);
  absl::Status Reserve(int64_t tokens, int64_t rows);

  const CudaContext& context_;
  Cublas cublas_;
  std::unordered_map<const void*, Copy> weights_;  // by kv_b's data
  CudaMemory nope_, queries_, attended_;           // bf16 [rows, 128], [rows, 576], [rows, 512]
  CudaMemory part_out_, part_lse_, pieces_;        // as in MlaDecodeArgs
  int64_t tokens_ = 0, rows_ = 0;  // that there is room for; a row is a head of a token
};

}  // namespace sluice
