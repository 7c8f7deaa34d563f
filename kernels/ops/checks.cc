#include "kernels/ops/checks.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"

namespace sluice {
namespace {

absl::Status CheckDims(const MlaDims& dims) {
  if (dims.num_heads >= 1 && dims.nope_dim >= 1 && dims.rope_dim >= 2 && dims.rope_dim % 2 == 0 &&
      dims.v_dim >= 1 && dims.kv_lora_rank >= 1) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("MLA dimensions: heads ", dims.num_heads, ", nope ", dims.nope_dim, ", rope ",
                   dims.rope_dim, ", v ", dims.v_dim, ", kv_lora_rank ", dims.kv_lora_rank,
                   "; all must be positive, rope even"));
}

absl::Status CheckCache(const MlaDims& dims, const TensorView& cache) {
  const bool known = cache.dtype == DType::kBF16 || cache.dtype == DType::kF8E4M3;
  const DType dtype = known ? cache.dtype : DType::kF32;
  SLUICE_RETURN_IF_ERROR(
      CheckTensor("cache", cache, dtype,
                  {-1, kPageTokens, KvRowElements(dims.kv_lora_rank, dims.rope_dim, dtype)}));
  if (cache.row_stride != cache.row_elements()) {
    return absl::InvalidArgumentError("cache: pages must be contiguous");
  }
  return absl::OkStatus();
}

absl::Status CheckKvB(const MlaDims& dims, const WeightView& kv_b) {
  const int64_t rows = int64_t{dims.num_heads} * (dims.nope_dim + dims.v_dim);
  const bool known = kv_b.dtype == DType::kF32 || kv_b.dtype == DType::kBF16 ||
                     kv_b.dtype == DType::kF16 ||
                     (kv_b.dtype == DType::kF8E4M3 && kv_b.scales != nullptr);
  if (kv_b.present() && known && kv_b.rows == rows && kv_b.cols == dims.kv_lora_rank) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "kv_b: is ", DTypeName(kv_b.dtype), " [", kv_b.rows, ", ", kv_b.cols,
      "], wanted a float type (F8_E4M3 with scales) [", rows, ", ", dims.kv_lora_rank, "]"));
}

absl::Status CheckQueries(const MlaDims& dims, const TensorView& q, const TensorView& out) {
  SLUICE_RETURN_IF_ERROR(CheckTensor("q", q, DType::kF32, {-1, dims.num_heads * dims.q_dim()}));
  return CheckTensor("out", out, DType::kF32, {q.rows(), dims.num_heads * dims.v_dim});
}

absl::Status CheckGroups(const TensorView& x, const TensorView& offsets, const TensorView& out,
                         absl::Span<const WeightView> weights, const TensorView& pair_rows) {
  SLUICE_RETURN_IF_ERROR(
      CheckTensor("offsets", offsets, DType::kI32, {static_cast<int64_t>(weights.size()) + 1}));
  if (weights.empty()) return absl::OkStatus();
  SLUICE_RETURN_IF_ERROR(CheckTensor("x", x, DType::kF32, {-1, weights[0].cols}));
  if (pair_rows.data != nullptr) {
    SLUICE_RETURN_IF_ERROR(CheckTensor("pair_rows", pair_rows, DType::kI32, {x.rows(), -1}));
  }
  const int64_t rows = pair_rows.data != nullptr ? -1 : x.rows();
  return CheckTensor("out", out, DType::kF32, {rows, weights[0].rows});
}

}  // namespace

absl::Status CheckWeight(absl::string_view what, const WeightView& w, int64_t rows, int64_t cols) {
  if (w.rows != rows || w.cols != cols) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": is [", w.rows, ", ", w.cols, "], wanted [", rows, ", ", cols, "]"));
  }
  if (w.dtype != DType::kF32 && w.dtype != DType::kBF16 && w.dtype != DType::kF16 &&
      w.dtype != DType::kF8E4M3) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": is ", DTypeName(w.dtype), ", wanted F32, BF16, F16 or F8_E4M3"));
  }
  if (w.data == nullptr && rows * cols > 0) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": null data"));
  }
  if (rows > 1 && w.row_stride < cols) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": row stride ", w.row_stride, " is less than ", cols, " columns"));
  }
  return absl::OkStatus();
}

