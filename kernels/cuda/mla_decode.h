// Absorbed attention with DeepSeek-V3's dimensions on the tensor cores, in bf16: queries go into
// the space of the latents (W_UK), attend there (mla_decode.cu), and come back (W_UV).
#pragma once

#include "absl/status/status.h"
#include "kernels/cuda/bf16_copies.h"
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
  // `copies` must outlive the object.
  MlaDecode(const CudaContext& context, Bf16Copies* copies)
      : context_(context), copies_(copies), cublas_(context) {}

  // 128 heads or fewer, a multiple of 16; 128 + 64 columns of q, values of 128, latents of 512; a
  // cache in bf16; q aligned to 16 bytes.
  static bool Takes(const MlaDecodeRequest& request);

  // What is launched depends on the numbers of tokens and heads alone, so that it can be captured.
  absl::Status Run(const MlaDecodeRequest& request);

 private:
  absl::Status RunPiece(const MlaDecodeRequest& request);
  // A row is a head of a token.
  absl::Status Reserve(int64_t tokens, int64_t rows);

  const CudaContext& context_;
  Bf16Copies* const copies_;
  Cublas cublas_;
  CudaScratch nope_, queries_, attended_;     // bf16 [rows, 128], [rows, 576], [rows, 512]
  CudaScratch part_out_, part_lse_, pieces_;  // as in MlaDecodeArgs
};

}  // namespace sluice
