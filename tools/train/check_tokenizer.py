"""Checks a tokenizer directory: digits stay single, documents split where training split them, the template renders alike.

Why it exists: training renders and tokenizes with its own few lines (documents.py, stream.py); users do it with the
shipped files. Both must give the same ids.

    python3 check_tokenizer.py DIR [--documents 1000]
"""

import argparse
import random
from pathlib import Path

from transformers import AutoTokenizer

import documents


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--documents", type=int, default=1000)
    args = parser.parse_args()
    tokenizer, rng = AutoTokenizer.from_pretrained(args.directory), random.Random(5)
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer("a")["input_ids"][0] == 0, "BOS is missing"
    assert len(ids("1234567890")) == 10, "digits are not single"
    for _ in range(args.documents):
        prompt, reply, _ = documents.draw(rng)
        assert ids(prompt) + ids(reply) == ids(prompt + reply), (prompt, reply)
        assert tokenizer.decode(ids(prompt + reply), clean_up_tokenization_spaces=False) == prompt + reply
        messages = documents.decorate(rng, documents.problem(rng)[0])
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert rendered == documents.render(messages), messages
        messages.append({"role": "assistant", "content": "<think>\nwhy\n</think>\n\nso"})
        assert tokenizer.apply_chat_template(messages, tokenize=False) == documents.render(messages, generation_prompt=False)
    print(f"ok: {args.documents} documents and chats")


if __name__ == "__main__":
    main()
