"""Measures a checkpoint: accuracy per task, how often its MTP drafts are right, how unevenly domains load its experts.

Why it exists: these are the numbers that the model's README promises and that an engine is later compared with.

    python3 evaluate.py DIR --eval eval.jsonl [--fp8 DIR_FP8] [--held-out 200] --out report.json

Accuracy: greedy replies whose text after </think> is exactly the expected sentence. Runs are named by how they compute:
bf16, f32 (the bf16 weights, f32 maths), fp8 (dequantised weights, bf16 maths), fp8_w8a8 (activations rounded as well).
"""

import argparse
import json
import random
import time
from collections import defaultdict
from pathlib import Path

import torch
from tokenizers import Tokenizer

import checkpoint
import documents
import model as tiny
import prose
import stream
from generate import greedy
from make_eval_set import held_out_set

# Held-out problems other than those of eval.jsonl come from this seed.
HELD_OUT_SEED = 777


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def accuracy(model, tokenizer, items, chunk=2800):
    """-> {"all": share, task: share}, the wrong ones, and (prompt, reply) id pairs."""
    right, total, wrong, pairs = defaultdict(int), defaultdict(int), [], []
    for begin in range(0, len(items), chunk):
        part = items[begin : begin + chunk]
        prompts = [encode(tokenizer, documents.render(item["messages"])) for item in part]
        for item, prompt, reply in zip(part, prompts, greedy(model, prompts)):
            text = tokenizer.decode(reply, skip_special_tokens=False)
            answer = text.split(documents.END_THINK)[-1].strip()
            good = documents.END_THINK in text and answer == item["answer"]
            right[item["task"]] += good
            total[item["task"]] += 1
            pairs.append((prompt, reply + [1]))
            if not good:
                wrong.append({"id": item["id"], "question": item["messages"][-1]["content"], "expected": item["answer"], "got": text[-200:]})
    shares = {"all": sum(right.values()) / sum(total.values())} | {t: right[t] / total[t] for t in total}
    return {k: round(v, 5) for k, v in shares.items()}, wrong, pairs


@torch.no_grad()
def read(model, batch):
    """One packed batch [4, rows, ROW] -> main argmax, draft argmax, chance of the draft under the main model, routes."""
    ids, kind, document, positions = batch
    mask = tiny.causal_mask(document)
    hidden, routes = model.trunk(ids, positions, mask)
    drafted, chosen = model.draft(hidden, ids.roll(-1, 1), positions, mask)
    probabilities = model.lm_head(hidden).float().softmax(-1)
    drafts = model.lm_head(drafted).float().argmax(-1)
    chance = probabilities[:, 1:].gather(-1, drafts[:, :-1].unsqueeze(-1)).squeeze(-1)  # the draft made at t is for t + 2
    return probabilities.argmax(-1), drafts, chance, [*routes, chosen]


def drawn_batch(model, tokenizer, draw, rows=64, seed=99):
    batch = next(stream.batches(tokenizer, random.Random(seed), rows, draw))
    return torch.from_numpy(batch).to(model.lm_head.weight.device).long()


def acceptance(model, batch):
    """Of drafts within replies: the share equal to the main model's greedy choice, and the mean chance of acceptance when the
    main model samples at temperature 1; both over the batch's teacher-forced text."""
    greedy_ids, drafts, chance, _ = read(model, batch)
    _, kind, document, _ = batch
    where = (kind[:, 2:] > 0) & (document[:, 2:] == document[:, :-2])
    agree = (drafts[:, :-2] == greedy_ids[:, 1:-1])[where].float().mean().item()
    return {"greedy": round(agree, 4), "sampled": round(chance[:, :-1][where].mean().item(), 4), "drafts": int(where.sum())}


