"""The training stream: worker processes draw documents, tokenize them and pack them into rows, without end.

Why it exists: the GPU reads two million tokens a second and no sample may come twice, so generating is spread over
processes that keep a bounded queue of ready batches full.

    python3 stream.py --tokenizer FILE [--workers 1]     measures tokens per second
"""

import argparse
import multiprocessing as mp
import os
import random
import time

import numpy as np

import documents

ROW = 512  # tokens
POOL = 1024  # documents waiting to be packed
PAD_ID = 2


def tokenized(tokenizer, drawn):
    """[(prompt, reply, certain)] -> [(ids, loss)]: loss is 0 for the prompt, 1 for a determined reply, 2 for an open one."""
    prompts = tokenizer.encode_batch([d[0] for d in drawn], add_special_tokens=False)
    replies = tokenizer.encode_batch([d[1] for d in drawn], add_special_tokens=False)
    out = []
    for p, r, d in zip(prompts, replies, drawn):
        if len(p.ids) + len(r.ids) <= ROW:
            out.append((p.ids + r.ids, [0] * len(p.ids) + [1 if d[2] else 2] * len(r.ids)))
    return out


def pack(pool: list, rows: int):
    """Takes documents from the pool, first fit -> int16 [4, rows, ROW]: ids, loss, document number, position."""
    batch = np.zeros((4, rows, ROW), np.int16)
    batch[0], batch[2] = PAD_ID, -1
    for r in range(rows):
        at, number, k, tried = 0, 0, 0, 0
        while k < len(pool) and tried < 200:
            ids, loss = pool[k]
            if at + len(ids) > ROW:
                k, tried = k + 1, tried + 1
                continue
            end = at + len(ids)
            batch[0, r, at:end], batch[1, r, at:end] = ids, loss
            batch[2, r, at:end], batch[3, r, at:end] = number, np.arange(len(ids))
            at, number = end, number + 1
            pool[k] = pool[-1]
            pool.pop()
    return batch


def batches(tokenizer, rng: random.Random, rows: int, draw=documents.draw):
    pool = []
    while True:
        while len(pool) < POOL:
            pool += tokenized(tokenizer, [draw(rng) for _ in range(256)])
        part = []
        for _ in range(0, rows, 8):
            while len(pool) < POOL // 2:
                pool += tokenized(tokenizer, [draw(rng) for _ in range(256)])
            part.append(pack(pool, min(8, rows)))
        yield np.concatenate(part, 1)[:, :rows]


def _work(queue, tokenizer_file, rows, seed):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    for batch in batches(Tokenizer.from_file(tokenizer_file), random.Random(seed), rows):
        queue.put(batch)


class Stream:
    """Batches from `workers` processes; seeds are seed * 1000 + worker. Which worker's batch comes next is a race."""

    def __init__(self, tokenizer_file: str, rows: int, workers: int, seed: int):
        context = mp.get_context("spawn")
        self.queue = context.Queue(maxsize=48)
        self.processes = [context.Process(target=_work, args=(self.queue, tokenizer_file, rows, seed * 1000 + k), daemon=True)
                          for k in range(workers)]
        for p in self.processes:
            p.start()

    def next(self) -> np.ndarray:
        return self.queue.get()

    def close(self):
        for p in self.processes:
            p.terminate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    stream = Stream(args.tokenizer, 32, args.workers, 1)
    stream.next()
    begin, tokens, full = time.time(), 0, 0
    while time.time() - begin < 5:
        batch = stream.next()
        tokens, full = tokens + batch[0].size, full + (batch[2] >= 0).sum()
    print(f"{tokens / (time.time() - begin):.0f} tokens/s, {full / tokens:.3f} of them used, "
          f"{(batch[1] == 2).sum() / (batch[1] > 0).sum():.2f} of the replies open")
    stream.close()
