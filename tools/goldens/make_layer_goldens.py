"""Goldens of one attention layer and one MoE layer at DeepSeek-V3's true shapes.

    python tools/goldens/make_layer_goldens.py
    python tools/goldens/make_layer_goldens.py --check cuda

Writes tests/golden/v3_attention_layer.safetensors and v3_moe_layer.safetensors. Weights and inputs
come from the generator (model.layers.0 is the attention layer, model.layers.3 the MoE one), so the
files hold outputs only; of the 256 experts only those that the 4 tokens choose are made. With --check
nothing is written: transformers runs on that device, in float32, and must agree with the files.
"""

import argparse
import copy
import math

import checkpoint
import make_goldens
import numpy as np
import random_weights
import reference
import torch
from safetensors.numpy import load_file
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config

SEED = 1
CONTEXT = 130  # tokens of the attention layer's sequence, more than two pages
QUERIES = [0, 63, 64, 129]  # the positions whose outputs are kept
MOE_TOKENS = 4
TOLERANCE = 2e-5

CONFIG = {
    "model_type": "deepseek_v3", "vocab_size": 8, "hidden_size": 7168, "num_hidden_layers": 4,
    "intermediate_size": 8, "moe_intermediate_size": 2048, "first_k_dense_replace": 3,
    "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8,
    "topk_group": 4, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-6,
    "rope_theta": 10000, "max_position_embeddings": 163840, "tie_word_embeddings": False,
    "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
                     "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096},
}


class Weights:
    """Makes tensors when they are asked for; the largest are not worth keeping."""

    def __init__(self):
        self._shapes = checkpoint.tensor_shapes(CONFIG)

    def __getitem__(self, name):
        return checkpoint.stored_tensor(SEED, name, self._shapes[name])


def attention_input():
    return random_weights.normal(SEED, "attention.input", (CONTEXT, CONFIG["hidden_size"]), 1.0)


def moe_input():
    """Tokens that resemble each other, so that they share many of their experts."""
    hidden = CONFIG["hidden_size"]
    common = random_weights.normal(SEED, "moe.input.common", (1, hidden), 1.0)
    return common + random_weights.normal(SEED, "moe.input", (MOE_TOKENS, hidden), 0.125)


def load(module, weights, prefix, device):
    for name, parameter in module.state_dict().items():
        parameter.copy_(torch.from_numpy(weights[f"{prefix}.{name}"]))
    return module.to(device)


def check(name, ours, exact):
    difference = make_goldens.relative_difference(ours, exact)
    if difference > TOLERANCE:
        raise ValueError(f"{name}: transformers and the reference differ by {difference:.1e}")
    return difference


@torch.no_grad()
def attention(config, weights, device):
    """What transformers computes for the sequence, and the inputs of it."""
    layer = load(v3.DeepseekV3Attention(config, 0), weights, "model.layers.0.self_attn", device)
    x = attention_input()
    positions = torch.arange(CONTEXT, device=device)[None]
    inputs = torch.from_numpy(x)[None].to(device)
    cos_sin = v3.DeepseekV3RotaryEmbedding(config).to(device)(inputs, positions)
    mask = torch.full((CONTEXT, CONTEXT), -math.inf, device=device).triu(1)[None, None]
    return layer(inputs, cos_sin, mask)[0][0].cpu().numpy(), x


@torch.no_grad()
def moe(config, weights, device):
    """Output, chosen experts and their weights, and the inputs."""
    prefix = "model.layers.3.mlp"
    router = load(v3.DeepseekV3TopkRouter(config), weights, f"{prefix}.gate", device)
    inputs = moe_input()
    x = torch.from_numpy(inputs).to(device)
    logits, expert_weights, ids = router(x)
    order = (logits.sigmoid() + router.e_score_correction_bias).gather(1, ids).argsort(
        dim=1, descending=True, stable=True)
    ids, expert_weights = ids.gather(1, order), expert_weights.gather(1, order)
    chosen, slots = ids.unique(return_inverse=True)
    small = copy.deepcopy(config)
    small.n_routed_experts = len(chosen)
    experts = v3.DeepseekV3Experts(small)
    for slot, expert in enumerate(chosen.tolist()):
        p = f"{prefix}.experts.{expert}"
        gate_up = np.concatenate([weights[f"{p}.gate_proj.weight"], weights[f"{p}.up_proj.weight"]])
        experts.gate_up_proj[slot] = torch.from_numpy(gate_up)
        experts.down_proj[slot] = torch.from_numpy(weights[f"{p}.down_proj.weight"])
    shared = load(v3.DeepseekV3MLP(config, 2048), weights, f"{prefix}.shared_experts", device)
    out = experts.to(device)(x, slots, expert_weights) + shared(x)
    return out.cpu().numpy(), ids.cpu().numpy(), expert_weights.cpu().numpy(), inputs


def write_attention(config, weights):
    out, x = attention(config, weights, "cpu")
    exact = reference.Layers(CONFIG, weights)
    difference = check("attention", out, exact.attention(x.astype(np.float64), "model.layers.0"))
    make_goldens.write("v3_attention_layer",
                       {"positions": np.array(QUERIES, np.int32), "output": out[QUERIES]},
                       seed=SEED, difference_to_float64=difference)


def write_moe(config, weights):
    out, ids, expert_weights, x = moe(config, weights, "cpu")
    exact = reference.Layers(CONFIG, weights)
    difference = check("moe", out, exact.moe(x.astype(np.float64), "model.layers.3.mlp"))
    if not np.array_equal(exact.experts[0], ids):
        raise ValueError("moe: the reference chooses other experts than transformers")
    make_goldens.write("v3_moe_layer",
                       {"experts": ids.astype(np.int32), "expert_weights": expert_weights,
                        "output": out},
                       seed=SEED, distinct_experts=len(np.unique(ids)),
                       smallest_choice_gap=exact.choice_gap, difference_to_float64=difference)


def check_on(device, config, weights):
    torch.backends.cuda.matmul.allow_tf32 = False
    stored = load_file(checkpoint.CONFIGS.parent / "v3_attention_layer.safetensors")
    out, _ = attention(config, weights, device)
    print(f"attention: {check('attention', out[QUERIES], stored['output']):.1e}")
    stored = load_file(checkpoint.CONFIGS.parent / "v3_moe_layer.safetensors")
    out, ids, expert_weights, _ = moe(config, weights, device)
    if not np.array_equal(stored["experts"], ids):
        raise ValueError(f"moe: transformers on {device} chooses other experts")
    print(f"expert weights: {check('weights', expert_weights, stored['expert_weights']):.1e}")
    print(f"moe: {check('moe', out, stored['output']):.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", metavar="DEVICE", help="compare instead of writing")
    options = parser.parse_args()
    torch.set_num_threads(2)
    config = DeepseekV3Config(**CONFIG)
    config._attn_implementation = config._experts_implementation = "eager"
    weights = Weights()
    if options.check is not None:
        check_on(options.check, config, weights)
        return
    write_attention(config, weights)
    write_moe(config, weights)


if __name__ == "__main__":
    main()
