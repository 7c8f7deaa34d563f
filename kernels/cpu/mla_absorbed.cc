#include "kernels/cpu/mla_absorbed.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/cpu/carve.h"

namespace sluice {

void MlaAbsorbedTask::Reserve(const MlaDims& dims, int64_t pairs, int64_t heads) {
  CarveParts(&memory_, [&](Carver& carver) {
    carver.Take(&queries_, pairs * dims.kv_dim());
    carver.Take(&contexts_, pairs * dims.kv_lora_rank);
    carver.Take(&panel_, kWeightPanelRows * dims.kv_lora_rank);
    carver.Take(&scores_, heads * kPageTokens);
    carver.Take(&page_, kPageTokens * dims.kv_dim());
  });
}

void MlaAbsorbedTask::Run(const MlaAbsorbedParams& params, const MlaBlock& block) {
  const int64_t tokens = block.token_end - block.token_begin;
  const int64_t heads = block.head_end - block.head_begin;
  ProjectQueries(params, block);
  for (int64_t token = 0; token < tokens; ++token) {
    Attend(params, block.token_begin + token, heads, tokens,
           queries_ + token * params.dims.kv_dim(), contexts_ + token * params.dims.kv_lora_rank);
  }
  ProjectOutputs(params, block);
}

void MlaAbsorbedTask::ProjectQueries(const MlaAbsorbedParams& params, const MlaBlock& block) {
  const MlaDims& dims = params.dims;
  const int64_t tokens = block.token_end - block.token_begin;
  for (int64_t head = block.head_begin; head < block.head_end; ++head) {
    const float* q = params.q.Row<float>(block.token_begin) + head * dims.q_dim();
    float* queries = queries_ + (head - block.head_begin) * tokens * dims.kv_dim();
    for (int64_t token = 0; token < tokens; ++token) {
      float* query = queries + token * dims.kv_dim();
      std::memset(query, 0, static_cast<size_t>(dims.kv_lora_rank) * sizeof(float));
      std::memcpy(query + dims.kv_lora_rank, q + token * params.q.row_stride + dims.nope_dim,
                  static_cast<size_t>(dims.rope_dim) * sizeof(float));
    }
    const WeightView key_up =
        params.kv_b.RowSlice(head * (dims.nope_dim + dims.v_dim), dims.nope_dim);
    for (int64_t row = 0; row < dims.nope_dim; row += kWeightPanelRows) {
      const int64_t count = std::min<int64_t>(kWeightPanelRows, dims.nope_dim - row);
      const WeightPanel panel = WidenWeightRows(*rows_, key_up, row, count, panel_);
      attention_->accumulate_rows(q + row, params.q.row_stride, tokens, panel.rows, panel.stride,
                                  count, dims.kv_lora_rank, queries, dims.kv_dim());
    }
  }
}

void MlaAbsorbedTask::Attend(const MlaAbsorbedParams& params, int64_t token, int64_t heads,
                             int64_t head_stride, const float* queries, float* contexts) {
  const MlaDims& dims = params.dims;
  const int64_t query_stride = head_stride * dims.kv_dim();
  const int64_t context_stride = head_stride * dims.kv_lora_rank;
  const int32_t* pages = params.page_table.Row<int32_t>(params.seq_of_token.As<int32_t>()[token]);
  const int64_t positions = int64_t{params.positions.As<int32_t>()[token]} + 1;

  float largest[kMlaHeadsMax];
  float sums[kMlaHeadsMax] = {};
  for (int64_t head = 0; head < heads; ++head) {
    largest[head] = -std::numeric_limits<float>::infinity();
    std::memset(contexts + head * context_stride, 0,
                static_cast<size_t>(dims.kv_lora_rank) * sizeof(float));
  }
  for (int64_t begin = 0; begin < positions; begin += kPageTokens) {
    const int count = static_cast<int>(std::min<int64_t>(kPageTokens, positions - begin));
    const int64_t page_index = pages[begin / kPageTokens];
    const float* page = page_;
    if (params.cache.dtype == DType::kF32) {
      page = params.cache.Row<float>(page_index);
    } else {
      rows_->widen_bf16(params.cache.Row<uint16_t>(page_index), count * dims.kv_dim(), page_);
    }
    attention_->dot_rows(queries, query_stride, heads, page, dims.kv_dim(), count, dims.kv_dim(),
                         scores_, kPageTokens);
    for (int64_t head = 0; head < heads; ++head) {
      const float shrink = attention_->softmax_page(scores_ + head * kPageTokens, count,
                                                    params.scale, &largest[head], &sums[head]);
      if (shrink != 1.0f) {
        attention_->scale(contexts + head * context_stride, dims.kv_lora_rank, shrink);
      }
    }
    attention_->accumulate_rows(scores_, kPageTokens, heads, page, dims.kv_dim(), count,
                                dims.kv_lora_rank, contexts, context_stride);
  }
  for (int64_t head = 0; head < heads; ++head) {
    attention_->scale(contexts + head * context_stride, dims.kv_lora_rank, 1.0f / sums[head]);
  }
}

void MlaAbsorbedTask::ProjectOutputs(const MlaAbsorbedParams& params, const MlaBlock& block) {
  const MlaDims& dims = params.dims;
  const int64_t tokens = block.token_end - block.token_begin;
  for (int64_t head = block.head_begin; head < block.head_end; ++head) {
    const float* contexts = contexts_ + (head - block.head_begin) * tokens * dims.kv_lora_rank;
    float* out = params.out.Row<float>(block.token_begin) + head * dims.v_dim;
    const WeightView value_up =
        params.kv_b.RowSlice(head * (dims.nope_dim + dims.v_dim) + dims.nope_dim, dims.v_dim);
    for (int64_t row = 0; row < dims.v_dim; row += kWeightPanelRows) {
      const int64_t count = std::min<int64_t>(kWeightPanelRows, dims.v_dim - row);
      const WeightPanel panel = WidenWeightRows(*rows_, value_up, row, count, panel_);
      attention_->dot_rows(contexts, dims.kv_lora_rank, tokens, panel.rows, panel.stride, count,
                           dims.kv_lora_rank, out + row, params.out.row_stride);
    }
  }
}

}  // namespace sluice
