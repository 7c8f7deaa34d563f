"""Trains the MTP layer of a finished checkpoint until its drafts are right as often as wanted, and no further.

Why it exists: trained along with the model, the MTP layer of so small a model becomes right 99.8 % of the time on
problems, and a server's way of rejecting drafts would never run. So it is trained alone, over a fixed main model, and
stopped at a share of accepted drafts like that of the large models. No main weight changes.

    python3 train_draft.py DIR [--target 0.88] [--seconds-max 60]

Acceptance here: over reply tokens of the training mix, draft = the main model's greedy choice (teacher-forced).
"""

import argparse
import time
from pathlib import Path

import torch

import checkpoint
import model as tiny
from stream import Stream
from train import CLIP, balance, make_optimizer, mean, token_losses

LR, WARMUP_STEPS = 1e-3, 50


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--target", type=float, default=0.88)
    parser.add_argument("--seconds-max", type=float, default=60)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--rows", type=int, default=128)
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    stream = Stream(str(args.directory / "tokenizer.json"), args.rows, args.workers, args.seed)
    model = checkpoint.load(args.directory, device=device)
    model.requires_grad_(False)
    layer = model.model["layers"][-1].requires_grad_(True)
    optimizer, head = make_optimizer(layer), model.lm_head.weight
    log = open(args.directory / "training_log_draft.csv", "w")
    print("seconds,step,loss,acceptance,load_max_over_mean", file=log)

    batch = torch.from_numpy(stream.next()).to(device).long()
    begin, step, smooth = time.time(), 0, 0.0
    while smooth < args.target and time.time() - begin < args.seconds_max:
        ids, kind, document, positions = batch
        mask = tiny.causal_mask(document)
        with torch.autocast(device, dtype=torch.bfloat16):
            with torch.no_grad():
                hidden, _ = model.trunk(ids, positions, mask)
                choice = model.lm_head(hidden).argmax(-1)
            drafted, chosen = model.draft(hidden, ids.roll(-1, 1), positions, mask)
            losses, at = token_losses(drafted, head, ids, kind, document, 2)
            loss = mean(losses, at > 0)
            with torch.no_grad():
                draft = model.lm_head(drafted).argmax(-1)
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / WARMUP_STEPS)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(layer.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        load = balance([layer.mlp], [chosen], document, update=True)
        accepted = mean((draft[:, :-2] == choice[:, 1:-1]).float(), at > 0).item()
        smooth = 0.7 * smooth + 0.3 * accepted
        if step % 10 == 0:
            line = f"{time.time() - begin:.1f},{step},{loss.item():.5g},{accepted:.4f},{load.item():.4g}"
            print(line, file=log, flush=True)
            print("draft", line, flush=True)
        batch = torch.from_numpy(stream.next()).to(device).long()
        step += 1
    stream.close()
    checkpoint.save(model, args.directory)
    print(f"draft: stopped after {step} steps, {time.time() - begin:.1f} s, at acceptance {smooth:.4f}", flush=True)


if __name__ == "__main__":
    main()
