// Absorbed latent attention for a block of heads and a group of tokens: the work of one task.
//
// Every result is made in an order fixed by its token's position alone: latent queries by rows of
// W_UK rising, scores by kernels' dot products, the softmax page after page of 64 positions,
// outputs by dot products with rows of W_UV. So neither the other tokens, nor the split into tasks,
// nor the instruction set changes a bit.
#pragma once

#include <cstdint>

#include "kernels/base/aligned_buffer.h"
#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/ops/attention.h"

namespace sluice {

inline constexpr int64_t kMlaHeadsMax = 16;  // of one block

// A rectangle of (token, head) pairs.
struct MlaBlock {
  int64_t token_begin, token_end;
  int64_t head_begin, head_end;
};

class MlaAbsorbedTask {
 public:
  MlaAbsorbedTask(const AttentionKernels& attention, const RowKernels& rows)
      : attention_(&attention), rows_(&rows) {}

  // Room for blocks of that many pairs; grows only.
  void Reserve(const MlaDims& dims, int64_t pairs, int64_t heads);

  void Run(const MlaAbsorbedParams& params, const MlaBlock& block);

 private:
  void ProjectQueries(const MlaAbsorbedParams& params, const MlaBlock& block);
  // Pair (token, heads' first) lies at `queries` and `contexts`; heads are `head_stride` pairs
  // apart.
  void Attend(const MlaAbsorbedParams& params, int64_t token, int64_t heads, int64_t head_stride,
              const float* queries, float* contexts);
  void ProjectOutputs(const MlaAbsorbedParams& params, const MlaBlock& block);

  const AttentionKernels* attention_;
  const RowKernels* rows_;
  AlignedBuffer memory_;
  // Parts of memory_; pairs lie head by head, and token by token inside a head.
  float* queries_ = nullptr;   // [pairs, kv_dim]: latent query, then rotated query
  float* contexts_ = nullptr;  // [pairs, kv_lora_rank]
  float* panel_ = nullptr;     // [kWeightPanelRows, kv_lora_rank]
  float* scores_ = nullptr;    // [heads, kPageTokens]
  float* page_ = nullptr;      // [kPageTokens, kv_dim], for caches that are not f32
};

}  // namespace sluice
