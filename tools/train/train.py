"""Trains the tiny model from nothing, in minutes on one GPU, and writes a Hugging Face checkpoint directory.

Why it exists: the server ships with a model that really reasons, so its first run shows real input and real output.

    python3 train.py --tokenizer DIR --out DIR --seconds 420 [--seed 1] [--workers 14] [--rows 128]

The learning rate falls linearly to 0 in wall time, so --seconds is the one knob; the clock starts when everything is
compiled. training_log.csv is written beside the model; a checkpoint is saved every --save-every seconds and at the end.

Loss: cross entropy of the replies. The MTP layer is left at its start values here; train_draft.py trains it afterwards.
"""

import argparse
import math
import shutil
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import checkpoint
import model as tiny
from stream import Stream

PEAK_LR, WARMUP_STEPS, WEIGHT_DECAY, CLIP, BIAS_STEP = 3e-3, 200, 0.05, 1.0, 1e-3
LOG_FIELDS = "seconds,step,tokens,lr,loss_determined,loss_open,grad_norm,load_max_over_mean,queue"


def make_optimizer(model):
    matrices = [p for n, p in model.named_parameters() if p.ndim > 1 and "embed_tokens" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or "embed_tokens" in n]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), eps=1e-10, fused=torch.cuda.is_available())


def token_losses(hidden, head, ids, loss_kind, document, ahead: int):
    """Cross entropy of the token `ahead` places on -> per position [B, S - ahead], and its kind there (0 = not counted)."""
    logits = F.linear(hidden[:, :-ahead], head).float()
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, ahead:].flatten(), reduction="none").view(len(ids), -1)
    kind = torch.where(document[:, ahead:] == document[:, :-ahead], loss_kind[:, ahead:], 0)
    return losses, kind


def mean(values, where):
    return (values * where).sum() / where.sum().clamp(min=1)


def forward_losses(model, batch):
    """-> the loss, its parts (determined and open replies) and the expert choices of each MoE layer."""
    ids, kind, document, positions = batch
    hidden, routes = model.trunk(ids, positions, tiny.causal_mask(document))
    losses, at = token_losses(hidden, model.lm_head.weight, ids, kind, document, 1)
    return mean(losses, at > 0), torch.stack((mean(losses, at == 1), mean(losses, at == 2))).detach(), routes


@torch.no_grad()
def balance(layers, routes, document, update: bool):
    """Moves the router bias of each MoE layer one step against its load; -> the largest max/mean over layers."""
    worst, valid = [], (document >= 0).unsqueeze(-1)
    for moe, chosen in zip(layers, routes, strict=True):
        bias = moe.gate.e_score_correction_bias
        load = torch.zeros_like(bias).scatter_add_(0, chosen.flatten(), valid.expand_as(chosen).flatten().float())
        if update:
            bias += BIAS_STEP * torch.sign(load.mean() - load)
        worst.append(load.max() / load.mean())
    return torch.stack(worst).max()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=420)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--save-every", type=float, default=100)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    stream = Stream(str(args.tokenizer / "tokenizer.json"), args.rows, args.workers, args.seed)
    model = tiny.TinyDeepseek(tiny.tiny_config())
    model.initialize(args.seed)
    model = model.to(device)
    print(f"{sum(p.numel() for p in model.parameters())} parameters on {device}", flush=True)
    if not args.no_compile:
        for layer in model.model["layers"]:
            layer.compile()
        globals()["token_losses"] = torch.compile(token_losses)
    optimizer = make_optimizer(model)

    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if args.tokenizer.resolve() != args.out.resolve():
            shutil.copyfile(args.tokenizer / name, args.out / name)
    log = open(args.out / "training_log.csv", "w")
    print(LOG_FIELDS, file=log, flush=True)

    begin, last_save, last_print, step = time.time(), 0.0, -10.0, 0
    while True:
        if step == 5:  # compiled by now
            if device == "cuda":
                torch.cuda.synchronize()
            print(f"compiled in {time.time() - begin:.1f} s", flush=True)
            begin = time.time()
        elapsed = time.time() - begin if step >= 5 else 0.0
        progress = elapsed / args.seconds
        if progress >= 1:
            break
        lr = PEAK_LR * min(1.0, (step + 1) / WARMUP_STEPS) * (1 - progress)
        for group in optimizer.param_groups:
            group["lr"] = lr
        batch = torch.from_numpy(stream.next()).to(device, non_blocking=True).long()
        with torch.autocast(device, dtype=torch.bfloat16):
            loss, parts, routes = forward_losses(model, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        load = balance(model.moe_layers()[:-1], routes, batch[2], update=progress < 0.9)
        if step % 50 == 0:
            row = [*parts.tolist(), norm.item(), load.item(), stream.queue.qsize()]
            line = f"{elapsed:.1f},{step},{(step + 1) * batch[0].numel()},{lr:.2e}," + ",".join(f"{v:.5g}" for v in row)
            print(line, file=log, flush=True)
            if elapsed - last_print >= 10:
                print(line, flush=True)
                last_print = elapsed
            if not math.isfinite(row[0]):
                raise SystemExit("the loss is not finite")
        if elapsed - last_save >= args.save_every:
            checkpoint.save(model, args.out)
            last_save = elapsed
        step += 1
    stream.close()
    checkpoint.save(model, args.out)
    print(f"done: {step} steps, {step * args.rows * 512} tokens, {time.time() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main()
