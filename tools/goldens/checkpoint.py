"""The tensors of a DeepSeek-family checkpoint, by name, made from the generator."""

import json
from pathlib import Path

import numpy as np
import random_weights

CONFIGS = Path(__file__).resolve().parents[2] / "tests" / "golden" / "configs"


def load_config(name):
    return json.loads((CONFIGS / name / "config.json").read_text())


def tensor_shapes(config):
    """Name -> shape of every tensor of the main model (no MTP layers)."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    nope, rope = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    v, kv_lora = config["v_head_dim"], config["kv_lora_rank"]
    q_lora = config["q_lora_rank"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}

    def mlp(prefix, width):
        shapes[f"{prefix}.gate_proj.weight"] = (width, hidden)
        shapes[f"{prefix}.up_proj.weight"] = (width, hidden)
        shapes[f"{prefix}.down_proj.weight"] = (hidden, width)

    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}"
        shapes[f"{p}.input_layernorm.weight"] = (hidden,)
        shapes[f"{p}.post_attention_layernorm.weight"] = (hidden,)
        if q_lora:
            shapes[f"{p}.self_attn.q_a_proj.weight"] = (q_lora, hidden)
            shapes[f"{p}.self_attn.q_a_layernorm.weight"] = (q_lora,)
            shapes[f"{p}.self_attn.q_b_proj.weight"] = (heads * (nope + rope), q_lora)
        else:
            shapes[f"{p}.self_attn.q_proj.weight"] = (heads * (nope + rope), hidden)
        shapes[f"{p}.self_attn.kv_a_proj_with_mqa.weight"] = (kv_lora + rope, hidden)
        shapes[f"{p}.self_attn.kv_a_layernorm.weight"] = (kv_lora,)
        shapes[f"{p}.self_attn.kv_b_proj.weight"] = (heads * (nope + v), kv_lora)
        shapes[f"{p}.self_attn.o_proj.weight"] = (hidden, heads * v)
        if layer < config["first_k_dense_replace"]:
            mlp(f"{p}.mlp", config["intermediate_size"])
            continue
        width = config["moe_intermediate_size"]
        shapes[f"{p}.mlp.gate.weight"] = (config["n_routed_experts"], hidden)
        if config["model_type"] == "deepseek_v3":
            shapes[f"{p}.mlp.gate.e_score_correction_bias"] = (config["n_routed_experts"],)
        for expert in range(config["n_routed_experts"]):
            mlp(f"{p}.mlp.experts.{expert}", width)
        mlp(f"{p}.mlp.shared_experts", width * config["n_shared_experts"])
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def stored_tensor(seed, name, shape, fp8=False, ignore_partial_blocks=False):
    """The f32 values that a tensor has once stored: rounded to bf16, or quantised in FP8.

    ignore_partial_blocks is a mistake to make on purpose: partial blocks keep their codes unscaled.
    """
    values = random_weights.checkpoint_tensor(seed, name, shape)
    if name.endswith("e_score_correction_bias"):
        return values  # checkpoints hold it in f32
    if not (fp8 and random_weights.is_fp8(name)):
        return random_weights.round_to_bf16(values)
    codes, scales = random_weights.quantise_fp8(values)
    if ignore_partial_blocks:
        block = random_weights.FP8_BLOCK
        scales[shape[0] // block :, :] = 1
        scales[:, shape[1] // block :] = 1
    return random_weights.dequantise_fp8(codes, scales)


def make_weights(config, seed, ignore_partial_blocks=False):
    """Name -> f32 array of what a checkpoint with this config.json holds."""
    fp8 = "quantization_config" in config
    return {
        name: stored_tensor(seed, name, shape, fp8, ignore_partial_blocks)
        for name, shape in tensor_shapes(config).items()
    }


def prompt_ids(seed, length, vocab_size):
    drawn = random_weights.bits(seed, f"prompt.{length}", 0, length)
    return (drawn % np.uint64(vocab_size)).astype(np.int32)
