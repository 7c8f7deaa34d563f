#!/usr/bin/env python3
"""Makes services/model/testdata/tokenizer/: a small byte-level BPE tokenizer with DeepSeek-V3's
pre-tokenizer and added tokens, variants of it, and the ids that Hugging Face `tokenizers` gives for a
corpus of hard cases.

    python3 tools/goldens/make_tokenizer_goldens.py

  tokenizer.json    trained here, 4,096 ids
  variants.json     {name: merge patch to tokenizer.json}: other pre-tokenizers and added tokens
  goldens.json      {variant: [[text, ids, ids without special tokens or null if equal], ...]}
  long.json         [[unit, copies, variant, number of ids, FNV-1a of the ids], ...], 1 MB each
  utf8.json         [[bytes in hex, what Python decodes them to with errors="replace"], ...]
"""

import json
import pathlib
import random
import string
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "services/model/testdata/tokenizer"
SEED = 20250119

DEEPSEEK = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+"
    "|\\s+(?!\\S)"
    "|\\s+",
]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# One paragraph in each of several languages and scripts, for training and for testing.
PROSE = """\
The quick brown fox jumps over the lazy dog. It's 47 + 85 = 132, isn't it? They'll say we've won.
Let me think about this step by step: first I add the ones, then the tens, and then the hundreds.
Der schnelle braune Fuchs springt über den faulen Hund; größer, schöner, früher. Straße, Äpfel.
Le renard brun saute par-dessus le chien paresseux. Ça va ? Où est l'été ? À bientôt, garçon !
El zorro marrón salta sobre el perro perezoso. ¿Qué pasó ayer? ¡Mañana será otro día, señor!
Быстрая коричневая лиса прыгает через ленивую собаку. Сколько будет сорок семь и восемьдесят пять?
Η γρήγορη καφέ αλεπού πηδάει πάνω από το τεμπέλικο σκυλί. Πόσο κάνει;
敏捷的棕色狐狸跳过了懒狗。四十七加八十五等于多少？我们一步一步地思考：先加个位，再加十位。
素早い茶色の狐がのろまな犬を飛び越えた。よんじゅうななたすはちじゅうごはいくつですか？カタカナ・テスト。
빠른 갈색 여우가 게으른 개를 뛰어넘는다. 사십칠 더하기 팔십오는 얼마입니까?
الثعلب البني السريع يقفز فوق الكلب الكسول. كم يساوي ٤٧ زائد ٨٥؟ السَّلَامُ عَلَيْكُمْ
השועל החום המהיר קופץ מעל הכלב העצלן. כמה זה ארבעים ושבע ועוד שמונים וחמש?
तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है। ४७ और ८५ का योग क्या है?
สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ ๔๗ บวก ๘๕ เท่ากับเท่าไร
Con cáo nâu nhanh nhẹn nhảy qua con chó lười. Bốn mươi bảy cộng tám mươi lăm bằng bao nhiêu?
Hızlı kahverengi tilki tembel köpeğin üzerinden atlar. İstanbul'da ılık bir ağustos günü.
"""
CODE = """\
#include <vector>\nint main(int argc, char** argv) {\n\tfor (int i = 0; i < argc; ++i) {\n\t\tprintf("%s\\n", argv[i]);\n\t}\n\treturn 0;\n}\n
def f(x, *, y=None):\n    \"\"\"Doc.\"\"\"\n    return {k: v for k, v in x.items() if k != y and v >= 0.5e-3}  # comment\n\n
SELECT a.id, COUNT(*) FROM t AS a LEFT JOIN u ON a.id = u.id WHERE u.x <> 'y' GROUP BY 1;\r\n
<div class="a b" data-x='1'>&nbsp;</div> {"key": [1, 2.5, null, true], "url": "https://example.org/a?b=c&d=%20#e"}
"""


