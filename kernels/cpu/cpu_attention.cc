// Multi-head latent attention on the CPU: checks, and how the work is cut into tasks.
#include <algorithm>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "kernels/cpu/cpu_context.h"
#include "kernels/cpu/fork.h"
#include "kernels/cpu/mla_absorbed.h"
#include "kernels/cpu/mla_absorbed_amx.h"
#include "kernels/cpu/mla_prompt.h"
#include "kernels/cpu/mla_prompt_amx.h"
#include "kernels/ops/checks.h"

namespace sluice {
namespace {

// The pages of positions [0, positions) exist.
absl::Status CheckPages(const int32_t* pages, int64_t pages_max, int64_t positions,
                        int64_t num_pages, int64_t token) {
  if (positions < 1 || positions > pages_max * kPageTokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "token ", token, ": ", positions, " positions in a page table of ", pages_max, " pages"));
  }
  for (int64_t i = 0; i * kPageTokens < positions; ++i) {
    if (pages[i] < 0 || pages[i] >= num_pages) {
      return absl::InvalidArgumentError(absl::StrCat(
          "token ", token, ": page ", i, " of its sequence is ", pages[i], " of ", num_pages));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckTakes(const TensorView& cache) {
  if (cache.dtype != DType::kF8E4M3) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("cache: is ", DTypeName(cache.dtype), ", on the CPU KV is F32 or BF16"));
}

// What the tensors hold lies in range.
absl::Status CheckCacheWriteValues(const MlaCacheWriteParams& params) {
  const int64_t tokens = params.q.rows();
  const int64_t cache_rows = params.cache.rows() * kPageTokens;
  for (int64_t token = 0; token < tokens; ++token) {
    const int32_t position = params.positions.As<int32_t>()[token];
    const int32_t row = params.kv_rows.As<int32_t>()[token];
    if (position < 0 || position >= params.cos_sin.rows()) {
      return absl::InvalidArgumentError(absl::StrCat("positions[", token, "] is ", position,
                                                     ", cos_sin has ", params.cos_sin.rows()));
    }
    if (row < -1 || row >= cache_rows) {
      return absl::InvalidArgumentError(
          absl::StrCat("kv_rows[", token, "] is ", row, ", the cache has ", cache_rows, " rows"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckAbsorbedValues(const MlaAbsorbedParams& params) {
  const int64_t tokens = params.q.rows();
  for (int64_t token = 0; token < tokens; ++token) {
    const int32_t seq = params.seq_of_token.As<int32_t>()[token];
    if (seq < 0 || seq >= params.page_table.rows()) {
      return absl::InvalidArgumentError(absl::StrCat("seq_of_token[", token, "] is ", seq,
                                                     ", the page table has ",
                                                     params.page_table.rows(), " rows"));
    }
    SLUICE_RETURN_IF_ERROR(
        CheckPages(params.page_table.Row<int32_t>(seq), params.page_table.dims[1],
                   int64_t{params.positions.As<int32_t>()[token]} + 1, params.cache.rows(), token));
  }
  return absl::OkStatus();
}

absl::Status CheckPromptValues(const MlaPromptParams& params) {
  for (const PromptChunk& chunk : params.chunks) {
    if (chunk.num_tokens == 0) continue;
    SLUICE_RETURN_IF_ERROR(CheckPages(params.page_table.Row<int32_t>(chunk.seq),
                                      params.page_table.dims[1],
                                      chunk.first_position + chunk.num_tokens, params.cache.rows(),
                                      chunk.token_begin + chunk.num_tokens - 1));
  }
  return absl::OkStatus();
}

SequencePrompt ToSequence(const MlaPromptParams& params, const PromptChunk& chunk) {
  return {.dims = params.dims,
          .q = params.q.Slice(chunk.token_begin, chunk.num_tokens),
          .kv_b = params.kv_b,
          .cache = params.cache,
          .pages = TensorView(params.page_table.Slice(chunk.seq, 1).data, DType::kI32,
                              {params.page_table.dims[1]}),
          .first_position = chunk.first_position,
          .scale = params.scale,
          .out = params.out.Slice(chunk.token_begin, chunk.num_tokens)};
}

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How absorbed attention is cut into tasks. Large blocks read weights and cache rows less often,
// but there must be enough of them for all threads.
struct Blocks {
  int64_t tokens;
  int64_t heads;
  int64_t Count(int64_t all_tokens, int64_t all_heads) const {
    return CeilDiv(all_tokens, tokens) * CeilDiv(all_heads, heads);
  }
};

// Here the results do not depend on the choice.
Blocks F32Blocks(int64_t tokens, int64_t heads, int threads) {
  Blocks blocks = {std::min<int64_t>(tokens, 16), std::min(heads, kMlaHeadsMax)};
  const int64_t wanted = threads == 1 ? 1 : 2 * threads;
  const auto shrink = [&](int64_t* side, int64_t least) {
    while (blocks.Count(tokens, heads) < wanted && *side > least) *side = CeilDiv(*side, 2);
  };
  shrink(&blocks.tokens, 4);
  shrink(&blocks.heads, 4);
  shrink(&blocks.tokens, 1);
  shrink(&blocks.heads, 1);
  return blocks;
}

// Half a tile of heads costs as much as a whole one: heads are split only when threads would idle.
Blocks AmxBlocks(int64_t tokens, int64_t heads, int threads) {
  Blocks blocks = {std::min(tokens, MlaAbsorbedAmxTask::kTokensMax),
                   std::min(heads, MlaAbsorbedAmxTask::kHeadsMax)};
  const int64_t wanted = threads == 1 ? 1 : 2 * threads;
  while (blocks.Count(tokens, heads) < wanted && blocks.tokens > 1) {
    blocks.tokens = CeilDiv(blocks.tokens, 2);
  }
  while (blocks.Count(tokens, heads) < threads && blocks.heads > 1) {
    blocks.heads = CeilDiv(blocks.heads, 2);
  }
  return blocks;
}

class CpuAttentionOps final : public AttentionOps {
 public:
  explicit CpuAttentionOps(const CpuContext& context)
      : pool_(context.pool),
        calls_(context.calls),
        rows_(SLUICE_CHOOSE_KERNELS(context.isa, GetRowKernels)),
        amx_(context.numerics == Numerics::kFast && context.isa >= CpuIsa::kAmx) {
    const AttentionKernels& attention = SLUICE_CHOOSE_KERNELS(context.isa, GetAttentionKernels);
    for (int i = 0; i < pool_.threads(); ++i) {
      absorbed_.emplace_back(attention, rows_);
      prompt_.emplace_back(attention, rows_);
      if (!amx_) continue;
      absorbed_amx_.emplace_back(GetAmxAttentionKernels(), rows_);
      prompt_amx_.emplace_back(GetAmxAttentionKernels(), rows_);
    }
    latents_.resize(pool_.threads());
  }

  absl::Status MlaCacheWrite(const MlaCacheWriteParams& params, StreamId) override {
    calls_->Count("mla_cache_write", "cpu");
    SLUICE_RETURN_IF_ERROR(CheckMlaCacheWrite(params));
    SLUICE_RETURN_IF_ERROR(CheckTakes(params.cache));
    SLUICE_RETURN_IF_ERROR(CheckCacheWriteValues(params));
    const MlaDims& dims = params.dims;
    for (std::vector<float>& latent : latents_) {
      if (static_cast<int>(latent.size()) < dims.kv_dim()) latent.resize(dims.kv_dim());
    }
    ForkIfWorth(
        pool_, params.q.rows(), int64_t{dims.num_heads} * dims.rope_dim + dims.kv_dim() / 8,
        [&](int64_t token, int worker) { WriteToken(params, token, latents_[worker].data()); });
    return absl::OkStatus();
  }

  absl::Status MlaAbsorbed(const MlaAbsorbedParams& params, StreamId) override {
    SLUICE_RETURN_IF_ERROR(CheckMlaAbsorbed(params));
    SLUICE_RETURN_IF_ERROR(CheckTakes(params.cache));
    SLUICE_RETURN_IF_ERROR(CheckAbsorbedValues(params));
    const MlaDims& dims = params.dims;
    const int64_t tokens = params.q.rows();
    if (tokens == 0) return absl::OkStatus();
    const bool on_amx =
        amx_ && params.cache.dtype == DType::kBF16 && MlaAbsorbedAmxTask::Fits(dims);
    calls_->Count("mla_absorbed", on_amx ? "amx" : "f32");
    const Blocks blocks = on_amx ? AmxBlocks(tokens, dims.num_heads, pool_.threads())
                                 : F32Blocks(tokens, dims.num_heads, pool_.threads());
    int64_t positions = 0;
    for (int64_t token = 0; token < tokens; ++token) {
      positions += params.positions.As<int32_t>()[token] + 1;
    }
    const int64_t cost_of_all = dims.num_heads *
                                (tokens * (dims.nope_dim + dims.v_dim) * dims.kv_lora_rank +
                                 positions * (dims.kv_dim() + dims.kv_lora_rank)) /
                                16;
    for (MlaAbsorbedTask& task : absorbed_) {
      if (!on_amx) task.Reserve(dims, blocks.tokens * blocks.heads, blocks.heads);
    }
    for (MlaAbsorbedAmxTask& task : absorbed_amx_) {
      if (on_amx) task.Reserve(dims);
    }
    const int64_t count = blocks.Count(tokens, dims.num_heads);
    const int64_t head_blocks = CeilDiv(dims.num_heads, blocks.heads);
    ForkIfWorth(pool_, count, cost_of_all / count / (on_amx ? 8 : 1),
                [&](int64_t index, int worker) {
                  const int64_t token = index / head_blocks * blocks.tokens;
                  const int64_t head = index % head_blocks * blocks.heads;
                  const MlaBlock block = {token, std::min(token + blocks.tokens, tokens), head,
                                          std::min<int64_t>(head + blocks.heads, dims.num_heads)};
                  if (on_amx) {
                    absorbed_amx_[worker].Run(params, block);
                  } else {
                    absorbed_[worker].Run(params, block);
                  }
                });
    return absl::OkStatus();
  }

  absl::Status MlaPrompt(const MlaPromptParams& params, StreamId) override {
    SLUICE_RETURN_IF_ERROR(CheckMlaPrompt(params));
    SLUICE_RETURN_IF_ERROR(CheckTakes(params.cache));
    SLUICE_RETURN_IF_ERROR(CheckPromptValues(params));
    for (const PromptChunk& chunk : params.chunks) {
      if (chunk.num_tokens == 0) continue;
      const SequencePrompt prompt = ToSequence(params, chunk);
      const bool on_amx = amx_ && MlaPromptAmxTask::Fits(params.dims);
      calls_->Count("mla_prompt", on_amx ? "amx" : "f32");
      if (on_amx) {
        PromptOnAmx(prompt);
      } else {
        PromptInF32(prompt);
      }
    }
    return absl::OkStatus();
  }

 private:
  // The last queries have the most to do: they go first.
  void PromptInF32(const SequencePrompt& params) {
    const MlaDims& dims = params.dims;
    const int64_t queries = params.q.rows();
    for (MlaPromptTask& task : prompt_) task.Reserve(dims);
    const int64_t ranges = CeilDiv(queries, MlaPromptTask::kQueriesMax);
    const int64_t range = CeilDiv(queries, ranges);
    const int64_t cost = (params.first_position + queries) * (dims.kv_lora_rank + range) *
                         (dims.q_dim() + dims.v_dim) / 16;
    ForkIfWorth(pool_, ranges * dims.num_heads, cost, [&](int64_t index, int worker) {
      const int64_t begin = (ranges - 1 - index / dims.num_heads) * range;
      prompt_[worker].Run(params, index % dims.num_heads, begin, std::min(begin + range, queries));
    });
  }

  void PromptOnAmx(const SequencePrompt& params) {
    const MlaDims& dims = params.dims;
    const int64_t queries = params.q.rows();
    const int64_t ranges = CeilDiv(queries, MlaPromptAmxTask::kQueriesMax);
    const int64_t range = CeilDiv(CeilDiv(queries, ranges), 32) * 32;
    // Several heads share the loading of latents, when that leaves enough tasks.
    int64_t heads = queries <= MlaPromptAmxTask::kQueriesMax / 2 ? MlaPromptAmxTask::kHeadsMax : 1;
    if (ranges * dims.num_heads < 2 * heads * pool_.threads()) heads = 1;
    const int64_t head_groups = CeilDiv(dims.num_heads, heads);
    for (MlaPromptAmxTask& task : prompt_amx_) {
      task.Reserve(dims, heads, std::min(range, queries));
    }
    const int64_t cost = heads * (params.first_position + queries) * (dims.kv_lora_rank + range) *
                         (dims.q_dim() + dims.v_dim) / 256;
    ForkIfWorth(pool_, ranges * head_groups, cost, [&](int64_t index, int worker) {
      const int64_t begin = (ranges - 1 - index / head_groups) * range;
      if (begin >= queries) return;
      const int64_t head = index % head_groups * heads;
      prompt_amx_[worker].Run(params, head, std::min<int64_t>(head + heads, dims.num_heads), begin,
                              std::min(begin + range, queries));
    });
  }

  // `latent` is scratch of kv_dim floats.
  void WriteToken(const MlaCacheWriteParams& params, int64_t token, float* latent) const {
    const MlaDims& dims = params.dims;
    const int64_t pairs = dims.rope_dim / 2;
    const float* cos = params.cos_sin.Row<float>(params.positions.As<int32_t>()[token]);
    const float* sin = cos + pairs;
    for (int head = 0; head < dims.num_heads; ++head) {
      float* q_pe = params.q.Row<float>(token) + head * dims.q_dim() + dims.nope_dim;
      rows_.rope(q_pe, cos, sin, pairs, q_pe);
    }
    const int64_t row = params.kv_rows.As<int32_t>()[token];
    if (row < 0) return;
    const float* kv_a = params.kv_a.Row<float>(token);
    rows_.rms_norm(kv_a, params.kv_norm.As<float>(), dims.kv_lora_rank, params.eps, latent);
    rows_.rope(kv_a + dims.kv_lora_rank, cos, sin, pairs, latent + dims.kv_lora_rank);
    if (params.cache.dtype == DType::kF32) {
      std::copy_n(latent, dims.kv_dim(), params.cache.As<float>() + row * dims.kv_dim());
    } else {
      rows_.narrow_bf16(latent, dims.kv_dim(), params.cache.As<uint16_t>() + row * dims.kv_dim());
    }
  }

  ThreadPool& pool_;
  const std::shared_ptr<KernelCalls> calls_;
  const RowKernels& rows_;
  const bool amx_;
  // Workspaces, one per worker.
  std::vector<MlaAbsorbedTask> absorbed_;
  std::vector<MlaAbsorbedAmxTask> absorbed_amx_;
  std::vector<MlaPromptTask> prompt_;
  std::vector<MlaPromptAmxTask> prompt_amx_;
  std::vector<std::vector<float>> latents_;
};

}  // namespace

std::unique_ptr<AttentionOps> MakeCpuAttentionOps(const CpuContext& context) {
  return std::make_unique<CpuAttentionOps>(context);
}

}  // namespace sluice
