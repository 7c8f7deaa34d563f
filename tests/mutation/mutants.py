"""The traps that re-implementers of DeepSeek-V2/V3 fall into, as changes of the source.

`text` must stand exactly once in `file`; `noticed_by` is the test tried first (the others follow).
"""

import dataclasses

# In the order in which they are tried.
TESTS = ["exact_test", "gate_test", "trap_test", "invariance_test", "fast_test", "layer_test"]

CONFIG = "services/model/model_config.cc"
ROPE = "services/model/rope.cc"
FORWARD = "services/engine/forward_pass.cc"
STEP = "services/engine/step_buffers.cc"
GATE = "kernels/cpu/gate_row.cc"
MOE = "kernels/cpu/cpu_moe.cc"
ROWS = "kernels/cpu/row_kernels.cc"
LINEAR = "kernels/cpu/linear_dot.h"
WEIGHTS = "kernels/cpu/weight_rows.cc"
ABSORBED = "kernels/cpu/mla_absorbed.cc"
PROMPT = "kernels/cpu/mla_prompt.cc"
ATTENTION = "kernels/cpu/cpu_attention.cc"
SOFTMAX = "kernels/cpu/attention_kernels.cc"
GENERIC = "kernels/cpu/simd/f32x16_generic.h"


@dataclasses.dataclass(frozen=True)
class Mutant:
    name: str
    trap: str
    file: str
    text: str
    replacement: str
    noticed_by: str = "exact_test"


