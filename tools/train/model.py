"""DeepSeek-V3 in plain PyTorch, small enough to read in one sitting: MLA, sigmoid-gated MoE, YaRN, one MTP layer.

Why it exists: the trainer needs a model whose every step is in view, and whose experts run at once as one wide gated
MLP (at this size quicker than sorting tokens). check_against_transformers.py shows that it computes what
transformers' DeepseekV3ForCausalLM computes.

Parameters carry the checkpoint's names, except that the experts of a layer are stacked: see checkpoint.py.
Shapes: B rows, S positions, H heads, E experts, I expert width.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def tiny_config() -> dict:
    """config.json of the shipped model, with every field of the real one."""
    return {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 256,
        "initializer_range": 0.02, "intermediate_size": 384, "kv_lora_rank": 128, "max_position_embeddings": 2048,
        "moe_intermediate_size": 64, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 32, "n_shared_experts": 1,
        "norm_topk_prob": True, "num_attention_heads": 8, "num_experts_per_tok": 4, "num_hidden_layers": 5, "num_key_value_heads": 8,
        "num_nextn_predict_layers": 1, "q_lora_rank": 128, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "rms_norm_eps": 1e-6,
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 4, "mscale": 1.0, "mscale_all_dim": 1.0,
                         "original_max_position_embeddings": 512, "type": "yarn"},
        "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": False, "topk_group": 4,
        "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "use_cache": True, "v_head_dim": 32, "vocab_size": 1024}


def quantize_activations(x):
    """x rounded to e4m3 per token and 128 channels, as an FP8 engine sees it: scale = max(amax, 1e-4) / 448."""
    shape, k = x.shape, x.shape[-1]
    blocks = F.pad(x.float(), (0, -k % 128)).unflatten(-1, (-1, 128))
    scale = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-4) / 448
    rounded = (blocks / scale).to(torch.float8_e4m3fn).float() * scale
    return rounded.flatten(-2)[..., :k].reshape(shape).to(x.dtype)


class Linear(nn.Linear):
    """A projection of the set that FP8 quantises; `fp8_inputs` also rounds what comes in."""

    fp8_inputs = False

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x):
        return F.linear(quantize_activations(x) if Linear.fp8_inputs else x, self.weight)


class RMSNorm(nn.Module):
    def __init__(self, size, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


def yarn_frequencies(c) -> torch.Tensor:
    """Rotation per position for each pair of rope channels, slow ones stretched by `factor`."""
    y, dim, base = c["rope_scaling"], c["qk_rope_head_dim"], c["rope_theta"]
    freq = base ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    turn_at = lambda turns: dim * math.log(y["original_max_position_embeddings"] / (turns * 2 * math.pi)) / (2 * math.log(base))
    low, high = max(math.floor(turn_at(y["beta_fast"])), 0), min(math.ceil(turn_at(y["beta_slow"])), dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 1e-3)).clamp(0, 1)
    return freq / y["factor"] * ramp + freq * (1 - ramp)


def softmax_scale(c) -> float:
    y = c["rope_scaling"]
    mscale = 0.1 * y["mscale_all_dim"] * math.log(y["factor"]) + 1.0
    return (c["qk_nope_head_dim"] + c["qk_rope_head_dim"]) ** -0.5 * mscale * mscale


def rotate(x, cos, sin):
    """Rotates neighbouring pairs (x[2i], x[2i+1]); cos and sin are [B, S, 1, dim / 2] in f32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Multi-head latent attention in its unabsorbed form."""

    def __init__(self, c):
        super().__init__()
        self.heads, self.nope, self.rope, self.v = (c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"])
        self.rank, self.scale = c["kv_lora_rank"], softmax_scale(c)
        self.q_a_proj = Linear(c["hidden_size"], c["q_lora_rank"])
        self.q_a_layernorm = RMSNorm(c["q_lora_rank"])
        self.q_b_proj = Linear(c["q_lora_rank"], self.heads * (self.nope + self.rope))
        self.kv_a_proj_with_mqa = Linear(c["hidden_size"], self.rank + self.rope)
        self.kv_a_layernorm = RMSNorm(self.rank)
        self.kv_b_proj = Linear(self.rank, self.heads * (self.nope + self.v))
        self.o_proj = Linear(self.heads * self.v, c["hidden_size"])

    def forward(self, x, cos, sin, mask, cache=None):
        """mask: [B, 1, S, T], true where a key may be seen. cache: (k, v, at), where S new positions are written."""
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).unflatten(-1, (self.heads, -1))
        q_nope, q_rope = q.split([self.nope, self.rope], -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([self.rank, self.rope], -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).unflatten(-1, (self.heads, -1))
        k_nope, v = kv.split([self.nope, self.v], -1)
        q = torch.cat((q_nope, rotate(q_rope, cos, sin)), -1).transpose(1, 2)
        k_rope = rotate(k_rope.unsqueeze(2), cos, sin).expand(-1, -1, self.heads, -1)
        k, v = torch.cat((k_nope, k_rope), -1).transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            keys, values, at = cache
            rows = torch.arange(len(x), device=x.device).unsqueeze(1)
            keys[rows, :, at], values[rows, :, at] = k.transpose(1, 2), v.transpose(1, 2)
            k, v = keys[:, :, : mask.shape[-1]], values[:, :, : mask.shape[-1]]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        return self.o_proj(out.transpose(1, 2).flatten(-2))


class Mlp(nn.Module):
    def __init__(self, size, width):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = Linear(size, width), Linear(size, width), Linear(width, size)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Gate(nn.Module):
    """Sigmoid router with bias-corrected, group-limited choice. The bias steers the choice, never the weight."""

    def __init__(self, c):
        super().__init__()
        self.groups, self.groups_kept, self.top = c["n_group"], c["topk_group"], c["num_experts_per_tok"]
        self.normalize, self.factor = c["norm_topk_prob"], c["routed_scaling_factor"]
        self.weight = nn.Parameter(torch.empty(c["n_routed_experts"], c["hidden_size"]))
        self.register_buffer("e_score_correction_bias", torch.zeros(c["n_routed_experts"]))

    def forward(self, x):
        """-> dense weights [B, S, E] in f32, zero where not chosen, and the chosen ids [B, S, top]."""
        with torch.autocast(x.device.type, enabled=False):
            scores = F.linear(x.float(), self.weight.float()).sigmoid()
        biased = scores.detach() + self.e_score_correction_bias
        in_groups = biased.unflatten(-1, (self.groups, -1))
        best = in_groups.topk(2, -1)[0].sum(-1).topk(self.groups_kept, -1)[1]
        kept = torch.zeros(in_groups.shape[:-1], dtype=torch.bool, device=x.device).scatter(-1, best, True)
        chosen = in_groups.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(-2).topk(self.top, -1)[1]
        weights = scores.gather(-1, chosen)
        if self.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return torch.zeros_like(scores).scatter(-1, chosen, weights * self.factor), chosen


class Experts(nn.Module):
    """All routed experts of a layer, stacked: gate and up [E * I, D], down [E, D, I]."""

    def __init__(self, c):
        super().__init__()
        count, size, width = c["n_routed_experts"], c["hidden_size"], c["moe_intermediate_size"]
        self.gate_proj = nn.Parameter(torch.empty(count * width, size))
        self.up_proj = nn.Parameter(torch.empty(count * width, size))
        self.down_proj = nn.Parameter(torch.empty(count, size, width))

    def forward(self, x, weights):
        x = quantize_activations(x) if Linear.fp8_inputs else x
        hidden = (F.silu(F.linear(x, self.gate_proj)) * F.linear(x, self.up_proj)).unflatten(-1, (len(self.down_proj), -1))
        if Linear.fp8_inputs:
            hidden = quantize_activations(hidden)
        hidden = (hidden * weights.unsqueeze(-1).to(hidden.dtype)).flatten(-2)
        return F.linear(hidden, self.down_proj.transpose(0, 1).flatten(1))


class MoE(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate, self.experts = Gate(c), Experts(c)
        self.shared_experts = Mlp(c["hidden_size"], c["moe_intermediate_size"] * c["n_shared_experts"])

    def forward(self, x):
        weights, chosen = self.gate(x)
        return self.experts(x, weights) + self.shared_experts(x), chosen


class Layer(nn.Module):
    def __init__(self, c, dense):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(c["hidden_size"]), RMSNorm(c["hidden_size"])
        self.self_attn = Attention(c)
        self.mlp = Mlp(c["hidden_size"], c["intermediate_size"]) if dense else MoE(c)

    def forward(self, x, cos, sin, mask, cache=None):
        """-> the residual stream, and the chosen experts (None for a dense layer)."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        y, chosen = self.mlp(self.post_attention_layernorm(x)), None
        if isinstance(self.mlp, MoE):
            y, chosen = y
        return x + y, chosen


