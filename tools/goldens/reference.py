"""The forward pass of DeepSeek-V2/V3 in plain float64 numpy, and the mistakes one can make in it.

Written from DeepSeek's formulas (deepseek-ai/DeepSeek-V3 inference/model.py; the MoEGate of
DeepSeek-V2's modeling_deepseek.py), not from transformers, so that the two check each other. Every
known trap is a name in TRAPS; Forward(..., trap=NAME) falls into it.
"""

import math

import numpy as np

# Trap -> (what is done wrong, whether a geometry has what it takes to show it).
TRAPS = {
    "mscale_none": ("softmax scale without YaRN's mscale^2", lambda c: c["rope_scaling"]),
    "mscale_once": ("softmax scale with mscale, not squared", lambda c: c["rope_scaling"]),
    "mscale_cos_sin": ("cos and sin multiplied by mscale as well", lambda c: c["rope_scaling"]),
    "ratio_ignored": ("cos and sin without mscale / mscale_all_dim", lambda c: _odd_ratio(c)),
    "rope_halves": ("RoPE on (x[i], x[i + d/2]) instead of interleaved pairs", lambda c: True),
    "no_yarn": ("RoPE frequencies without YaRN", lambda c: c["rope_scaling"]),
    "k_pe_normed": ("the rope part of kv_a normed with the latent's rms", lambda c: True),
    "no_choice_bias": ("experts chosen without e_score_correction_bias", lambda c: _is_v3(c)),
    "bias_in_weights": ("expert weights with the bias in them", lambda c: _is_v3(c)),
    "no_group_limit": ("experts chosen among all groups", lambda c: c["n_group"] > 1),
    "group_by_max": ("groups ranked by their best expert", lambda c: _v3_groups(c)),
    "norm_topk_flipped": ("norm_topk_prob read the other way round", lambda c: True),
    "scaling_one": ("routed_scaling_factor taken as 1", lambda c: c["routed_scaling_factor"] != 1),
    "scoring_flipped": ("softmax for sigmoid, or sigmoid for softmax", lambda c: True),
    "no_shared_expert": ("shared expert left out", lambda c: True),
    "expert_missing": ("expert 0 of every layer left out", lambda c: True),
    "q_latent_eps": ("rms_norm_eps in the q_a norm", lambda c: c["q_lora_rank"] and _odd_eps(c)),
    "kv_latent_eps": ("rms_norm_eps in the kv_a norm (both use 1e-6)", lambda c: _odd_eps(c)),
    "layer_eps": ("1e-6 in the layer norms, whatever rms_norm_eps says", lambda c: _odd_eps(c)),
    "causal_plus_one": ("a token also sees the next one", lambda c: True),
    "causal_minus_one": ("a token does not see itself (but for the first)", lambda c: True),
    "position_plus_one": ("rotary positions of queries one too high", lambda c: True),
}


def _is_v3(config):
    return config["model_type"] == "deepseek_v3"


def _v3_groups(config):
    return _is_v3(config) and config["n_group"] > 1


def _odd_ratio(config):
    yarn = config["rope_scaling"]
    return yarn and yarn["mscale"] != yarn["mscale_all_dim"]


def _odd_eps(config):
    return config["rms_norm_eps"] != 1e-6


def _mscale(factor, mscale):
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def _silu(x):
    return x / (1 + np.exp(-x))


def rope_frequencies(config, use_yarn=True):
    """(frequencies [rope / 2], factor of cos and sin)."""
    dim, base = config["qk_rope_head_dim"], config["rope_theta"]
    freqs = base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    yarn = config["rope_scaling"]
    if not yarn:
        return freqs, 1.0
    original = yarn["original_max_position_embeddings"]

    def correction_dim(rotations):
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(correction_dim(yarn["beta_fast"])), 0)
    high = min(math.ceil(correction_dim(yarn["beta_slow"])), dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 1e-3), 0, 1)
    factor = yarn["factor"]
    ratio = _mscale(factor, yarn["mscale"]) / _mscale(factor, yarn["mscale_all_dim"])
    return (freqs / factor * ramp + freqs * (1 - ramp) if use_yarn else freqs), ratio