def added_tokens(first):
    """DeepSeek-V3's, in its order and with its flags: conversation marks are not special there."""
    special = [f"<｜place▁holder▁no▁{i}｜>" for i in range(4)]
    plain = ["<think>", "</think>", "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>", "<｜User｜>", "<｜Assistant｜>"]
    tools = [f"<｜tool▁{x}｜>" for x in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "outputs▁begin",
                                        "outputs▁end", "output▁begin", "output▁end", "sep")]
    tokens = [(t, True) for t in special] + [(t, False) for t in plain] + [("<|EOT|>", True)] + [(t, False) for t in tools]
    return [AddedToken(t, special=s, normalized=True) for t, s in tokens], first + len(tokens)


def train(rng):
    words = [w for w in (PROSE + CODE).split(" ") if w]
    texts = [PROSE, CODE] + [" ".join(rng.sample(words, 50)) for _ in range(400)]
    texts += [" ".join(rng.choice(string.ascii_lowercase) * rng.randint(2, 40) for _ in range(20)) for _ in range(40)]
    texts += [" " * n for n in range(2, 80)] + ["\n" * n for n in range(2, 20)] + ["\t" * n for n in range(2, 20)]
    texts += [str(n) for n in range(1000)] * 2 + ["-" * n + "=" * n for n in range(2, 40)]
    names = [unicodedata.name(chr(code), "").lower() for code in range(0x20, 0x2000)]
    texts += [" ".join(names[i : i + 64]) for i in range(0, len(names), 64)]
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in DEEPSEEK]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits + [byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    marks = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
    extra, count = added_tokens(0)
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=4096 - count, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=[AddedToken(t, special=True, normalized=True) for t in marks]))
    tokenizer.add_tokens(extra)
    assert tokenizer.get_vocab_size() == 4096, tokenizer.get_vocab_size()
    return tokenizer


def cased_letters():
    """The ranges of a character class, written out as DeepSeek-V2's file writes them."""
    codes = [c for c in range(0x110000) if unicodedata.category(chr(c)) in ("Lu", "Ll", "Lt")]
    first, text = codes[0], ""
    for code, following in zip(codes, codes[1:] + [0]):
        if following != code + 1:
            text += chr(first) if first == code else f"{chr(first)}-{chr(code)}"
            first = following
    return text