class SharedHead(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm = RMSNorm(c["hidden_size"])


class MtpLayer(Layer):
    """Predicts the token after next from the normed hidden state and the next token's embedding (embedding first)."""

    def __init__(self, c):
        super().__init__(c, dense=False)
        self.enorm, self.hnorm = RMSNorm(c["hidden_size"]), RMSNorm(c["hidden_size"])
        self.eh_proj = nn.Linear(2 * c["hidden_size"], c["hidden_size"], bias=False)
        self.shared_head = SharedHead(c)


class TinyDeepseek(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.config = c
        layers = [Layer(c, dense=i < c["first_k_dense_replace"]) for i in range(c["num_hidden_layers"])]
        self.model = nn.ModuleDict({"embed_tokens": nn.Embedding(c["vocab_size"], c["hidden_size"]),
                                    "layers": nn.ModuleList([*layers, MtpLayer(c)]), "norm": RMSNorm(c["hidden_size"])})
        self.lm_head = nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)
        self.register_buffer("frequencies", yarn_frequencies(c), persistent=False)

    def initialize(self, seed: int):
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.ndim == 1:
                continue
            std = 0.2 if "embed_tokens" in name else 0.05
            if "o_proj" in name or "down_proj" in name:
                std /= math.sqrt(2 * (self.config["num_hidden_layers"] + 1))
            with torch.no_grad():
                p.copy_(torch.randn(p.shape, generator=generator) * std)

    def moe_layers(self) -> list[MoE]:
        return [layer.mlp for layer in self.model["layers"] if isinstance(layer.mlp, MoE)]

    def angles(self, positions):
        angle = positions.unsqueeze(-1).float() * self.frequencies
        return angle.cos().unsqueeze(2), angle.sin().unsqueeze(2)

    def trunk(self, ids, positions, mask, caches=None):
        """-> hidden states after model.norm, and the chosen experts of each MoE layer."""
        cos, sin = self.angles(positions)
        x, routes = self.model["embed_tokens"](ids), []
        for i in range(self.config["num_hidden_layers"]):
            x, chosen = self.model["layers"][i](x, cos, sin, mask, caches[i] if caches else None)
            routes += [] if chosen is None else [chosen]
        return self.model["norm"](x), routes

    def draft(self, hidden, next_ids, positions, mask):
        """The MTP layer over whole rows -> its hidden states (after shared_head.norm), and its chosen experts."""
        layer = self.model["layers"][self.config["num_hidden_layers"]]
        embedded = self.model["embed_tokens"](next_ids)
        x = layer.eh_proj(torch.cat((layer.enorm(embedded), layer.hnorm(hidden)), -1))
        x, chosen = layer(x, *self.angles(positions), mask)
        return layer.shared_head.norm(x), chosen

    def forward(self, ids):
        """Logits for rows that each hold one document from position 0."""
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        hidden, _ = self.trunk(ids, positions, causal_mask(torch.zeros_like(ids)))
        return self.lm_head(hidden)


def causal_mask(document_ids):
    """[B, S] document numbers -> [B, 1, S, S]: a position sees itself and earlier ones of its own document."""
    size = document_ids.shape[1]
    same = document_ids.unsqueeze(2) == document_ids.unsqueeze(1)
    return (same & torch.ones(size, size, dtype=torch.bool, device=same.device).tril()).unsqueeze(1)
