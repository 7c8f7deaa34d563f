// The kernels of fast absorbed attention as the host calls them; conventions as in launch.h.
// DeepSeek-V3's dimensions: latents of 512, k_pe of 64, 128 columns of q before RoPE, values of
// 128.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>
#include <stdint.h>

#include "kernels/cuda/launch.h"

namespace sluice::cuda {

// Of a block of the attention kernel; fewer are padded.
constexpr int kMlaHeads = 64;

// The core, for decoding: out[t, h] = sum over t's sequence of softmax(scale * q . row) * latent.
struct MlaDecodeArgs {
  CUtensorMap q;                 // bf16 [tokens * heads, 576], as bytes; boxes are 64 rows of 128
  const __nv_bfloat16* queries;  // the same
  CUtensorMap cache;             // bf16 [pages * 64, 576]; boxes likewise
  const int32_t* page_table;
  int64_t page_table_stride;
  const int32_t* seq_of_token;  // these two as in AbsorbedArgs
  const int32_t* positions;
  int32_t first_position;
  int32_t tokens, heads;  // heads at most 2 * kMlaHeads, a multiple of 16
  int32_t parts;          // that all work is cut into; parts * groups of heads: at most one per SM
  float scale_log2;       // scale * log2(e)
  __nv_bfloat16* out;     // [tokens * heads, 512]
  // Of tokens that parts share. A part has at most two of them, its first and its last.
  float* part_out;  // [parts, groups, 2, kMlaHeads, 512]
  float* part_lse;  // [parts, groups, 2, kMlaHeads], to base 2
  int2* pieces;     // [tokens]: the first part of each, and how many
};
cudaError_t LaunchMlaDecode(const MlaDecodeArgs& args, cudaStream_t stream);

// q of DeepSeek-V3's heads (128 columns, then 64 for RoPE) in bf16, apart.
struct SplitQueriesArgs {
  const float* q;
  int64_t q_stride;  // a multiple of 4, as q is aligned to 16 bytes
  int32_t tokens, heads;
  __nv_bfloat16* nope;     // [tokens, heads, 128]
  __nv_bfloat16* queries;  // [tokens, heads, 576]: the last 64 columns are written
};
cudaError_t LaunchSplitQueries(const SplitQueriesArgs& args, cudaStream_t stream);

}  // namespace sluice::cuda
