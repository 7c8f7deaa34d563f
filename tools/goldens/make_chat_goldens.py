#!/usr/bin/env python3
"""Makes services/model/testdata/chat/goldens.json: conversations rendered by the Jinja templates beside
it as transformers renders them, and tokenized by Hugging Face `tokenizers`.

    python3 tools/goldens/make_chat_goldens.py
    python3 tools/goldens/make_chat_goldens.py --check NAME FILE

One line a case: [template, messages, thinking, rendered text, ids]; the template "sluice-tiny" is the
shipped model's own, with its own tokenizer (run this again when that model changes). With --check
nothing is written: the conversations are rendered by the Jinja template in FILE (such as a
checkpoint's own) and compared with what the template NAME gives.
"""

import json
import pathlib
import sys

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
TESTDATA = ROOT / "services/model/testdata"
TINY = ROOT / "deploy/models/sluice-tiny"
NAMES = ["deepseek-v2", "deepseek-v3", "deepseek-r1", "deepseek-r1-0528", "deepseek-v3.1"]
BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"


def conversations():
    system = lambda text: {"role": "system", "content": text}
    user = lambda text: {"role": "user", "content": text}
    assistant = lambda text: {"role": "assistant", "content": text}
    yield [user("What is 47 + 85?")]
    yield [user("")]
    yield [system(""), user("hi")]
    yield [system("You are a careful assistant."), user("Hi!")]
    yield [system("One."), system("Two."), user("Hi!")]
    yield [user("Hi!"), system("Late."), system("Later.")]
    yield [user("a"), assistant("b"), user("c")]
    yield [system("S"), user("a"), assistant("b"), user("c"), assistant("d"), user("e")]
    yield [user("a"), user("b")]
    yield [user("a"), assistant("b"), assistant("c"), user("d")]
    yield [assistant("Welcome."), user("hi")]
    yield [user("a"), assistant("first I add</think>\n\nThe sum is 132."), user("c")]
    yield [user("a"), assistant("<think>\nx</think>y</think>\n\nz"), user("c")]
    yield [user("a"), assistant("all of it</think>"), user("c")]
    yield [user("a"), assistant(""), user("c")]
    yield [user(" spaces \n"), assistant("\n\n lines \r\n"), user("\tтабуляция 漢字 👩‍👩‍👧 1234567\n\n")]
    yield [user("it's <b>bold</b> & {{ bos_token }} {% if x %}"), assistant("< think > <| User |>"), user("'\"\\n")]


def compile_template(text):
    # As transformers does (utils/chat_template_utils.py).
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(text)


def render(template, messages, thinking):
    return template.render(messages=messages, bos_token=BOS, eos_token=EOS, add_generation_prompt=True, thinking=thinking)


def main():
    if sys.argv[1:2] == ["--check"]:
        ours = compile_template((TESTDATA / f"chat/{sys.argv[2]}.jinja").read_text())
        theirs = compile_template(pathlib.Path(sys.argv[3]).read_text())
        for messages in conversations():
            for thinking in (False, True):
                want, got = render(theirs, messages, thinking), render(ours, messages, thinking)
                if want != got:
                    print(f"{messages}\n  want {want!r}\n  got  {got!r}")
        return
    base = json.loads((TESTDATA / "tokenizer/tokenizer.json").read_text())
    patches = json.loads((TESTDATA / "tokenizer/variants.json").read_text())
    cases = []
    for name in NAMES:  # with the pre-tokenizer that the model has
        patched = base | patches["deepseek-v2" if name == "deepseek-v2" else "deepseek"]
        cases.append((name, (TESTDATA / f"chat/{name}.jinja").read_text(), Tokenizer.from_str(json.dumps(patched))))
    tiny_config = json.loads((TINY / "tokenizer_config.json").read_text())
    cases.append(("sluice-tiny", tiny_config["chat_template"], Tokenizer.from_file(str(TINY / "tokenizer.json"))))
    lines = []
    for name, source, tokenizer in cases:
        template = compile_template(source)
        for messages in conversations():
            for thinking in (False, True):
                text = render(template, messages, thinking)
                ids = tokenizer.encode(text, add_special_tokens=False).ids
                lines.append(json.dumps([name, messages, thinking, text, ids], separators=(",", ":")))
    (TESTDATA / "chat/goldens.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
