"""Reads and writes Hugging Face checkpoint directories with the original DeepSeek-V3 tensor names.

Why it exists: in memory a layer's experts are stacked (model.py), on disk each has its own three tensors. The MTP
layer's embed_tokens and shared_head.head are left out: they are the main model's. FP8 weights come back dequantised.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model import TinyDeepseek


def to_checkpoint_names(model: TinyDeepseek) -> dict[str, torch.Tensor]:
    """Every tensor under its name on disk, f32, on the CPU."""
    out, count = {}, model.config["n_routed_experts"]
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().float().cpu()
        match = re.match(r"(.*\.mlp\.experts)\.(gate_proj|up_proj|down_proj)$", name)
        if not match:
            out[name] = tensor
            continue
        stacked = tensor if match[2] == "down_proj" else tensor.unflatten(0, (count, -1))
        for e in range(count):
            out[f"{match[1]}.{e}.{match[2]}.weight"] = stacked[e]
    return {k: v.contiguous().clone() for k, v in out.items()}


def from_checkpoint_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse: a state dict for TinyDeepseek."""
    out, stacks = {}, {}
    for name, tensor in tensors.items():
        match = re.match(r"(.*\.mlp\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight$", name)
        if match:
            stacks.setdefault((match[1], match[3]), {})[int(match[2])] = tensor
        else:
            out[name] = tensor
    for (prefix, part), by_id in stacks.items():
        stacked = torch.stack([by_id[e] for e in range(len(by_id))])
        out[f"{prefix}.{part}"] = stacked if part == "down_proj" else stacked.flatten(0, 1)
    return out


def save(model: TinyDeepseek, directory: Path):
    """Writes config.json, generation_config.json and model.safetensors (bf16; the router's bias stays f32)."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = to_checkpoint_names(model)
    for name, tensor in tensors.items():
        if name.endswith("e_score_correction_bias"):
            # Only differences between experts matter. With none below 0 every biased score is positive, so engines that
            # mask unkept groups with 0 and those that mask with -inf choose alike.
            tensors[name] = tensor - tensor.min()
        else:
            tensors[name] = tensor.bfloat16()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    write_json(directory / "config.json", model.config)
    write_json(directory / "generation_config.json",
               {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 0.6, "top_p": 0.95})


def write_json(path: Path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def dequantize(weight: torch.Tensor, scale_inv: torch.Tensor, block: int = 128) -> torch.Tensor:
    rows, columns = weight.shape
    scale = scale_inv.repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :columns]
    return weight.float() * scale


def load(directory: Path, dtype=torch.float32, device="cpu") -> TinyDeepseek:
    tensors = load_file(directory / "model.safetensors")
    for name in [n for n in tensors if n.endswith("_scale_inv")]:
        scale = tensors.pop(name)
        weight = name.removesuffix("_scale_inv")
        tensors[weight] = dequantize(tensors[weight], scale)
    model = TinyDeepseek(json.loads((directory / "config.json").read_text()))
    model.load_state_dict(from_checkpoint_names({k: v.float() for k, v in tensors.items()}))
    model = model.to(device=device, dtype=dtype).eval()
    # Buffers that stay f32 whatever the weights are.
    model.frequencies = TinyDeepseek(model.config).frequencies.to(device)
    for moe, name in zip(model.moe_layers(), [n for n in sorted(tensors) if n.endswith("e_score_correction_bias")]):
        moe.gate.e_score_correction_bias = tensors[name].float().to(device)
    return model
