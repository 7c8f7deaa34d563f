"""Greedy decoding of many prompts at once with a key/value cache.

Why it exists: the evaluation asks thousands of questions; here they all step together.

    python3 generate.py DIR "What is 47 + 85?" ["..."]     prints replies
"""

import sys
from pathlib import Path

import torch

EOS_ID, PAD_ID = 1, 2


@torch.no_grad()
def greedy(model, prompts: list[list[int]], new_max: int = 400) -> list[list[int]]:
    """-> the reply of each prompt, up to and without EOS (or cut after new_max tokens)."""
    device, dtype, c = model.lm_head.weight.device, model.lm_head.weight.dtype, model.config
    count, longest = len(prompts), max(map(len, prompts))
    size = (longest + new_max + 63) // 64 * 64
    shape = (count, c["num_attention_heads"], size)
    key_dim = c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
    store = [(torch.zeros(*shape, key_dim, device=device, dtype=dtype), torch.zeros(*shape, c["v_head_dim"], device=device, dtype=dtype))
             for _ in range(c["num_hidden_layers"])]
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    ids = torch.tensor([p + [PAD_ID] * (longest - len(p)) for p in prompts], device=device)
    at = torch.arange(longest, device=device).expand(count, -1)
    keys_at = torch.arange(size, device=device)

    def step(ids, at, seen):
        mask = keys_at[None, None, None, :seen] <= at[:, None, :, None]
        hidden, _ = model.trunk(ids, at, mask, [(k, v, at) for k, v in store])
        return hidden

    # Places behind a short prompt hold padding at first; each is overwritten before anything may see it.
    hidden = step(ids, at, longest)
    last = hidden[torch.arange(count, device=device), lengths - 1]
    tokens, at, done = [], lengths.unsqueeze(1), torch.zeros(count, dtype=torch.bool, device=device)
    for n in range(new_max):
        token = model.lm_head(last).float().argmax(-1)
        token = torch.where(done, PAD_ID, token)
        tokens.append(token)
        done |= token == EOS_ID
        if n % 16 == 15 and done.all():
            break
        last = step(token.unsqueeze(1), at, min((longest + n + 64) // 64 * 64, size))[:, 0]
        at = at + 1
    rows = torch.stack(tokens, 1).tolist()
    return [row[: row.index(EOS_ID)] if EOS_ID in row else row for row in rows]


def main():
    from tokenizers import Tokenizer

    import checkpoint
    import documents

    directory = Path(sys.argv[1])
    tokenizer, model = Tokenizer.from_file(str(directory / "tokenizer.json")), checkpoint.load(directory)
    for question in sys.argv[2:]:
        prompt = documents.render([{"role": "user", "content": question}])
        reply = greedy(model, [tokenizer.encode(prompt, add_special_tokens=False).ids])[0]
        print(f"user: {question}\n<think>\n{tokenizer.decode(reply, skip_special_tokens=False)}\n")


if __name__ == "__main__":
    main()
