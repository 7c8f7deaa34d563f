#include "kernels/cpu/mla_prompt_amx.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/cpu/carve.h"

namespace sluice {
namespace {

constexpr int64_t kQueryTile = 2 * kAmxEdge;

int64_t RoundUp(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace

bool MlaPromptAmxTask::Fits(const MlaDims& dims) {
  return dims.nope_dim % kAmxStep == 0 && dims.rope_dim % kAmxStep == 0 &&
         dims.v_dim % kAmxStep == 0 && dims.kv_lora_rank % kAmxStep == 0;
}

void MlaPromptAmxTask::Reserve(const MlaDims& dims, int64_t heads, int64_t queries) {
  const int64_t tiled = RoundUp(queries, kQueryTile);
  CarveParts(&memory_, [&](Carver& carver) {
    for (Head* head = heads_; head != heads_ + heads; ++head) {
      carver.Take(&head->key_up, dims.nope_dim * dims.kv_lora_rank * 2);
      carver.Take(&head->value_up, dims.v_dim * dims.kv_lora_rank * 2);
      carver.Take(&head->queries, tiled * dims.q_dim() * 2);
      carver.Take(&head->outputs, tiled * dims.v_dim);
      carver.Take(&head->largest, tiled);
      carver.Take(&head->sums, tiled);
    }
    carver.Take(&wide_row_, dims.kv_lora_rank);
    carver.Take(&narrow_rows_, std::max((dims.nope_dim + dims.v_dim) * dims.kv_lora_rank,
                                        kPageTokens * dims.kv_dim()));
    carver.Take(&latents_, kAmxBlock * dims.kv_dim() * 2);
    carver.Take(&packed_latents_, kAmxBlock * dims.kv_lora_rank * 2);
    carver.Take(&keys_, kAmxBlock * dims.q_dim() * 2);
    carver.Take(&values_, dims.v_dim * kAmxBlock * 2);
    carver.Take(&scores_, kAmxBlock * kQueryTile);
    carver.Take(&weights_, kAmxBlock * kQueryTile * 2);
  });
}

void MlaPromptAmxTask::StartHead(const SequencePrompt& params, int64_t head, int64_t query_begin,
                                 int64_t query_end, Head* state) {
  const MlaDims& dims = params.dims;
  const int64_t rank = dims.kv_lora_rank;
  const WeightView weight =
      params.kv_b.RowSlice(head * (dims.nope_dim + dims.v_dim), dims.nope_dim + dims.v_dim);
  const Bf16Rows rows = RoundWeight(*rows_, weight, wide_row_, narrow_rows_);
  amx_->pack_bf16(rows.rows, rows.stride, dims.nope_dim, rank, state->key_up);
  amx_->tile_rows(rows.rows + dims.nope_dim * rows.stride, rows.stride, dims.v_dim, rank,
                  state->value_up);

  const int64_t queries = query_end - query_begin;
  const int64_t tiled = RoundUp(queries, kQueryTile);
  const int64_t packed_bytes = tiled * dims.q_dim() * 2;
  if (tiled != queries) {  // pack_f32 fills whole groups only
    const int64_t last_tile_bytes = kQueryTile * dims.q_dim() * 2;
    std::memset(state->queries + packed_bytes - last_tile_bytes, 0,
                static_cast<size_t>(last_tile_bytes));
  }
  amx_->pack_f32(params.q.Row<float>(query_begin) + head * dims.q_dim(), params.q.row_stride,
                 queries, dims.q_dim(), state->queries);
  std::fill_n(state->outputs, tiled * dims.v_dim, 0.0f);
  std::fill_n(state->largest, tiled, -std::numeric_limits<float>::infinity());
  std::fill_n(state->sums, tiled, 0.0f);
}

// The latents of positions [begin, begin + positions) as tiles of both kinds. Rows up to the next
// multiple of 32 are zero.
void MlaPromptAmxTask::LoadBlock(const SequencePrompt& params, int64_t begin, int64_t positions) {
  const int64_t kv_dim = params.dims.kv_dim();
  const int64_t group_bytes = kAmxEdge * kv_dim * 2;
  const int32_t* pages = params.pages.As<int32_t>() + begin / kPageTokens;
  for (int64_t done = 0; done < positions; done += kPageTokens) {
    const int64_t rows = std::min<int64_t>(kPageTokens, positions - done);
    const int64_t page = pages[done / kPageTokens];
    const uint16_t* latents = narrow_rows_;
    if (params.cache.dtype == DType::kBF16) {
      latents = params.cache.Row<uint16_t>(page);
    } else {
      rows_->narrow_bf16(params.cache.Row<float>(page), rows * kv_dim, narrow_rows_);
    }
    amx_->tile_rows(latents, kv_dim, rows, kv_dim, latents_ + done / kAmxEdge * group_bytes);
  }
  const int64_t groups = RoundUp(positions, kAmxEdge) / kAmxEdge;
  const int64_t tiled_groups = RoundUp(positions, kAmxStep) / kAmxEdge;
  std::memset(latents_ + groups * group_bytes, 0,
              static_cast<size_t>((tiled_groups - groups) * group_bytes));
  const int64_t rank_steps = params.dims.kv_lora_rank / kAmxStep;
  const int64_t kv_steps = kv_dim / kAmxStep;
  for (int64_t group = 0; group < tiled_groups; ++group) {
    for (int64_t step = 0; step < rank_steps; ++step) {
      amx_->transpose_tile(latents_ + (group * kv_steps + step) * kAmxTileBytes,
                           packed_latents_ + (group * rank_steps + step) * kAmxTileBytes);
    }
  }
}

void MlaPromptAmxTask::AttendBlock(const SequencePrompt& params, const Head& head, int64_t begin,
                                   int64_t positions, int64_t query_begin, int64_t query_end) {
  const MlaDims& dims = params.dims;
  const int64_t rank = dims.kv_lora_rank;
  const int64_t tiled = RoundUp(positions, kAmxStep);
  const int64_t kv_steps = dims.kv_dim() / kAmxStep;
  const int64_t key_steps = dims.q_dim() / kAmxStep;
  const int64_t nope_bytes = dims.nope_dim / kAmxStep * kAmxTileBytes;
  const int64_t rope_bytes = dims.rope_dim / kAmxStep * kAmxTileBytes;
  amx_->product(TiledRows(latents_, kv_steps), tiled, head.key_up, dims.nope_dim, rank,
                TiledRows(keys_, key_steps), tiled);
  for (int64_t group = 0; group < tiled / kAmxEdge; ++group) {
    std::memcpy(keys_ + group * key_steps * kAmxTileBytes + nope_bytes,
                latents_ + (group + 1) * kv_steps * kAmxTileBytes - rope_bytes,
                static_cast<size_t>(rope_bytes));
  }
  amx_->product(TiledRows(head.value_up, rank / kAmxStep), dims.v_dim, packed_latents_, tiled, rank,
                TiledRows(values_, kAmxBlock / kAmxStep), dims.v_dim);

  AmxPromptBlock block;
  block.keys = keys_;
  block.key_dim = dims.q_dim();
  block.values = values_;
  block.value_dim = dims.v_dim;
  block.positions = positions;
  block.scale = params.scale;
  block.scores = scores_;
  block.weights = weights_;
  for (int64_t query = 0; query < query_end - query_begin; query += kQueryTile) {
    block.first_query = params.first_position + query_begin + query - begin;
    if (block.first_query + kQueryTile <= 0) continue;  // none of them sees this block
    block.queries = head.queries + query * dims.q_dim() * 2;
    block.outputs = head.outputs + query * dims.v_dim;
    block.softmax = {head.largest + query, head.sums + query};
    amx_->attend_prompt(block);
  }
}

void MlaPromptAmxTask::Run(const SequencePrompt& params, int64_t head_begin, int64_t head_end,
                           int64_t query_begin, int64_t query_end) {
  const MlaDims& dims = params.dims;
  amx_->configure();
  for (int64_t head = head_begin; head < head_end; ++head) {
    StartHead(params, head, query_begin, query_end, &heads_[head - head_begin]);
  }
  const int64_t context = params.first_position + query_end;
  for (int64_t begin = 0; begin < context; begin += kAmxBlock) {
    const int64_t positions = std::min(kAmxBlock, context - begin);
    LoadBlock(params, begin, positions);
    for (int64_t head = head_begin; head < head_end; ++head) {
      AttendBlock(params, heads_[head - head_begin], begin, positions, query_begin, query_end);
    }
  }
  for (int64_t head = head_begin; head < head_end; ++head) {
    const Head& state = heads_[head - head_begin];
    for (int64_t query = 0; query < query_end - query_begin; query += kAmxEdge) {
      amx_->finish_prompt(state.outputs + query * dims.v_dim, state.sums + query, dims.v_dim,
                          std::min(kAmxEdge, query_end - query_begin - query),
                          params.out.Row<float>(query_begin + query) + head * dims.v_dim,
                          params.out.row_stride);
    }
  }
  amx_->release();
}

}  // namespace sluice
