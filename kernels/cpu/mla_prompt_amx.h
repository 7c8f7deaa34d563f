// Unabsorbed latent attention in bf16 on AMX: some heads and a range of queries, the work of one
// task. Keys and values of a block of positions are made from the latents, met by all queries, and
// forgotten; so the workspace does not grow with the context.
#pragma once

#include <cstdint>

#include "kernels/base/aligned_buffer.h"
#include "kernels/cpu/amx_attention.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/sequence_prompt.h"

namespace sluice {

class MlaPromptAmxTask {
 public:
  static constexpr int64_t kQueriesMax = 1024;
  static constexpr int64_t kHeadsMax = 2;

  MlaPromptAmxTask(const AmxAttentionKernels& amx, const RowKernels& rows)
      : amx_(&amx), rows_(&rows) {}

  // Whether all dimensions are whole steps of tiles.
  static bool Fits(const MlaDims& dims);

  // Room for tasks of that many heads and queries; grows only.
  void Reserve(const MlaDims& dims, int64_t heads, int64_t queries);

  void Run(const SequencePrompt& params, int64_t head_begin, int64_t head_end, int64_t query_begin,
           int64_t query_end);

 private:
  struct Head {
    char* key_up;    // W_UK, packed [nope_dim, kv_lora_rank]
    char* value_up;  // W_UV, rows [v_dim, kv_lora_rank]
    char* queries;   // packed [queries, q_dim]
    float* outputs;  // [queries / 16, v_dim, 16]
    float* largest;  // [queries]
    float* sums;     // [queries]
  };

  void StartHead(const SequencePrompt& params, int64_t head, int64_t query_begin, int64_t query_end,
                 Head* state);
  void LoadBlock(const SequencePrompt& params, int64_t begin, int64_t positions);
  void AttendBlock(const SequencePrompt& params, const Head& head, int64_t begin, int64_t positions,
                   int64_t query_begin, int64_t query_end);

  const AmxAttentionKernels* amx_;
  const RowKernels* rows_;
  AlignedBuffer memory_;
  // Parts of memory_.
  Head heads_[kHeadsMax];
  float* wide_row_ = nullptr;        // [kv_lora_rank]
  uint16_t* narrow_rows_ = nullptr;  // bf16 of weights, or of a page, that are not bf16 themselves
  char* latents_ = nullptr;          // rows [kAmxBlock, kv_dim]
  char* packed_latents_ = nullptr;   // packed [kAmxBlock, kv_lora_rank]
  char* keys_ = nullptr;             // rows [kAmxBlock, q_dim]
  char* values_ = nullptr;           // rows [v_dim, kAmxBlock]
  float* scores_ = nullptr;          // [kAmxBlock, 32]
  char* weights_ = nullptr;          // packed [32, kAmxBlock]
};

}  // namespace sluice