class Layers:
    """Attention and MoE of single layers, for all positions of one prompt at once.

    experts gathers [n, top_k] per call of moe(), by falling score; choice_gap is the smallest
    difference between scores that decided about a choice or its order so far.
    """

    def __init__(self, config, weights, trap=None):
        self._c, self._w, self._trap = config, weights, trap
        self.experts, self.choice_gap = [], np.inf

    def _get(self, name):
        return self._w[name].astype(np.float64)

    def _linear(self, x, name):
        return x @ self._get(f"{name}.weight").T

    def _mlp(self, x, name):
        gated = _silu(self._linear(x, f"{name}.gate_proj")) * self._linear(x, f"{name}.up_proj")
        return self._linear(gated, f"{name}.down_proj")

    def _rotate(self, x, positions):
        """x [n, heads, rope], pairs (x[2i], x[2i + 1]) turned by position * frequency."""
        freqs, ratio = rope_frequencies(self._c, use_yarn=self._trap != "no_yarn")
        if self._trap == "mscale_cos_sin":
            yarn = self._c["rope_scaling"]
            ratio *= _mscale(yarn["factor"], yarn["mscale_all_dim"])
        if self._trap == "ratio_ignored":
            ratio = 1.0
        angles = positions[:, None, None] * freqs
        cos, sin = np.cos(angles) * ratio, np.sin(angles) * ratio
        out = np.empty_like(x)
        half = x.shape[-1] // 2
        first, second = np.s_[..., 0::2], np.s_[..., 1::2]
        if self._trap == "rope_halves":
            first, second = np.s_[..., :half], np.s_[..., half:]
        out[first] = x[first] * cos - x[second] * sin
        out[second] = x[first] * sin + x[second] * cos
        return out

    def _softmax_scale(self):
        c = self._c
        scale = (c["qk_nope_head_dim"] + c["qk_rope_head_dim"]) ** -0.5
        if c["rope_scaling"] and c["rope_scaling"]["mscale_all_dim"]:
            mscale = _mscale(c["rope_scaling"]["factor"], c["rope_scaling"]["mscale_all_dim"])
            scale *= {"mscale_none": 1, "mscale_once": mscale}.get(self._trap, mscale**2)
        return scale

    def attention(self, x, layer):
        c, n, p = self._c, len(x), f"{layer}.self_attn"
        heads, nope, lora = c["num_attention_heads"], c["qk_nope_head_dim"], c["kv_lora_rank"]
        q_eps = c["rms_norm_eps"] if self._trap == "q_latent_eps" else 1e-6
        kv_eps = c["rms_norm_eps"] if self._trap == "kv_latent_eps" else 1e-6
        if c["q_lora_rank"]:
            latent = self._linear(x, f"{p}.q_a_proj")
            latent = _rms_norm(latent, self._get(f"{p}.q_a_layernorm.weight"), q_eps)
            q = self._linear(latent, f"{p}.q_b_proj")
        else:
            q = self._linear(x, f"{p}.q_proj")
        q = q.reshape(n, heads, -1)
        kv_a = self._linear(x, f"{p}.kv_a_proj_with_mqa")
        latent = _rms_norm(kv_a[:, :lora], self._get(f"{p}.kv_a_layernorm.weight"), kv_eps)
        k_pe = kv_a[:, None, lora:]
        if self._trap == "k_pe_normed":
            k_pe = k_pe / np.sqrt((kv_a[:, :lora] ** 2).mean(-1) + 1e-6)[:, None, None]
        positions = np.arange(n, dtype=np.float64)
        k_pe = self._rotate(k_pe, positions)
        q_pe = self._rotate(q[..., nope:], positions + (self._trap == "position_plus_one"))
        kv = self._linear(latent, f"{p}.kv_b_proj").reshape(n, heads, -1)
        scores = np.einsum("qhd,khd->hqk", q[..., :nope], kv[..., :nope])
        scores += np.einsum("qhd,kd->hqk", q_pe, k_pe[:, 0])
        scores *= self._softmax_scale()
        limit = {"causal_plus_one": 1, "causal_minus_one": -1}.get(self._trap, 0)
        visible = np.tril(np.ones((n, n), dtype=bool), limit)
        visible[0, 0] = True
        scores = np.where(visible, scores, -np.inf)
        probs = np.exp(scores - scores.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        out = np.einsum("hqk,khd->qhd", probs, kv[..., nope:])
        return self._linear(out.reshape(n, -1), f"{p}.o_proj")

    def gate(self, x, layer):
        """(expert ids by falling score, weights), both [n, top_k]."""
        c, n = self._c, len(x)
        logits = self._linear(x, f"{layer}.gate")
        if _is_v3(c) == (self._trap != "scoring_flipped"):
            scores = 1 / (1 + np.exp(-logits))
        else:
            scores = np.exp(logits - logits.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
        bias = self._get(f"{layer}.gate.e_score_correction_bias") if _is_v3(c) else 0.0
        choice = scores + (0.0 if self._trap == "no_choice_bias" else bias)
        grouped = c["n_group"] > 1 and c.get("topk_method") != "greedy"
        if grouped and self._trap != "no_group_limit":
            by_group = np.sort(choice.reshape(n, c["n_group"], -1), axis=-1)
            use_max = not _is_v3(c) or self._trap == "group_by_max"
            rank = by_group[..., -1] if use_max else by_group[..., -2:].sum(-1)
            order = np.argsort(-rank, axis=-1, kind="stable")
            ranked = np.take_along_axis(rank, order, -1)
            last = c["topk_group"]
            if last < c["n_group"]:
                self._note_gap(ranked[:, last - 1] - ranked[:, last])
            kept = np.zeros_like(rank, dtype=bool)
            np.put_along_axis(kept, order[:, :last], True, -1)
            choice = np.where(np.repeat(kept, by_group.shape[-1], -1), choice, -np.inf)
        top_k = c["num_experts_per_tok"]
        order = np.argsort(-choice, axis=-1, kind="stable")
        ranked = np.take_along_axis(choice, order, -1)[:, : top_k + 1]
        self._note_gap(ranked[:, :-1] - ranked[:, 1:])
        ids = order[:, :top_k]
        unbiased = scores + bias if self._trap == "bias_in_weights" else scores
        weights = np.take_along_axis(unbiased, ids, -1)
        if c["norm_topk_prob"] != (self._trap == "norm_topk_flipped"):
            weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
        scaling = 1.0 if self._trap == "scaling_one" else c["routed_scaling_factor"]
        return ids, weights * scaling

    def _note_gap(self, gaps):
        self.choice_gap = min(self.choice_gap, float(gaps.min()))

    def moe(self, x, layer):
        ids, weights = self.gate(x, layer)
        self.experts.append(ids.astype(np.int32))
        out = np.zeros_like(x)
        for expert in np.unique(ids):
            if expert == 0 and self._trap == "expert_missing":
                continue
            token, k = np.nonzero(ids == expert)
            out[token] += weights[token, k, None] * self._mlp(x[token], f"{layer}.experts.{expert}")
        if self._trap != "no_shared_expert":
            out += self._mlp(x, f"{layer}.shared_experts")
        return out


class Forward(Layers):
    """A whole prompt: logits [n, vocab], hidden [layers, n, hidden] after each layer, experts [MoE
    layers, n, top_k]."""

    def __init__(self, config, weights, ids, trap=None):
        super().__init__(config, weights, trap)
        eps = 1e-6 if trap == "layer_eps" else config["rms_norm_eps"]
        x = self._get("model.embed_tokens.weight")[ids]
        hidden = []
        for layer in range(config["num_hidden_layers"]):
            p = f"model.layers.{layer}"
            x = x + self.attention(_rms_norm(x, self._get(f"{p}.input_layernorm.weight"), eps), p)
            y = _rms_norm(x, self._get(f"{p}.post_attention_layernorm.weight"), eps)
            dense = layer < config["first_k_dense_replace"]
            x = x + (self._mlp(y, f"{p}.mlp") if dense else self.moe(y, f"{p}.mlp"))
            hidden.append(x)
        self.hidden = np.stack(hidden)
        self.experts = np.array(self.experts)
        head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
        x = _rms_norm(x, self._get("model.norm.weight"), eps)
        self.logits = self._linear(x, head)
