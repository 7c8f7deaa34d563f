// Unabsorbed latent attention of one head for a range of queries: the work of one task. Keys and
// values are made from the latents a page at a time, and every page is met by all queries before
// the next, so the workspace does not grow with the context.
#pragma once

#include <cstdint>

#include "kernels/base/aligned_buffer.h"
#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/sequence_prompt.h"

namespace sluice {

class MlaPromptTask {
 public:
  // Queries of one task at most.
  static constexpr int64_t kQueriesMax = 1024;

  MlaPromptTask(const AttentionKernels& attention, const RowKernels& rows)
      : attention_(&attention), rows_(&rows) {}

  void Reserve(const MlaDims& dims);

  void Run(const SequencePrompt& params, int64_t head, int64_t query_begin, int64_t query_end);

 private:
  void ExpandPage(const SequencePrompt& params, int64_t head, int64_t page_index, int64_t count);

  static constexpr int64_t kQueryTile = 16;

  const AttentionKernels* attention_;
  const RowKernels* rows_;
  AlignedBuffer memory_;
  // Parts of memory_.
  float* latents_ = nullptr;  // [kPageTokens, kv_dim], for caches that are not f32
  float* panel_ = nullptr;    // [kWeightPanelRows, kv_lora_rank]
  float* keys_ = nullptr;     // [kPageTokens, q_dim]
  float* values_ = nullptr;   // [kPageTokens, v_dim]
  float* scores_ = nullptr;   // [kQueryTile, kPageTokens]
  float* outputs_ = nullptr;  // [kQueriesMax, v_dim]
  float* largest_ = nullptr;  // [kQueriesMax]
  float* sums_ = nullptr;     // [kQueriesMax]
};

}  // namespace sluice