absl::Status CheckLinear(const LinearParams& params) {
  const int64_t k = params.w.cols, n = params.w.rows;
  SLUICE_RETURN_IF_ERROR(CheckTensor("x", params.x, DType::kF32, {-1, k}));
  SLUICE_RETURN_IF_ERROR(CheckWeight("w", params.w, n, k));
  return CheckTensor("out", params.out, DType::kF32, {params.x.rows(), n});
}

absl::Status CheckMultiLinear(const MultiLinearParams& params) {
  if (params.outs.size() != params.weights.size()) {
    return absl::InvalidArgumentError(absl::StrCat("outs: ", params.outs.size(),
                                                   " tensors, wanted ", params.weights.size(),
                                                   ", one for each weight"));
  }
  for (size_t i = 0; i < params.weights.size(); ++i) {
    const WeightView& w = params.weights[i];
    SLUICE_RETURN_IF_ERROR(CheckTensor("x", params.x, DType::kF32, {-1, w.cols}));
    SLUICE_RETURN_IF_ERROR(CheckWeight(absl::StrCat("weights[", i, "]"), w, w.rows, w.cols));
    SLUICE_RETURN_IF_ERROR(CheckTensor(absl::StrCat("outs[", i, "]"), params.outs[i], DType::kF32,
                                       {params.x.rows(), w.rows}));
  }
  return absl::OkStatus();
}

absl::Status CheckGatedLinear(const GatedLinearParams& params) {
  const int64_t k = params.gate.cols, n = params.gate.rows;
  SLUICE_RETURN_IF_ERROR(CheckTensor("x", params.x, DType::kF32, {-1, k}));
  SLUICE_RETURN_IF_ERROR(CheckWeight("gate", params.gate, n, k));
  SLUICE_RETURN_IF_ERROR(CheckWeight("up", params.up, n, k));
  return CheckTensor("out", params.out, DType::kF32, {params.x.rows(), n});
}

absl::Status CheckGroupedLinear(const GroupedLinearParams& params) {
  return CheckGroups(params.x, params.offsets, params.out, params.weights, {});
}

absl::Status CheckGroupedGatedLinear(const GroupedGatedLinearParams& params) {
  if (params.ups.size() != params.gates.size()) {
    return absl::InvalidArgumentError(absl::StrCat("ups: ", params.ups.size(), " matrices, wanted ",
                                                   params.gates.size(), " as in gates"));
  }
  return CheckGroups(params.x, params.offsets, params.out, params.gates, params.pair_rows);
}

absl::Status CheckEmbed(const EmbedParams& params) {
  const int64_t tokens = params.ids.rows();
  SLUICE_RETURN_IF_ERROR(CheckTensor("ids", params.ids, DType::kI32, {tokens}));
  SLUICE_RETURN_IF_ERROR(CheckTensor("out", params.out, DType::kF32, {tokens, params.table.cols}));
  return CheckTensor("resolved_ids", params.resolved_ids, DType::kI32, {tokens});
}

absl::Status CheckRmsNorm(const RmsNormParams& params) {
  const int64_t width = params.weight.rows();
  SLUICE_RETURN_IF_ERROR(CheckTensor("x", params.x, DType::kF32, {-1, width}));
  SLUICE_RETURN_IF_ERROR(CheckTensor("weight", params.weight, DType::kF32, {width}));
  return CheckTensor("out", params.out, DType::kF32, {params.x.rows(), width});
}