def variants(base):
    """Merge patches that reach what DeepSeek-V3 does not use."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    regex = lambda p: {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
    sequence = lambda *steps: {"pre_tokenizer": {"type": "Sequence", "pretokenizers": list(steps)}}
    token = lambda content, i, **flags: {
        "id": 4096 + i, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": False} | flags
    extra = [
        token("<mask>", 0, lstrip=True, special=True), token("<right>", 1, rstrip=True),
        token("word", 2, single_word=True), token("wordy", 3),
        token("ü", base["model"]["vocab"]["ü"] - 4096, normalized=True),
        token("<both>", 4, lstrip=True, rstrip=True, normalized=True), token("  ", 5), token("<mask>x", 6),
        token("é́", 7, single_word=True, normalized=True), token("<ma", 8, normalized=True)]
    return {
        "deepseek": {},
        "deepseek-v2": sequence(
            regex("[\r\n]"), regex(rf"\s?[{cased_letters()}]+"), regex(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"), regex(r"\s+$"),
            regex("[一-龥ࠀ-一가-\ud7ff]+"), {"type": "Digits", "individual_digits": True}, byte_level)
        | {"normalizer": {"type": "Sequence", "normalizers": []}},
        "gpt2": {"pre_tokenizer": byte_level | {"use_regex": True}},
        "llama3": sequence(regex(LLAMA3), byte_level) | {"model": {"ignore_merges": True}},
        "literal": sequence({"type": "Split", "pattern": {"String": "a.b"}, "behavior": "Isolated", "invert": False},
                            {"type": "Digits", "individual_digits": False}, byte_level),
        "added": {"added_tokens": base["added_tokens"] + extra},
    }


def random_text(rng, alphabet, length):
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(1, length)))


def corpus(rng):
    yield ""
    yield from PROSE.split("\n")
    yield PROSE
    yield CODE
    spaces = [" ", "\t", "\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x85", "\xa0", "\u1680", "\u180e", "\u2003", "\u200b",
              "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\ufeff"]
    for a in spaces:
        yield "".join(f"x{a}{b}y" for b in spaces)
    for n in (1, 2, 3, 17):
        for s in spaces:
            yield s * n
            yield f"a{s * n}b{s * n}1{s * n}漢{s * n}字{s * n}!{s * n}?"
    for n in range(1, 12):
        for digit in "7٣९๔𝟘Ⅷ½":
            yield digit * n
            yield f"a{digit * n}b {digit * n}.{digit * n}"
    for c in string.punctuation + "｜▁“„«…—！，。、‿№€∞":
        yield f"{c}abc {c}abc {c}{c}abc{c} a{c}b 1{c}2 {c}\n\n{c} é{c}é 字{c}字 {c}é"
    for c in range(32):
        yield f"a{chr(c)}b {chr(c)}{chr(c)}1{chr(c)}"
    # A sample of every block, of every category, and the borders of the patterns' ranges.
    by_category = {}
    for code in range(0x110000):
        c = chr(code)
        if not 0xD800 <= code < 0xE000:
            by_category.setdefault(unicodedata.category(c), []).append(c)
    for category, chars in sorted(by_category.items()):
        for _ in range(4):
            c = rng.choice(chars)
            yield f"a{c}b {c} {c}{c}1{c}\n{c}字{c}"
    for first in range(0, 0x110000, 0x200):
        if not 0xD800 <= first < 0xE000 and (first < 0x3400 or first >= 0xA000) and (first < 0x20000 or first % 0x4000 == 0):
            yield "".join(chr(first + i) for i in rng.sample(range(0x100), 6))
    for code in (0x303F, 0x3040, 0x3096, 0x3097, 0x3099, 0x309B, 0x309F, 0x30A0, 0x30FB, 0x30FF, 0x3100, 0x4DFF, 0x4E00,
                 0x9FA5, 0x9FA6, 0xD7FF, 0xE000, 0xFFFD, 0xFFFE, 0xFFFF, 0x10000, 0x2EBF0, 0x323AF, 0x10FFFF, 0x897, 0x1C89):
        yield f"あ{chr(code)}い {chr(code)}a{chr(code)}1{chr(code)}"
    for emoji in ["👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪🇫🇷", "1️⃣", "🧑🏿‍🚀", "☺️", "🫠🪿🫩", "❤️‍🔥"]:
        yield f"{emoji} a{emoji}b {emoji}{emoji}1"
    for text in ["e\u0301te\u0301", "\u0301a", " \u0301", "1\u0301", "क्षि", "নি", "เก้า", "각", "q\u0323\u0307", "\u20dd3\u20dd",
                 "a\u200db", "\u200d\u200d", "\u202eabc\u202c", "ﬁ ﬂ Ǆ ſ K", "𝕳𝖊𝖑𝖑𝖔", "İi̇", "ß ẞ", "Ω Ω", "\U000e0041"]:
        yield text
        yield f"x {text} 1{text}"
    yield from ["'s 'S 't'll it's IT'S 'ſ we'Re", "a.b.a.b..ab a.b1", "don't  stop\n\n \n", "   \n  a", "a \n", "a\n ", "\n \n a"]
    marks = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<|EOT|>",
             "<｜place▁holder▁no▁3｜>", "<｜tool▁sep｜>", "<mask>", "<right>", "word", "wordy", "ü", "<both>", "<mask>x", "é́"]
    for mark in marks:
        yield mark
        yield f"a{mark}b  {mark}  {mark}{mark}\n{mark}1 {mark[:-1]} {mark[1:]} <{mark}> 字{mark}字"
    pieces = marks + spaces + ["a", "B", "é", "字", "あ", "1", "234", "!", "<", "<｜", "｜>", "_", "é", "́"]
    for _ in range(100):
        yield "".join(rng.choice(pieces) for _ in range(rng.randint(2, 24)))
    mixed = [chr(c) for c in range(0x20, 0x300)] + spaces + list("字あカ한글٣९ⅧⅧ½👍🏽\u200d\u0301\ue000\U000f0000\u0378")
    for _ in range(120):
        yield random_text(rng, mixed, 40)
    for n in (47, 48, 49, 50, 63, 64, 65, 127, 128, 129, 1000):  # around the length where another algorithm takes over
        yield "a" * n
        yield random_text(rng, "ab", n) * 2
        yield "".join(rng.choice(string.ascii_lowercase) for _ in range(n))
        yield "é" * n + "-" * n


def fnv1a(ids):
    value = 0xCBF29CE484222325
    for byte in b"".join(i.to_bytes(4, "little") for i in ids):
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def utf8_cases(rng):
    yield from (b"", b"\x80", b"\xff", b"\xc0\x80", b"\xc1\xbf", b"\xc2", b"\xe0\x80\x80", b"\xed\xa0\x80\xed\xb0\x80",
                b"\xf0\x80\x80\x80", b"\xf4\x90\x80\x80", b"\xf5\x80", b"\xf8\x88\x80\x80\x80", b"a\xe2\x82", b"a\xe2\x82b",
                b"\xe2\x28\xa1", b"\xf0\x9f\x98", b"\xf0\x9f\x98\xf0\x9f\x98\x80", b"\xf0\x9f\xc3\xa9", b"\xe4\xb8\xad\xe4\xb8")
    for lead in range(0x80, 0x100):
        yield b"".join(bytes([lead, second, 0x80, 0x80]) for second in (0, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0))
    units = [b"a", b"\xc3\xa9", b"\xe4\xb8\xad", b"\xf0\x9f\x98\x80", b"\x80", b"\xe2\x82", b"\xf0\x9f", b"\xed\xa0\x80", b"\xff", b"\xc0"]
    for _ in range(200):
        yield b"".join(rng.choice(units) for _ in range(rng.randint(1, 8)))


def write(name, lines):
    """One item a line, so that changes can be read; only ASCII, so that nothing can be mangled."""
    text = ",\n".join(json.dumps(line, separators=(",", ":")) for line in lines)
    (OUT / name).write_text(f"[\n{text}\n]\n")


def main():
    rng = random.Random(SEED)
    OUT.mkdir(parents=True, exist_ok=True)
    trained = train(rng)
    base = json.loads(trained.to_str())
    (OUT / "tokenizer.json").write_text(json.dumps(base, ensure_ascii=False, separators=(",", ":")) + "\n")
    patches = variants(base)
    (OUT / "variants.json").write_text(json.dumps(patches, separators=(",", ":")) + "\n")

    texts = list(dict.fromkeys(corpus(rng)))
    goldens, long = [], []
    units = ["a", " ", "7", "\n", "\r\n", "字", "é", "!", "ab", "a ", " a", "\x00", "\u0301", " \n", "👍", "1a", "<", "<｜", "😀‍"]
    for name, patch in patches.items():
        patched = dict(base) | {k: v for k, v in patch.items() if k != "model"}
        patched["model"] = base["model"] | patch.get("model", {})
        tokenizer = Tokenizer.from_str(json.dumps(patched))
        for i, text in enumerate(texts):
            if name != "deepseek" and len(text) > 200:
                continue
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            tokenizer.encode_special_tokens = True
            plain = tokenizer.encode(text, add_special_tokens=False).ids
            tokenizer.encode_special_tokens = False
            every = {"deepseek": 1, "deepseek-v2": 2}.get(name, 8)
            if i % every == 0 or (name == "added" and any(c in text for c in "<wü")):
                goldens.append([name, text, ids, None if plain == ids else plain])
        for unit in {"deepseek": units, "added": [], "literal": []}.get(name, ["a", " ", "\n", " a", "7", "字"]):
            copies = 2**20 // len(unit.encode())
            ids = tokenizer.encode(unit * copies, add_special_tokens=False).ids
            long.append([name, unit, copies, len(ids), f"{fnv1a(ids):016x}"])
    write("goldens.json", goldens)
    write("long.json", long)
    write("utf8.json", [[b.hex(), b.decode("utf-8", errors="replace")] for b in utf8_cases(rng)])


if __name__ == "__main__":
    main()
