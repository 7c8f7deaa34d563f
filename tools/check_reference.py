#!/usr/bin/env python3
"""Checks that docs/reference/ shows the help texts as the programs print them.

usage: check_reference.py BINARY_DIR [--write]

Every fenced block whose first line is "$ PROGRAM [ARGUMENT...] --help" must go on with what that
command prints. Prints the commands whose text has moved on and exits 1 when there is one; with
--write puts the present text in.
"""

import pathlib
import re
import subprocess
import sys

BLOCK = re.compile(r"^```\n\$ (?P<command>[^\n]+ --help)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
REFERENCE = pathlib.Path(__file__).parents[1] / "docs" / "reference"


def help_text(binary_dir, command):
    program, *arguments = command.split()
    run = subprocess.run([binary_dir / program, *arguments], capture_output=True, text=True, check=True)
    return "".join(line.rstrip() + "\n" for line in run.stdout.strip().splitlines())


def main():
    binary_dir = pathlib.Path(sys.argv[1])
    write = "--write" in sys.argv[2:]
    blocks, stale = 0, []
    for page in sorted(REFERENCE.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            blocks += 1
            current = help_text(binary_dir, match["command"])
            if match["text"] != current:
                stale.append(f"{page.name}: {match['command']}")
                text = text.replace(match[0], f"```\n$ {match['command']}\n{current}```")
        if write:
            page.write_text(text, encoding="utf-8")
    if blocks == 0:
        print(f"no help text found in {REFERENCE}")
        return 1
    if stale and not write:
        print("out of date (to renew: tools/check_reference.py build/release/bin --write):", *stale, sep="\n  ")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