absl::Status CheckGatherRows(const GatherRowsParams& params) {
  const int64_t count = params.rows.rows();
  SLUICE_RETURN_IF_ERROR(CheckTensor("x", params.x, DType::kF32, {-1, -1}));
  SLUICE_RETURN_IF_ERROR(CheckTensor("rows", params.rows, DType::kI32, {count}));
  return CheckTensor("out", params.out, DType::kF32, {count, params.x.dims[1]});
}

absl::Status CheckFillRandom(const FillRandomParams& params) {
  const WeightView& out = params.out;
  if (out.dtype != DType::kF32 && out.dtype != DType::kBF16 && out.dtype != DType::kF8E4M3) {
    return absl::InvalidArgumentError(
        absl::StrCat("out: is ", DTypeName(out.dtype), ", wanted F32, BF16 or F8_E4M3"));
  }
  if (params.row_begin < 0 || params.row_begin + out.rows > params.rows || params.col_begin < 0 ||
      params.col_begin + out.cols > params.cols) {
    return absl::InvalidArgumentError(absl::StrCat(
        "out: is [", out.rows, ", ", out.cols, "] at (", params.row_begin, ", ", params.col_begin,
        "), and does not lie within [", params.rows, ", ", params.cols, "]"));
  }
  if (out.dtype != DType::kF8E4M3) return absl::OkStatus();
  if (out.scales == nullptr || out.scale_block < 1 ||
      (params.row_begin - out.row_begin) % out.scale_block != 0 ||
      (params.col_begin - out.col_begin) % out.scale_block != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "out: has ", out.scales == nullptr ? "no " : "", "scales in blocks of ", out.scale_block,
        " and begins at (", out.row_begin, ", ", out.col_begin, ") of them, wanted some, and (",
        params.row_begin, ", ", params.col_begin, ") but for whole blocks"));
  }
  return absl::OkStatus();
}

absl::Status CheckMlaCacheWrite(const MlaCacheWriteParams& params) {
  const MlaDims& dims = params.dims;
  SLUICE_RETURN_IF_ERROR(CheckDims(dims));
  const int64_t tokens = params.q.rows();
  SLUICE_RETURN_IF_ERROR(
      CheckTensor("q", params.q, DType::kF32, {-1, dims.num_heads * dims.q_dim()}));
  SLUICE_RETURN_IF_ERROR(CheckTensor("kv_a", params.kv_a, DType::kF32, {tokens, dims.kv_dim()}));
  SLUICE_RETURN_IF_ERROR(CheckTensor("kv_norm", params.kv_norm, DType::kF32, {dims.kv_lora_rank}));
  SLUICE_RETURN_IF_ERROR(CheckTensor("cos_sin", params.cos_sin, DType::kF32, {-1, dims.rope_dim}));
  SLUICE_RETURN_IF_ERROR(CheckTensor("positions", params.positions, DType::kI32, {tokens}));
  SLUICE_RETURN_IF_ERROR(CheckTensor("kv_rows", params.kv_rows, DType::kI32, {tokens}));
  SLUICE_RETURN_IF_ERROR(CheckCache(dims, params.cache));
  return absl::OkStatus();
}

absl::Status CheckMlaAbsorbed(const MlaAbsorbedParams& params) {
  SLUICE_RETURN_IF_ERROR(CheckDims(params.dims));
  SLUICE_RETURN_IF_ERROR(CheckQueries(params.dims, params.q, params.out));
  SLUICE_RETURN_IF_ERROR(CheckKvB(params.dims, params.kv_b));
  SLUICE_RETURN_IF_ERROR(CheckCache(params.dims, params.cache));
  const int64_t tokens = params.q.rows();
  SLUICE_RETURN_IF_ERROR(CheckTensor("page_table", params.page_table, DType::kI32, {-1, -1}));
  SLUICE_RETURN_IF_ERROR(CheckTensor("seq_of_token", params.seq_of_token, DType::kI32, {tokens}));
  SLUICE_RETURN_IF_ERROR(CheckTensor("positions", params.positions, DType::kI32, {tokens}));
  return absl::OkStatus();
}

