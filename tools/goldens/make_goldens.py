"""Goldens of the small random-weight geometries: tests/golden/<geometry>.safetensors.

    python tools/goldens/make_goldens.py [GEOMETRY …]

For each geometry the first seed is taken at which every greedy margin and every gap between router
scores is far above float32's rounding, in transformers and in the float64 reference alike.
tests/golden/README.md names the tensors.
"""

import sys

import checkpoint
import numpy as np
import reference
import torch
import transformers
import transformers_model
from safetensors.numpy import save_file

GEOMETRIES = ["v3_grouped", "v3_grouped_fp8", "v3_ungrouped_noqlora", "v2_softmax", "v2_grouped"]
PROMPT_LENGTHS = [1, 2, 63, 64, 65, 130]
FULL_LENGTH = 65  # the prompt whose logits and hidden states are kept at every position
GREEDY_STEPS = 64
MIN_MARGIN = 5e-4  # of logits
MIN_CHOICE_GAP = 2e-6  # of router scores
TOLERANCE = 2e-5  # transformers against the float64 reference, relative to the largest value


class Unsuitable(Exception):
    pass


def relative_difference(a, b):
    return float(np.abs(a - b).max() / np.abs(b).max())


@torch.no_grad()
def make(name, seed):
    """Golden tensors of one geometry and seed, checked against the float64 reference."""
    config = checkpoint.load_config(name)
    weights = checkpoint.make_weights(config, seed)
    model = transformers_model.load(config, weights)
    tensors, worst, smallest_gap = {}, 0.0, np.inf
    for length in PROMPT_LENGTHS:
        ids = checkpoint.prompt_ids(seed, length, config["vocab_size"])
        with transformers_model.Recording(model) as recording:
            logits = model(torch.from_numpy(ids)[None].long()).logits[0].numpy()
        tokens, margins, _ = transformers_model.greedy(model, ids, GREEDY_STEPS)
        if margins.min() < MIN_MARGIN:
            raise Unsuitable(f"prompt {length}: greedy margin {margins.min():.1e}")
        exact = reference.Forward(config, weights, np.concatenate([ids, tokens]))
        smallest_gap = min(smallest_gap, exact.choice_gap)
        if smallest_gap < MIN_CHOICE_GAP:
            raise Unsuitable(f"prompt {length}: router gap {smallest_gap:.1e}")
        worst = max(
            worst,
            relative_difference(logits, exact.logits[:length]),
            relative_difference(recording.hidden, exact.hidden[:, :length]),
        )
        if not np.array_equal(recording.experts, exact.experts[:, :length]):
            raise ValueError(f"{name}: the reference chooses other experts than transformers")
        if not np.array_equal(tokens, exact.logits[length - 1 : -1].argmax(-1)):
            raise ValueError(f"{name}: the reference chooses other tokens than transformers")
        prompt = f"prompt.{length}"
        tensors[f"{prompt}.ids"] = ids
        tensors[f"{prompt}.logits"] = logits[-1]
        tensors[f"{prompt}.experts"] = recording.experts
        tensors[f"{prompt}.greedy"] = tokens
        tensors[f"{prompt}.greedy_margins"] = margins
        if length == FULL_LENGTH:
            tensors[f"{prompt}.all_logits"] = logits
            tensors[f"{prompt}.hidden"] = recording.hidden
    if worst > TOLERANCE:
        raise ValueError(f"{name}: transformers and the reference differ by {worst:.1e}")
    return tensors, worst, smallest_gap


def metadata(**extra):
    return {
        "command": "python tools/goldens/" + " ".join(sys.argv).rpartition("/")[2],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **{key: str(value) for key, value in extra.items()},
    }


def write(name, tensors, seed=None, **extra):
    if seed is not None:
        tensors["seed"] = np.array([seed], np.int32)
    path = checkpoint.CONFIGS.parent / f"{name}.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path, metadata(**extra))
    print(f"{path.name}: {path.stat().st_size} bytes, {extra}", flush=True)


def main():
    torch.set_num_threads(1)
    for name in sys.argv[1:] or GEOMETRIES:
        for seed in range(1, 1000):
            try:
                tensors, worst, gap = make(name, seed)
            except Unsuitable as reason:
                print(f"{name}: seed {seed}: {reason}", flush=True)
                continue
            margin = min(t.min() for k, t in tensors.items() if k.endswith("greedy_margins"))
            write(name, tensors, seed=seed, smallest_greedy_margin=margin,
                  smallest_choice_gap=gap, difference_to_float64=worst)
            break


if __name__ == "__main__":
    main()