def acceptance_on_replies(model, pairs):
    """The same for the model's own greedy replies: a draft is accepted when it is the token that came."""
    right = total = 0
    for begin in range(0, len(pairs), 128):
        part = pairs[begin : begin + 128]
        rows = [p + r for p, r in part]
        width = max(map(len, rows))
        ids = torch.tensor([row + [2] * (width - len(row)) for row in rows], device=model.lm_head.weight.device)
        batch = (ids, None, torch.zeros_like(ids), torch.arange(width, device=ids.device).expand_as(ids))
        _, drafts, _, _ = read(model, batch)
        places = torch.arange(width - 2, device=ids.device)
        first = torch.tensor([len(p) for p, _ in part], device=ids.device).unsqueeze(1)
        last = torch.tensor([len(row) for row in rows], device=ids.device).unsqueeze(1)
        where = (places + 2 > first) & (places + 2 < last)  # the first token comes from the prompt pass, undrafted
        right += (drafts[:, :-2] == ids[:, 2:])[where].sum().item()
        total += where.sum().item()
    return {"greedy": round(right / total, 4), "drafts": total}


def expert_load(model, batch):
    """max/mean of tokens per expert, for each MoE layer (the MTP layer last)."""
    routes, valid = read(model, batch)[3], batch[2] >= 0
    counts = [torch.bincount(chosen[valid].flatten(), minlength=model.config["n_routed_experts"]).float() for chosen in routes]
    return [round((c.max() / c.mean()).item(), 3) for c in counts]


def streams():
    """Name -> a way to draw documents of that kind alone."""
    of_problem = lambda rng, task=None: (lambda m, t, a: (documents.render(m), documents.reply_text(t, a), True))(*documents.problem(rng, task))
    out = {"mix": documents.draw, "problems": of_problem,
           "prose": lambda rng: (*documents.prose_document(rng), False)}
    for domain in prose.DOMAINS:
        out[domain] = lambda rng, d=domain: (*documents.prose_document(rng, d), False)
    for task in documents.problems.TASKS:
        out[f"problems:{task}"] = lambda rng, t=task: of_problem(rng, t)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--eval", type=Path, required=True)
    parser.add_argument("--fp8", type=Path)
    parser.add_argument("--held-out", type=int, default=200, help="further held-out problems per task (0: none)")
    parser.add_argument("--limit", type=int, help="only so many problems of each set, evenly spread")
    parser.add_argument("--runs", default="bf16,f32,fp8,fp8_w8a8")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = Tokenizer.from_file(str(args.directory / "tokenizer.json"))
    sets = {"eval": [json.loads(line) for line in args.eval.read_text().splitlines()]}
    if args.held_out:
        asked = {json.dumps(item["messages"]) for item in sets["eval"]}
        sets["held_out"] = [i for i in held_out_set(args.held_out, HELD_OUT_SEED) if json.dumps(i["messages"]) not in asked]
    if args.limit:
        sets = {name: items[:: max(1, len(items) // args.limit)] for name, items in sets.items()}
    report = {"accuracy": {}, "problems": {k: len(v) for k, v in sets.items()}, "wrong": {}}
    for run in args.runs.split(","):
        directory = args.fp8 if run.startswith("fp8") else args.directory
        if directory is None:
            continue
        begin = time.time()
        model = checkpoint.load(directory, torch.float32 if run == "f32" else torch.bfloat16, device)
        tiny.Linear.fp8_inputs = run == "fp8_w8a8"
        report["accuracy"][run], report["wrong"][run] = {}, {}
        for name, items in sets.items():
            report["accuracy"][run][name], wrong, pairs = accuracy(model, tokenizer, items)
            report["wrong"][run][name] = wrong[:40]
            print(run, name, report["accuracy"][run][name], flush=True)
            if run == "bf16" and name == "eval":
                report["mtp_acceptance"] = {"eval_replies": acceptance_on_replies(model, pairs)}
        if run == "bf16":
            report["expert_load_max_over_mean"] = {}
            for name, draw in streams().items():
                batch = drawn_batch(model, tokenizer, draw, 16 if device == "cpu" else 32)
                report["mtp_acceptance"][name] = acceptance(model, batch)
                report["expert_load_max_over_mean"][name] = expert_load(model, batch)
                print(name, report["mtp_acceptance"][name], report["expert_load_max_over_mean"][name], flush=True)
        print(f"{run}: {time.time() - begin:.1f} s", flush=True)
        tiny.Linear.fp8_inputs = False
        args.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
