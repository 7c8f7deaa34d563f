"""Writes eval.jsonl: held-out problems with the exact sentence each must end in.

Why it exists: the set ships with the model, so any engine can be judged by it without Python.

    python3 make_eval_set.py --out FILE [--per-task 30] [--seed 4242]

One object a line: {"id", "task", "messages", "answer"}. No key (numbers, word) of it is ever drawn by training.
"""

import argparse
import json
import random
from pathlib import Path

import problems

FIRST = problems.Problem("add", "add:47,85", ({"role": "user", "content": "What is 47 + 85?"},), "", "47 + 85 = 132.")

REPEATS_MAX = 500  # draws of a key seen before, per task, before such are taken


def held_out_set(per_task: int, seed: int) -> list[dict]:
    """`per_task` problems of each task, every one about something else while there are such (weekdays run out)."""
    out, seen = [], set()
    for task in problems.TASKS:
        rng, chosen, repeats = random.Random(f"{seed}-{task}"), [FIRST] if task == "add" else [], 0
        while len(chosen) < per_task:
            p = problems.draw(rng, task, held_out=True)
            if (task, p.key) in seen and repeats < REPEATS_MAX:
                repeats += 1
                continue
            seen.add((task, p.key))
            chosen.append(p)
        out += [{"id": f"{task}-{k:03d}", "task": task, "messages": list(p.messages), "answer": p.answer} for k, p in enumerate(chosen)]
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-task", type=int, default=30)
    parser.add_argument("--seed", type=int, default=4242)
    args = parser.parse_args()
    items = held_out_set(args.per_task, args.seed)
    args.out.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
    print(f"{args.out}: {len(items)} problems")


if __name__ == "__main__":
    main()
