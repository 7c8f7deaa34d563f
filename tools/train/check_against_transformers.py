"""Shows that model.py computes what transformers' DeepseekV3ForCausalLM computes, in f32.

Why it exists: everything the trainer reports rests on its own small model; this ties it to the public one.

    python3 check_against_transformers.py DIR [--rows 16]      a trained checkpoint
    python3 check_against_transformers.py --random             random weights, no files needed

Exits 1 when a logit differs by more than 1e-4 relative to the largest one, or an argmax differs.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

import torch
from transformers import DeepseekV3ForCausalLM

import checkpoint
import documents
from model import TinyDeepseek, tiny_config


def sample_rows(directory: Path, count: int) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer, rng = Tokenizer.from_file(str(directory / "tokenizer.json")), random.Random(3)
    return [tokenizer.encode("".join(documents.draw(rng)[:2]), add_special_tokens=False).ids for _ in range(count)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--rows", type=int, default=16)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = args.directory
        if args.random:
            directory = Path(scratch)
            model = TinyDeepseek(tiny_config())
            model.initialize(0)
            for moe in model.moe_layers():
                moe.gate.e_score_correction_bias.copy_(torch.rand(32, generator=torch.Generator().manual_seed(1)) * 0.3)
            checkpoint.save(model, directory)
            rows = [[random.Random(k).randrange(1024) for _ in range(600)] for k in range(2)]
        else:
            rows = sample_rows(directory, args.rows)
        ours = checkpoint.load(directory)
        theirs = DeepseekV3ForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    worst, largest, same, total = 0.0, 0.0, 0, 0
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row])
            a, b = ours(ids), theirs(ids).logits
            worst, largest = max(worst, (a - b).abs().max().item()), max(largest, b.abs().max().item())
            same += (a.argmax(-1) == b.argmax(-1)).sum().item()
            total += len(row)
    print(f"largest logit difference {worst:.2e} (logits up to {largest:.1f}), argmax equal at {same} of {total} positions")
    sys.exit(0 if worst < 1e-4 * largest and same == total else 1)


if __name__ == "__main__":
    main()
