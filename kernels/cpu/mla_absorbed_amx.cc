#include "kernels/cpu/mla_absorbed_amx.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/carve.h"

namespace sluice {

bool MlaAbsorbedAmxTask::Fits(const MlaDims& dims) {
  return dims.nope_dim % kAmxStep == 0 && dims.rope_dim % kAmxStep == 0 &&
         dims.v_dim % kAmxEdge == 0 && dims.kv_lora_rank % kAmxStep == 0;
}

void MlaAbsorbedAmxTask::Reserve(const MlaDims& dims) {
  CarveParts(&memory_, [&](Carver& carver) {
    carver.Take(&wide_row_, dims.kv_lora_rank);
    carver.Take(&narrow_rows_, std::max(dims.nope_dim, dims.v_dim) * dims.kv_lora_rank);
    carver.Take(&key_up_, dims.kv_lora_rank * dims.nope_dim * 2);
    carver.Take(&token_rows_, kTokensMax * dims.nope_dim * 2);
    carver.Take(&queries_, kTokensMax * kHeadsMax * dims.kv_dim() * 2);
    carver.Take(&contexts_, kHeadsMax * kTokensMax * dims.kv_lora_rank * 2);
    carver.Take(&outputs_, dims.kv_lora_rank * kHeadsMax);
    carver.Take(&scores_, kAmxBlock * kHeadsMax);
    carver.Take(&weights_, kAmxBlock * kHeadsMax * 2);
    carver.Take(&latents_, kAmxBlock * kHeadsMax * 4);
    carver.Take(&largest_, kHeadsMax);
    carver.Take(&sums_, kHeadsMax);
  });
}

void MlaAbsorbedAmxTask::Run(const MlaAbsorbedParams& params, const MlaBlock& block) {
  amx_->configure();
  for (int64_t head = block.head_begin; head < block.head_end; ++head) {
    ProjectQueries(params, block, head);
  }
  for (int64_t index = 0; index < block.token_end - block.token_begin; ++index) {
    Attend(params, block, index);
  }
  for (int64_t head = block.head_begin; head < block.head_end; ++head) {
    ProjectOutputs(params, block, head);
  }
  amx_->release();
}

void MlaAbsorbedAmxTask::ProjectQueries(const MlaAbsorbedParams& params, const MlaBlock& block,
                                        int64_t head) {
  const MlaDims& dims = params.dims;
  const int64_t tokens = block.token_end - block.token_begin;
  const Bf16Rows key_up =
      RoundWeight(*rows_, params.kv_b.RowSlice(head * (dims.nope_dim + dims.v_dim), dims.nope_dim),
                  wide_row_, narrow_rows_);
  // Row `head` of each token's matrix.
  const int64_t token_bytes = kHeadsMax * dims.kv_dim() * 2;
  char* out = queries_ + (head - block.head_begin) * 64;
  const float* q = params.q.Row<float>(block.token_begin) + head * dims.q_dim();
  if (tokens == 1) {
    amx_->project_query(key_up.rows, key_up.stride, dims.nope_dim, dims.kv_lora_rank, q, out,
                        kAmxTileBytes);
    return;
  }
  amx_->pack_transpose(key_up.rows, key_up.stride, dims.nope_dim, dims.kv_lora_rank, key_up_);
  amx_->tile_rows_f32(q, params.q.row_stride, tokens, dims.nope_dim, token_rows_);
  amx_->product(TiledRows(token_rows_, dims.nope_dim / kAmxStep), kAmxEdge, key_up_,
                dims.kv_lora_rank, dims.nope_dim, {out, token_bytes, kAmxTileBytes, 0}, tokens);
}

void MlaAbsorbedAmxTask::Attend(const MlaAbsorbedParams& params, const MlaBlock& block,
                                int64_t index) {
  const MlaDims& dims = params.dims;
  const int64_t token = block.token_begin + index;
  const int64_t heads = block.head_end - block.head_begin;
  const int64_t kv_steps = dims.kv_dim() / kAmxStep;
  const int64_t rank_steps = dims.kv_lora_rank / kAmxStep;
  char* queries = queries_ + index * kv_steps * kAmxTileBytes;
  amx_->tile_rows_f32(params.q.Row<float>(token) + block.head_begin * dims.q_dim() + dims.nope_dim,
                      dims.q_dim(), heads, dims.rope_dim, queries + rank_steps * kAmxTileBytes);
  for (int64_t step = 0; step < kv_steps; ++step) {
    amx_->transpose_tile(queries + step * kAmxTileBytes, queries + step * kAmxTileBytes);
  }

  std::fill_n(outputs_, dims.kv_lora_rank * kHeadsMax, 0.0f);
  std::fill_n(largest_, kHeadsMax, -std::numeric_limits<float>::infinity());
  std::fill_n(sums_, kHeadsMax, 0.0f);
  AmxLatentBlock latents;
  latents.kv_dim = dims.kv_dim();
  latents.kv_lora_rank = dims.kv_lora_rank;
  latents.queries = queries;
  latents.scale = params.scale;
  latents.scores = scores_;
  latents.weights = weights_;
  latents.latents = latents_;
  latents.outputs = outputs_;
  latents.softmax = {largest_, sums_};
  const int32_t* pages = params.page_table.Row<int32_t>(params.seq_of_token.As<int32_t>()[token]);
  const int64_t context = int64_t{params.positions.As<int32_t>()[token]} + 1;
  for (int64_t begin = 0; begin < context; begin += kAmxBlock) {
    latents.positions = std::min(kAmxBlock, context - begin);
    for (int64_t done = 0; done < latents.positions; done += kPageTokens) {
      latents.pages[done / kPageTokens] =
          params.cache.Row<uint16_t>(pages[(begin + done) / kPageTokens]);
    }
    const int64_t end = begin + latents.positions;
    latents.next_page =
        end < context ? params.cache.Row<uint16_t>(pages[end / kPageTokens]) : nullptr;
    amx_->attend_latents(latents);
  }
  // Row `index` of each head's matrix.
  amx_->finish_latents(outputs_, sums_, dims.kv_lora_rank, heads, contexts_ + index * 64,
                       rank_steps * kAmxTileBytes, kAmxTileBytes);
}

void MlaAbsorbedAmxTask::ProjectOutputs(const MlaAbsorbedParams& params, const MlaBlock& block,
                                        int64_t head) {
  const MlaDims& dims = params.dims;
  const int64_t rank_steps = dims.kv_lora_rank / kAmxStep;
  char* contexts = contexts_ + (head - block.head_begin) * rank_steps * kAmxTileBytes;
  const int64_t first_row = head * (dims.nope_dim + dims.v_dim) + dims.nope_dim;
  const Bf16Rows value_up =
      RoundWeight(*rows_, params.kv_b.RowSlice(first_row, dims.v_dim), wide_row_, narrow_rows_);
  float* out = params.out.Row<float>(block.token_begin) + head * dims.v_dim;
  const int64_t tokens = block.token_end - block.token_begin;
  if (tokens == 1) {
    amx_->project_output(value_up.rows, value_up.stride, dims.v_dim, dims.kv_lora_rank, contexts,
                         kAmxTileBytes, out);
    return;
  }
  for (int64_t step = 0; step < rank_steps; ++step) {
    amx_->transpose_tile(contexts + step * kAmxTileBytes, contexts + step * kAmxTileBytes);
  }
  amx_->product_transposed(PlainRows(value_up.rows, value_up.stride), dims.v_dim, contexts,
                           dims.kv_lora_rank, out, params.out.row_stride, tokens);
}

}  // namespace sluice
