// Multi-head latent attention (MLA) over a paged cache of latents.
//
// The cache holds one row per token and layer: kv_lora_rank elements of the normed latent c, then
// rope_dim elements of the rotated shared key k_pe, all f32 or bf16. A cache in FP8 has the latent
// in e4m3, one f32 scale for each kF8KvGroup of its elements (the largest / 448), and k_pe in bf16,
// which FP8's range would spoil: 656 bytes a row at DeepSeek-V3's dimensions. As a tensor it is
// bytes, of type kF8E4M3. Pages are kPageTokens rows. Which pages hold a sequence, and in which
// order, says its row of `page_table`. RoPE rotates interleaved pairs (x[2i], x[2i+1]), as the
// checkpoints are laid out.
//
// Threads, ownership and errors as in kernels/ops/linear.h.
// Source: deepseek-ai/DeepSeek-V3 inference/model.py, class MLA (absorbed form: attn_impl
// "absorb").
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/base/tensor_view.h"
#include "kernels/ops/attention_layout.h"
#include "kernels/ops/stream.h"

namespace sluice {

inline constexpr int kPageTokens = 64;

// Elements of a cache's row, as its tensor counts them: bytes of one in FP8.
constexpr int64_t KvRowElements(int64_t kv_lora_rank, int64_t rope_dim, DType dtype) {
  return dtype == DType::kF8E4M3 ? F8KvRowBytes(kv_lora_rank, rope_dim) : kv_lora_rank + rope_dim;
}
constexpr int64_t KvRowBytes(int64_t kv_lora_rank, int64_t rope_dim, DType dtype) {
  return KvRowElements(kv_lora_rank, rope_dim, dtype) * static_cast<int64_t>(DTypeBytes(dtype));
}

// Pages that so many positions of one sequence take.
constexpr int64_t PagesFor(int64_t positions) {
  return (positions + kPageTokens - 1) / kPageTokens;
}

// Dimensions of one attention layer as this rank sees it.
struct MlaDims {
  int num_heads = 0;  // of this rank
  int nope_dim = 0;   // qk_nope_head_dim
  int rope_dim = 0;   // qk_rope_head_dim
  int v_dim = 0;      // v_head_dim
  int kv_lora_rank = 0;
  int kv_dim() const { return kv_lora_rank + rope_dim; }
  int q_dim() const { return nope_dim + rope_dim; }
};

// Rotates the rope part of q in place; norms the latent, rotates k_pe, and writes both to the
// cache.
struct MlaCacheWriteParams {
  MlaDims dims;
  TensorView q;        // f32 [T, num_heads * q_dim]: per head nope_dim, then rope_dim; in place
  TensorView kv_a;     // f32 [T, kv_dim]: latent before its norm, then k_pe before rotation
  TensorView kv_norm;  // f32 [kv_lora_rank]
  float eps = 1e-6f;
  TensorView cos_sin;    // f32 [positions_max, rope_dim]: rope_dim / 2 cosines, then as many sines
  TensorView positions;  // i32 [T]
  TensorView kv_rows;    // i32 [T]: page * kPageTokens + offset of each token; -1 writes nothing
  TensorView cache;      // f32, bf16 or FP8 [num_pages, kPageTokens, KvRowElements]
};

// Absorbed: every head attends over the latents themselves.
//   qa[h] = W_UK[h]^T q_nope[h];  score = scale * (qa . c + q_pe . k_pe);  ctx[h] = sum softmax *
//   c; out[h] = W_UV[h] ctx[h]
// Token t attends to positions 0 .. positions[t] of its sequence, all already in the cache. Its
// result depends on those rows alone: not on the other tokens of the call, nor on which pages hold
// the rows.
struct MlaAbsorbedParams {
  MlaDims dims;
  TensorView q;      // f32 [T, num_heads * q_dim], rotated
  WeightView kv_b;   //     [num_heads * (nope_dim + v_dim), kv_lora_rank]: per head W_UK, then W_UV
  TensorView cache;  // f32, bf16 or FP8 [num_pages, kPageTokens, KvRowElements]
  TensorView page_table;    // i32 [num_seqs, pages_per_seq_max]
  TensorView seq_of_token;  // i32 [T]: row of page_table
  TensorView positions;     // i32 [T]
  float scale = 1.0f;       // softmax scale, YaRN's mscale^2 included
  TensorView out;           // f32 [T, num_heads * v_dim]
};

// Some tokens of one prompt: rows [token_begin, token_begin + num_tokens) of the queries, at
// positions first_position, first_position + 1, ... of the sequence that `seq` names.
struct PromptChunk {
  int64_t token_begin = 0;
  int64_t num_tokens = 0;
  int64_t seq = 0;  // row of page_table
  int64_t first_position = 0;
};

// Unabsorbed, for prompts: keys and values of every head are made from the latents. A query attends
// to all positions of its sequence up to its own, all already in the cache. Chunks are of any
// lengths and do not overlap; rows of `out` that belong to none are left alone.
struct MlaPromptParams {
  MlaDims dims;
  TensorView q;           // f32 [T, num_heads * q_dim], rotated
  WeightView kv_b;        // as above
  TensorView cache;       // as above
  TensorView page_table;  // as above
  absl::Span<const PromptChunk> chunks;
  float scale = 1.0f;
  TensorView out;  // f32 [T, num_heads * v_dim]
};

// A layer's kv_b, and how the ops will be called with it.
struct MlaWeights {
  MlaDims dims;
  WeightView kv_b;
  DType cache = DType::kF32;
};

class AttentionOps {
 public:
  virtual ~AttentionOps() = default;

  // Makes now, and keeps until the result goes, what calls with this kv_b would each make for
  // themselves: a copy in another type; null if there is nothing to be made. Until then the weight
  // must stay where and as it is. The result goes before its backend. ResourceExhausted when the
  // device has no room.
  virtual absl::StatusOr<std::shared_ptr<const void>> Prepare(const MlaWeights& /*weights*/,
                                                              StreamId /*stream*/) {
    return nullptr;
  }
  virtual absl::Status MlaCacheWrite(const MlaCacheWriteParams& params, StreamId stream) = 0;
  virtual absl::Status MlaAbsorbed(const MlaAbsorbedParams& params, StreamId stream) = 0;
  virtual absl::Status MlaPrompt(const MlaPromptParams& params, StreamId stream) = 0;
};

}  // namespace sluice
