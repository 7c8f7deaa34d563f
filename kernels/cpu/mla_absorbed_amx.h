// Absorbed latent attention in bf16 on AMX, for a block of heads and a group of tokens: the work of
// one task. The cache must be bf16. Heads stand in lanes; keys are rows of the cache as they lie.
#pragma once

#include <cstdint>

#include "kernels/base/aligned_buffer.h"
#include "kernels/cpu/amx_attention.h"
#include "kernels/cpu/mla_absorbed.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/ops/attention.h"

namespace sluice {

class MlaAbsorbedAmxTask {
 public:
  static constexpr int64_t kTokensMax = kAmxEdge;
  static constexpr int64_t kHeadsMax = kAmxEdge;

  MlaAbsorbedAmxTask(const AmxAttentionKernels& amx, const RowKernels& rows)
      : amx_(&amx), rows_(&rows) {}

  // Whether all dimensions are whole steps of tiles.
  static bool Fits(const MlaDims& dims);

  // Grows only.
  void Reserve(const MlaDims& dims);

  void Run(const MlaAbsorbedParams& params, const MlaBlock& block);

 private:
  void ProjectQueries(const MlaAbsorbedParams& params, const MlaBlock& block, int64_t head);
  // `index` counts tokens of the block.
  void Attend(const MlaAbsorbedParams& params, const MlaBlock& block, int64_t index);
  void ProjectOutputs(const MlaAbsorbedParams& params, const MlaBlock& block, int64_t head);

  const AmxAttentionKernels* amx_;
  const RowKernels* rows_;
  AlignedBuffer memory_;
  // Parts of memory_. Matrices per token or head are tiles of one group of 16 rows.
  float* wide_row_ = nullptr;        // [kv_lora_rank]
  uint16_t* narrow_rows_ = nullptr;  // half the rows of a head's weights, when they are not bf16
  char* key_up_ = nullptr;           // W_UK of a head, packed [kv_lora_rank, nope_dim]
  char* token_rows_ = nullptr;       // rows [tokens, nope_dim] of one head
  char* queries_ = nullptr;          // per token: first rows, then packed [heads, kv_dim]
  char* contexts_ = nullptr;         // per head: first rows, then packed [tokens, kv_lora_rank]
  float* outputs_ = nullptr;         // [kv_lora_rank / 16, heads, 16]
  float* scores_ = nullptr;          // [kAmxBlock, heads]
  char* weights_ = nullptr;          // kAmxBlock / 32 tiles
  char* latents_ = nullptr;          // twice as many
  float* largest_ = nullptr;         // [heads]
  float* sums_ = nullptr;            // [heads]
};

}  // namespace sluice
