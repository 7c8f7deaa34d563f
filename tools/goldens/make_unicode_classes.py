#!/usr/bin/env python3
"""Writes services/model/unicode_classes.inc: the character classes as Hugging Face `tokenizers` sees
them (its regular expressions come from Oniguruma; \\w around added tokens and the `Digits` pre-tokenizer
follow Rust, whose Unicode version may be another).

The classes are probed, not taken from a Unicode database, so that they are the reference's own
whatever Unicode version it was built with. Run it again when the reference changes:

    python3 tools/goldens/make_unicode_classes.py > services/model/unicode_classes.inc
"""

import tokenizers
from tokenizers import Regex, pre_tokenizers

CHARS = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CATEGORIES = [("L", 1), ("M", 2), ("N", 3), ("P", 4), ("S", 5)]
SPACE, WORD, DIGIT = 8, 16, 32


def members(pattern):
    """The characters that the pattern matches: those that removing its matches removes."""
    split = pre_tokenizers.Split(Regex(pattern + "+"), "removed")
    kept = "".join(piece for piece, _ in split.pre_tokenize_str("".join(CHARS)))
    return set(CHARS) - set(kept)


def rust_word():
    """The characters that `\\w` matches in Rust: those that stay joined to a preceding letter."""
    whitespace = pre_tokenizers.Whitespace()  # \w+|[^\w\s]+
    pieces = whitespace.pre_tokenize_str(" ".join("a" + c for c in CHARS))
    return {piece[1] for piece, _ in pieces if len(piece) == 2 and piece[0] == "a"}


def main():
    classes = dict.fromkeys(CHARS, 0)
    for name, value in CATEGORIES:
        for c in members(r"\p{%s}" % name):
            assert classes[c] == 0
            classes[c] = value
    for c in members(r"\s"):
        classes[c] |= SPACE
    for c in rust_word():
        classes[c] |= WORD
    digits = pre_tokenizers.Digits(individual_digits=True)
    pieces = digits.pre_tokenize_str("a".join(CHARS))
    numeric = {piece for piece, _ in pieces if len(piece) == 1 and piece != "a"}
    for c in numeric:
        classes[c] |= DIGIT

    print(f"// Made by tools/goldens/make_unicode_classes.py with tokenizers {tokenizers.__version__}.")
    print("// {first code point of a run, class}: 1 L, 2 M, 3 N, 4 P, 5 S, + 8 space, + 16 word, + 32 digit.")
    line, last = "", None
    for code in range(0x110000):
        value = classes.get(chr(code), 0)
        if value == last:
            continue
        last = value
        item = f"{{0x{code:X}, {value}}},"
        if len(line) + 1 + len(item) > 100:
            print(line)
            line = item
        else:
            line = f"{line} {item}".strip()
    print(line)


if __name__ == "__main__":
    main()
