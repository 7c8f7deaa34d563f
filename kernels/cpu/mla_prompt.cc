#include "kernels/cpu/mla_prompt.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/cpu/carve.h"

namespace sluice {

void MlaPromptTask::Reserve(const MlaDims& dims) {
  CarveParts(&memory_, [&](Carver& carver) {
    carver.Take(&latents_, kPageTokens * dims.kv_dim());
    carver.Take(&panel_, kWeightPanelRows * dims.kv_lora_rank);
    carver.Take(&keys_, kPageTokens * dims.q_dim());
    carver.Take(&values_, kPageTokens * dims.v_dim);
    carver.Take(&scores_, kQueryTile * kPageTokens);
    carver.Take(&outputs_, kQueriesMax * dims.v_dim);
    carver.Take(&largest_, kQueriesMax);
    carver.Take(&sums_, kQueriesMax);
  });
}

void MlaPromptTask::ExpandPage(const SequencePrompt& params, int64_t head, int64_t page_index,
                               int64_t count) {
  const MlaDims& dims = params.dims;
  const float* latents = latents_;
  if (params.cache.dtype == DType::kF32) {
    latents = params.cache.Row<float>(page_index);
  } else {
    rows_->widen_bf16(params.cache.Row<uint16_t>(page_index), count * dims.kv_dim(), latents_);
  }
  const int64_t first_row = head * (dims.nope_dim + dims.v_dim);
  const auto expand = [&](const WeightView& weight, float* out, int64_t out_stride) {
    for (int64_t row = 0; row < weight.rows; row += kWeightPanelRows) {
      const int64_t rows = std::min<int64_t>(kWeightPanelRows, weight.rows - row);
      const WeightPanel panel = WidenWeightRows(*rows_, weight, row, rows, panel_);
      attention_->dot_rows(latents, dims.kv_dim(), count, panel.rows, panel.stride, rows,
                           dims.kv_lora_rank, out + row, out_stride);
    }
  };
  expand(params.kv_b.RowSlice(first_row, dims.nope_dim), keys_, dims.q_dim());
  expand(params.kv_b.RowSlice(first_row + dims.nope_dim, dims.v_dim), values_, dims.v_dim);
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(keys_ + i * dims.q_dim() + dims.nope_dim,
                latents + i * dims.kv_dim() + dims.kv_lora_rank,
                static_cast<size_t>(dims.rope_dim) * sizeof(float));
  }
}

void MlaPromptTask::Run(const SequencePrompt& params, int64_t head, int64_t query_begin,
                        int64_t query_end) {
  const MlaDims& dims = params.dims;
  const int64_t queries = query_end - query_begin;
  const float* q = params.q.Row<float>(query_begin) + head * dims.q_dim();
  std::fill_n(largest_, queries, -std::numeric_limits<float>::infinity());
  std::fill_n(sums_, queries, 0.0f);
  std::fill_n(outputs_, queries * dims.v_dim, 0.0f);

  const int64_t positions = params.first_position + query_end;
  for (int64_t begin = 0; begin < positions; begin += kPageTokens) {
    const int64_t count = std::min<int64_t>(kPageTokens, positions - begin);
    ExpandPage(params, head, params.pages.As<int32_t>()[begin / kPageTokens], count);
    // The first query that sees anything of this page.
    const int64_t first = std::max<int64_t>(0, begin - params.first_position - query_begin);
    for (int64_t tile = first; tile < queries; tile += kQueryTile) {
      const int64_t rows = std::min(kQueryTile, queries - tile);
      attention_->dot_rows(q + tile * params.q.row_stride, params.q.row_stride, rows, keys_,
                           dims.q_dim(), count, dims.q_dim(), scores_, kPageTokens);
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t query = tile + row;
        const int64_t visible = params.first_position + query_begin + query + 1 - begin;
        const float shrink = attention_->softmax_page(
            scores_ + row * kPageTokens, static_cast<int>(std::min(visible, count)), params.scale,
            &largest_[query], &sums_[query]);
        if (shrink != 1.0f) {
          attention_->scale(outputs_ + query * dims.v_dim, dims.v_dim, shrink);
        }
      }
      attention_->accumulate_rows(scores_, kPageTokens, rows, values_, dims.v_dim, count,
                                  dims.v_dim, outputs_ + tile * dims.v_dim, dims.v_dim);
    }
  }
  for (int64_t query = 0; query < queries; ++query) {
    attention_->scale(outputs_ + query * dims.v_dim, dims.v_dim, 1.0f / sums_[query]);
    std::memcpy(params.out.Row<float>(query_begin + query) + head * dims.v_dim,
                outputs_ + query * dims.v_dim, static_cast<size_t>(dims.v_dim) * sizeof(float));
  }
}

}  // namespace sluice
