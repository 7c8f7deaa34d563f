"""Trains the byte-level BPE tokenizer of the tiny model and writes tokenizer.json and tokenizer_config.json.

Why it exists: the model's words come from its generated text. The merges are learnt with every digit split off, so
digits stay single tokens and arithmetic stays readable to the model; then DeepSeek-V3's real pre-tokenizer is put in,
so that the file asks of a tokenizer what the big model's file asks. Takes seconds on a CPU.

    python3 train_tokenizer.py --out DIR [--seed 1] [--documents 15000]

Ids: 0-2 BOS, EOS, PAD; 3-258 the bytes; then merges; the last four are User, Assistant, think and /think.
"""

import argparse
import json
import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import documents

VOCAB_SIZE = 1024
CJK = r"[一-龥぀-ゟ゠-ヿ]+"
MAIN = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def pre_tokenizer(digits: str):
    split = lambda pattern: pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split(digits), split(CJK), split(MAIN),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def corpus(count: int, seed: int):
    rng = random.Random(seed)
    for _ in range(count):
        text = "".join(documents.draw(rng)[:2])
        for special in documents.SPECIALS_FIRST + documents.SPECIALS_LAST:
            text = text.replace(special, "\n")
        yield text


def train(count: int, seed: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer(r"\p{N}")
    first, last = documents.SPECIALS_FIRST, documents.SPECIALS_LAST
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE - len(last), special_tokens=first, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(corpus(count, seed), trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE - len(last), tokenizer.get_vocab_size()
    tokenizer.pre_tokenizer = pre_tokenizer(r"\p{N}{1,3}")
    # As in DeepSeek's file, only the first three are "special"; the chat markers are plain added tokens.
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in last])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{documents.BOS} $A", pair=f"{documents.BOS} $A {documents.BOS} $B", special_tokens=[(documents.BOS, 0)])
    return tokenizer


def config() -> dict:
    return {"add_bos_token": True, "add_eos_token": False, "bos_token": documents.BOS, "eos_token": documents.EOS,
            "pad_token": documents.PAD, "unk_token": None, "clean_up_tokenization_spaces": False, "model_max_length": 2048,
            "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": documents.CHAT_TEMPLATE}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--documents", type=int, default=15000)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train(args.documents, args.seed)
    tokenizer.save(str(args.out / "tokenizer.json"))
    (args.out / "tokenizer_config.json").write_text(json.dumps(config(), ensure_ascii=False, indent=2) + "\n")
    text = "What is 47 + 85?"
    print(tokenizer.get_vocab_size(), "tokens;", tokenizer.encode(text).tokens)


if __name__ == "__main__":
    main()