absl::Status CheckMlaPrompt(const MlaPromptParams& params) {
  SLUICE_RETURN_IF_ERROR(CheckDims(params.dims));
  SLUICE_RETURN_IF_ERROR(CheckQueries(params.dims, params.q, params.out));
  SLUICE_RETURN_IF_ERROR(CheckKvB(params.dims, params.kv_b));
  SLUICE_RETURN_IF_ERROR(CheckCache(params.dims, params.cache));
  SLUICE_RETURN_IF_ERROR(CheckTensor("page_table", params.page_table, DType::kI32, {-1, -1}));
  const int64_t tokens = params.q.rows(), positions_max = params.page_table.dims[1] * kPageTokens;
  for (size_t i = 0; i < params.chunks.size(); ++i) {
    const PromptChunk& chunk = params.chunks[i];
    if (chunk.token_begin < 0 || chunk.num_tokens < 0 ||
        chunk.num_tokens > tokens - chunk.token_begin) {
      return absl::InvalidArgumentError(absl::StrCat("chunks[", i, "] is ", chunk.num_tokens,
                                                     " rows of q from ", chunk.token_begin,
                                                     ", q has ", tokens));
    }
    if (chunk.seq < 0 || chunk.seq >= params.page_table.rows()) {
      return absl::InvalidArgumentError(absl::StrCat("chunks[", i, "].seq is ", chunk.seq,
                                                     ", the page table has ",
                                                     params.page_table.rows(), " rows"));
    }
    if (chunk.first_position < 0 || chunk.num_tokens > positions_max - chunk.first_position) {
      return absl::InvalidArgumentError(absl::StrCat(
          "chunks[", i, "].first_position is ", chunk.first_position, ", with ", chunk.num_tokens,
          " tokens wanted 0 to ", positions_max, ", what the pages of a sequence hold"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckGate(const GateParams& params) {
  SLUICE_RETURN_IF_ERROR(CheckTensor("logits", params.logits, DType::kF32, {-1, -1}));
  const int64_t tokens = params.logits.rows();
  const int64_t experts = params.logits.dims[1];
  SLUICE_RETURN_IF_ERROR(CheckTensor("expert_ids", params.expert_ids, DType::kI32, {tokens, -1}));
  const int64_t top_k = params.expert_ids.dims[1];
  SLUICE_RETURN_IF_ERROR(
      CheckTensor("expert_weights", params.expert_weights, DType::kF32, {tokens, top_k}));
  if (params.bias.data != nullptr) {
    SLUICE_RETURN_IF_ERROR(CheckTensor("bias", params.bias, DType::kF32, {experts}));
  }
  if (params.live.data != nullptr) {
    SLUICE_RETURN_IF_ERROR(CheckTensor("live", params.live, DType::kI32, {tokens}));
  }
  if (params.expert_load.data != nullptr) {
    SLUICE_RETURN_IF_ERROR(CheckTensor("expert_load", params.expert_load, DType::kI64, {experts}));
  }
  const bool grouped = params.group_score != GroupScore::kNone;
  if (grouped &&
      (params.num_groups < 1 || params.num_groups > 256 || experts % params.num_groups != 0 ||
       params.topk_groups < 1 || params.topk_groups > params.num_groups)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "gate: ", params.topk_groups, " of ", params.num_groups, " groups of ", experts,
        " experts; wanted at most 256 equal groups, and between 1 and all of them kept"));
  }
  const int64_t reachable = grouped ? experts / params.num_groups * params.topk_groups : experts;
  if (top_k < 1 || top_k > reachable) {
    return absl::InvalidArgumentError(
        absl::StrCat("gate: top_k ", top_k, " of ", reachable, " experts within reach"));
  }
  return absl::OkStatus();
}

absl::Status CheckMoePermute(const MoePermuteParams& params) {
  SLUICE_RETURN_IF_ERROR(CheckTensor("expert_ids", params.expert_ids, DType::kI32, {-1, -1}));
  const int64_t tokens = params.expert_ids.rows(), top_k = params.expert_ids.dims[1];
  SLUICE_RETURN_IF_ERROR(CheckTensor("slot_of_expert", params.slot_of_expert, DType::kI32, {-1}));
  SLUICE_RETURN_IF_ERROR(CheckTensor("offsets", params.offsets, DType::kI32, {-1}));
  SLUICE_RETURN_IF_ERROR(CheckTensor("pair_rows", params.pair_rows, DType::kI32, {tokens, top_k}));
  if (params.offsets.rows() < 1) return absl::InvalidArgumentError("offsets: empty");
  return absl::OkStatus();
}

absl::Status CheckMoeCombine(const MoeCombineParams& params) {
  SLUICE_RETURN_IF_ERROR(CheckTensor("out", params.out, DType::kF32, {-1, -1}));
  const int64_t tokens = params.out.rows();
  const int64_t hidden = params.out.dims[1];
  SLUICE_RETURN_IF_ERROR(CheckTensor("rows", params.rows, DType::kF32, {-1, hidden}));
  SLUICE_RETURN_IF_ERROR(CheckTensor("pair_rows", params.pair_rows, DType::kI32, {tokens, -1}));
  SLUICE_RETURN_IF_ERROR(CheckTensor("expert_weights", params.expert_weights, DType::kF32,
                                     {tokens, params.pair_rows.dims[1]}));
  if (params.shared.data != nullptr) {
    SLUICE_RETURN_IF_ERROR(CheckTensor("shared", params.shared, DType::kF32, {tokens, hidden}));
  }
  return absl::OkStatus();
}

absl::Status CheckSample(const SampleParams& params) {
  SLUICE_RETURN_IF_ERROR(CheckTensor("logits", params.logits, DType::kF32, {-1, -1}));
  const int64_t rows = params.logits.rows();
  const int64_t vocab = params.logits.dims[1];
  SLUICE_RETURN_IF_ERROR(CheckTensor("tokens", params.tokens, DType::kI32, {rows}));
  SLUICE_RETURN_IF_ERROR(CheckTensor("tokens_by_slot", params.tokens_by_slot, DType::kI32, {-1}));
  const int64_t slots = params.tokens_by_slot.rows();
  if (params.bias_ids.data != nullptr) {
    SLUICE_RETURN_IF_ERROR(CheckTensor("bias_ids", params.bias_ids, DType::kI32, {-1}));
    SLUICE_RETURN_IF_ERROR(
        CheckTensor("bias_values", params.bias_values, DType::kF32, {params.bias_ids.rows()}));
  }
  if (params.banned_ids.data != nullptr) {
    SLUICE_RETURN_IF_ERROR(CheckTensor("banned_ids", params.banned_ids, DType::kI32, {-1}));
  }
  if (params.prompt_mask.data != nullptr) {
    SLUICE_RETURN_IF_ERROR(
        CheckTensor("prompt_mask", params.prompt_mask, DType::kU8, {slots, vocab}));
  }
  if (params.output_counts.data != nullptr) {
    SLUICE_RETURN_IF_ERROR(
        CheckTensor("output_counts", params.output_counts, DType::kI32, {slots, vocab}));
  }
  if (params.logprobs.data != nullptr) {
    SLUICE_RETURN_IF_ERROR(CheckTensor("logprobs", params.logprobs, DType::kF32, {rows}));
  }
  if (params.top_ids.data != nullptr) {
    SLUICE_RETURN_IF_ERROR(CheckTensor("top_ids", params.top_ids, DType::kI32, {rows, -1}));
    SLUICE_RETURN_IF_ERROR(CheckTensor("top_logprobs", params.top_logprobs, DType::kF32,
                                       {rows, params.top_ids.dims[1]}));
  }
  if (rows > 0 && vocab == 0) return absl::InvalidArgumentError("logits: empty vocabulary");
  return absl::OkStatus();
}

}  // namespace sluice
