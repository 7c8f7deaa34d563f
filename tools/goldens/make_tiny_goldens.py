"""Goldens of the shipped tiny model, in bf16 and in FP8: tests/golden/sluice_tiny*.safetensors.

    python tools/goldens/make_tiny_goldens.py

Prompts are the first problems of each task in its eval.jsonl, through its chat template; those are
passed over at which a greedy margin or a gap between router scores comes near float32's rounding.
"""

import json

import checkpoint
import make_goldens
import numpy as np
import random_weights
import reference
import torch
import transformers_model
from safetensors import safe_open
from transformers import AutoTokenizer

MODELS = checkpoint.CONFIGS.parents[2] / "deploy" / "models"
PROMPTS = 12
GREEDY_STEPS = 64
MIN_MARGIN = 5e-3
MIN_CHOICE_GAP = 2e-6


def stored_weights(directory):
    """Name -> f32 array of every tensor but the MTP module's; FP8 ones dequantised."""
    config = json.loads((directory / "config.json").read_text())
    mtp = f"model.layers.{config['num_hidden_layers']}."
    weights = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                if not name.startswith(mtp):
                    weights[name] = file.get_tensor(name)
    scales = {name: weights.pop(name) for name in list(weights) if name.endswith("_scale_inv")}
    out = {}
    for name, tensor in weights.items():
        values = tensor.float().numpy()
        if f"{name}_scale_inv" in scales:
            values = random_weights.dequantise_fp8(values, scales[f"{name}_scale_inv"].numpy())
        out[name] = values
    return config, out


def tasks_in_turn(directory):
    """The problems of eval.jsonl: the first of each task, then the second of each, …"""
    by_task = {}
    for line in (directory / "eval.jsonl").read_text().splitlines():
        problem = json.loads(line)
        by_task.setdefault(problem["task"], []).append(problem)
    for rank in range(max(map(len, by_task.values()))):
        for problems in by_task.values():
            if rank < len(problems):
                yield problems[rank]


@torch.no_grad()
def make(name, prompts):
    """prompts: id arrays to take as they are, or None to choose them. Returns the ids used."""
    directory = MODELS / name
    config, weights = stored_weights(directory)
    model = transformers_model.load(config, weights)
    chosen = prompts is None
    if chosen:
        tokenizer = AutoTokenizer.from_pretrained(directory)
        prompts = (
            np.array(tokenizer.apply_chat_template(
                problem["messages"], add_generation_prompt=True, return_dict=False), np.int32)
            for problem in tasks_in_turn(directory)
        )
    tensors, used, worst, smallest_margin, smallest_gap = {}, [], 0.0, np.inf, np.inf
    for ids in prompts:
        with transformers_model.Recording(model) as recording:
            logits = model(torch.from_numpy(ids)[None].long()).logits[0].numpy()
        tokens, margins, logprobs = transformers_model.greedy(
            model, ids, GREEDY_STEPS, config["eos_token_id"])
        exact = reference.Forward(config, weights, np.concatenate([ids, tokens]))
        if margins.min() < MIN_MARGIN or exact.choice_gap < MIN_CHOICE_GAP:
            print(f"{name}: prompt passed over, margin {margins.min():.1e}, "
                  f"gap {exact.choice_gap:.1e}", flush=True)
            if not chosen:
                used.append(ids)
            continue
        smallest_margin = min(smallest_margin, float(margins.min()))
        smallest_gap = min(smallest_gap, exact.choice_gap)
        worst = max(worst, make_goldens.relative_difference(logits, exact.logits[: len(ids)]))
        prompt = f"prompt.{len(used)}"
        used.append(ids)
        tensors[f"{prompt}.ids"] = ids
        tensors[f"{prompt}.logits"] = logits[-1]
        tensors[f"{prompt}.greedy"] = tokens
        tensors[f"{prompt}.greedy_margins"] = margins
        tensors[f"{prompt}.greedy_logprobs"] = logprobs
        tensors[f"{prompt}.experts"] = recording.experts
        if prompt == "prompt.0":
            tensors[f"{prompt}.hidden"] = recording.hidden
        if len(used) == PROMPTS:
            break
    if worst > make_goldens.TOLERANCE:
        raise ValueError(f"{name}: transformers and the reference differ by {worst:.1e}")
    make_goldens.write(name.replace("-", "_"), tensors, smallest_greedy_margin=smallest_margin,
                       smallest_choice_gap=smallest_gap, difference_to_float64=worst)
    return used


def main():
    torch.set_num_threads(1)
    make("sluice-tiny-fp8", make("sluice-tiny", None))


if __name__ == "__main__":
    main()