MUTANTS = [
    # The softmax scale and RoPE.
    Mutant("mscale_none", "softmax scale without YaRN's mscale", CONFIG,
           "return scale * mscale * mscale;", "return scale + 0 * mscale;"),
    Mutant("mscale_once", "softmax scale with mscale, not squared", CONFIG,
           "return scale * mscale * mscale;", "return scale * mscale;"),
    Mutant("mscale_cos_sin", "cos and sin multiplied by mscale as well", ROPE,
           "Mscale(config.yarn->factor, config.yarn->mscale_all_dim)", "1.0"),
    Mutant("ratio_ignored", "cos without mscale / mscale_all_dim", ROPE,
           "std::cos(angle) * scale", "std::cos(angle)"),
    Mutant("no_yarn", "RoPE frequencies without YaRN", ROPE,
           "if (!config.yarn) return frequencies;", "return frequencies;"),
    Mutant("yarn_ramp_reversed", "YaRN stretches the fast dimensions", ROPE,
           "frequencies[i] / yarn.factor * stretched + frequencies[i] * (1 - stretched)",
           "frequencies[i] / yarn.factor * (1 - stretched) + frequencies[i] * stretched"),
    Mutant("yarn_range_rounded_up", "YaRN's lower bound rounded up", ROPE,
           "std::floor(CorrectionDim(", "std::ceil(CorrectionDim("),
    Mutant("rope_halves", "RoPE on (x[i], x[i + d/2])", ROWS,
           """    const float even = x[2 * i];
    const float odd = x[2 * i + 1];
    out[2 * i] = even * cos[i] - odd * sin[i];
    out[2 * i + 1] = even * sin[i] + odd * cos[i];
""",
           """    const float even = x[i];
    const float odd = x[i + pairs];
    out[i] = even * cos[i] - odd * sin[i];
    out[i + pairs] = even * sin[i] + odd * cos[i];
"""),
    Mutant("rope_backwards", "RoPE turns the other way", ROWS,
           """    out[2 * i] = even * cos[i] - odd * sin[i];
    out[2 * i + 1] = even * sin[i] + odd * cos[i];
""",
           """    out[2 * i] = even * cos[i] + odd * sin[i];
    out[2 * i + 1] = odd * cos[i] - even * sin[i];
"""),
    Mutant("k_pe_not_rotated", "the shared key goes into the cache unrotated", ATTENTION,
           "rows_.rope(kv_a + dims.kv_lora_rank, cos, sin, pairs, latent + dims.kv_lora_rank);",
           "std::copy_n(kv_a + dims.kv_lora_rank, dims.rope_dim, latent + dims.kv_lora_rank);"),
    # Norms.
    Mutant("layer_eps", "1e-6 in every norm, whatever rms_norm_eps says", ROWS,
           "Sqrt(Set1(sum / (float)n + eps))", "Sqrt(Set1(sum / (float)n + 1e-6f + 0 * eps))"),
    Mutant("q_latent_eps", "rms_norm_eps in the q latent's norm", FORWARD,
           ".eps = kLatentNormEps, .out = latent}",
           ".eps = static_cast<float>(config_.rms_norm_eps), .out = latent}"),
    Mutant("kv_latent_eps", "rms_norm_eps in the kv latent's norm", FORWARD,
           ".eps = kLatentNormEps,\n", ".eps = static_cast<float>(config_.rms_norm_eps),\n"),
    # The router.
    Mutant("no_choice_bias", "experts chosen without the correction bias", GATE,
           "bias == nullptr ? scores[e] : scores[e] + bias[e]",
           "bias == nullptr ? scores[e] : scores[e] + 0 * bias[e]"),
    Mutant("bias_in_weights", "expert weights with the bias in them", GATE,
           "expert_weights[k] = scores[expert_ids[k]];",
           "expert_weights[k] = choice[expert_ids[k]];"),
    Mutant("no_group_limit", "experts chosen among all groups", GATE,
           "|| rule.topk_groups == rule.num_groups)", "|| rule.topk_groups > 0)"),
    Mutant("group_by_max", "V3's groups ranked by their best expert", GATE,
           "? best + second : best", "? best + 0 * second : best"),
    Mutant("group_by_sum", "V2's groups ranked by the sum of two", GATE,
           "rule == GroupScore::kTop2Sum && size > 1",
           "rule != GroupScore::kNone && size > 1", "gate_test"),
    Mutant("dropped_groups_zero", "experts of dropped groups count as 0, not minus infinity", GATE,
           "if (!kept[group]) continue;",
           "if (!kept[group])\n"
           "        for (int64_t i = 0; i < group_size; ++i) choice[group * group_size + i] = 0.0f;",
           "gate_test"),
    Mutant("tie_order", "of equal scores the highest index first", GATE,
           "place > 0 && scores[id] > scores[ids_[place - 1]]",
           "place > 0 && scores[id] >= scores[ids_[place - 1]]", "gate_test"),
    Mutant("norm_topk_flipped", "norm_topk_prob read the other way round", GATE,
           "if (rule.normalize)", "if (!rule.normalize)"),
    Mutant("scaling_one", "routed_scaling_factor taken as 1", GATE,
           "expert_weights[k] *= rule.scaling;", "expert_weights[k] *= 1.0f;"),
    Mutant("scoring_flipped", "softmax for sigmoid, sigmoid for softmax", MOE,
           "params.scoring == GateScoring::kSigmoid", "params.scoring != GateScoring::kSigmoid"),
    # The experts.
    Mutant("no_shared_expert", "shared expert left out", FORWARD, ".shared = shared,",
           ".shared = TensorView(nullptr, DType::kF32, {0, config_.hidden_size}),"),
    Mutant("first_row_left_out", "the first expert's first token is left out", ROWS,
           "if (pair_rows[k] < 0) continue;", "if (pair_rows[k] <= 0) continue;"),
    Mutant("weights_reversed", "expert weights in the reverse order of the experts", ROWS,
           "MulAdd(Set1(weights[k])", "MulAdd(Set1(weights[top_k - 1 - k])"),
    Mutant("rows_collide", "pairs of one expert all in its first row", MOE,
           "slot >= 0 ? next_row_[slot]++ : -1", "slot >= 0 ? next_row_[slot] : -1"),
    Mutant("gate_up_swapped", "silu on the up projection", FORWARD,
           ".gate = mlp.gate, .up = mlp.up,", ".gate = mlp.up, .up = mlp.gate,"),
    Mutant("no_residual", "attention replaces the residual stream", FORWARD,
           ".out = rows->hidden, .accumulate = true}", ".out = rows->hidden, .accumulate = false}"),
    # FP8 scales.
    Mutant("partial_blocks", "partial scale blocks left unscaled", LINEAR,
           "Set1(scale_rows[n][block])",
           "Set1(end - k < columns.block ? 1.0f : scale_rows[n][block])"),
    Mutant("scale_rows_of_tile", "scale rows counted from the tile, not the matrix", LINEAR,
           "(w.row_begin + n) / w.scale_block", "n / w.scale_block"),
    Mutant("scale_of_first_block", "kv_b scaled by its first block everywhere", WEIGHTS,
           "weight.ScaleAt(row, col)", "weight.ScaleAt(0, 0)"),
    # Attention over pages.
    Mutant("causal_plus_one", "a decoding token sees the position after it", ABSORBED,
           "params.positions.As<int32_t>()[token]} + 1;",
           "params.positions.As<int32_t>()[token]} + 2;"),
    Mutant("prompt_causal_plus_one", "a prompt's token sees the next one", PROMPT,
           "query_begin + query + 1 - begin", "query_begin + query + 2 - begin"),
    Mutant("prompt_position_ignored", "a prompt's later piece is masked as if it were the first",
           PROMPT, "params.first_position + query_begin + query + 1 - begin",
           "query_begin + query + 1 - begin"),
    Mutant("first_page_only", "every page read is the first", ABSORBED,
           "pages[begin / kPageTokens];", "pages[0];"),
    Mutant("pages_in_order", "the page table is ignored", ABSORBED,
           "pages[begin / kPageTokens];", "begin / kPageTokens + 0 * pages[0];",
           "invariance_test"),
    Mutant("no_rescale", "earlier pages keep their old softmax maximum", ABSORBED,
           "if (shrink != 1.0f) {", "if (shrink > 1.0f) {"),
    Mutant("sum_not_rescaled", "the softmax sum keeps its old maximum", SOFTMAX,
           "*sum = *sum * shrink +", "*sum = *sum +"),
    Mutant("keys_as_values", "W_UK where W_UV belongs", ABSORBED,
           "head * (dims.nope_dim + dims.v_dim) + dims.nope_dim, dims.v_dim)",
           "head * (dims.nope_dim + dims.v_dim), dims.v_dim)"),
    # The engine's bookkeeping.
    Mutant("cache_row_off", "tokens written one row too far", STEP,
           "kPageTokens + position % kPageTokens", "kPageTokens + (position + 1) % kPageTokens"),
    Mutant("samples_first_row", "logits of a piece's first token", STEP,
           "last_row_of_chunk_[i] = num_tokens_ - 1;",
           "last_row_of_chunk_[i] = num_tokens_ - chunk.tokens.size();"),
    Mutant("sample_position_zero", "samples attend from the step's first position", STEP,
           "Ints(inputs.sample_positions)[num_samples] = Ints(inputs.positions)[row];",
           "Ints(inputs.sample_positions)[num_samples] = Ints(inputs.positions)[0];"),
    Mutant("samples_of_first_seqs", "unobserved samples attend to the first sequences", FORWARD,
           ".seq_of_token = batch.sample_seqs,",
           ".seq_of_token = batch.seq_of_token.Prefix(batch.num_samples),", "invariance_test"),
    # Bit equality.
    Mutant("batch_changes_bits", "one token alone is summed in another way", LINEAR,
           "for (int t = 0; t < kTokens; ++t) total[n][t] = Zero();",
           "for (int t = 0; t < kTokens; ++t) total[n][t] = Set1(kTokens == 1 ? 1e-6f : 0.0f);",
           "invariance_test"),
    Mutant("isa_changes_bits", "generic code multiplies and adds in two roundings", GENERIC,
           "__builtin_fmaf(a.lane[i], b.lane[i], c.lane[i])",
           "a.lane[i] * b.lane[i] + c.lane[i]", "invariance_test"),
]
