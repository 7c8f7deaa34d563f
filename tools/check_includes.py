#!/usr/bin/env python3
"""Checks that the folders of the tree include only what they may, and a few rules beside it.

usage: check_includes.py [ROOT]

For each offence prints "file:line: what is wrong"; exits 1 when there was one. The rules:
  - a file includes from other folders only what ALLOWED says, and the table has no cycle;
  - an include of a file of the tree names it from the root, in quotes, and the file exists;
  - other includes in quotes belong to a library in LIBRARIES;
  - a header says `#pragma once`;
  - which backend or optional library there is, no code asks with #if outside the backends
    (CMake picks a file instead);
  - a folder with code has a README.md.
"""

import pathlib
import re
import sys

# Folder -> the folders it may include besides itself. A path belongs to the longest entry that it
# starts with.
ALLOWED = {
    "kernels/base": [],
    "kernels/ops": ["kernels/base"],
    "kernels/cpu": ["kernels/ops", "kernels/base"],
    "kernels/cuda": ["kernels/ops", "kernels/base"],
    "kernels/backends": ["kernels/cpu", "kernels/cuda", "kernels/ops", "kernels/base"],
    "services/base": ["kernels/base"],
    "services/model": ["services/base", "kernels/base"],
    "services/engine": ["services/model", "services/base", "kernels/ops", "kernels/base"],
    "services/transport": ["services/base", "kernels/ops", "kernels/base"],
    "services/rpc": ["services/base", "kernels/base"],
    "services/instance": [
        "services/engine", "services/model", "services/transport", "services/rpc", "services/base",
        "kernels/backends", "kernels/ops", "kernels/base",
    ],
    "services/prefill": ["services/instance"],
    "services/decode": ["services/instance"],
    "services/router": ["services/model", "services/rpc", "services/base", "kernels/base"],
    "services/balancer": ["services/model", "services/rpc", "services/base", "kernels/base"],
    # What nothing below includes may include anything.
    "tools": ["kernels", "services"],
    "tests": ["kernels", "services", "tools"],
}

# A unit test, benchmark or fuzz target is a leaf too, wherever it stands, and so is what tests share.
LEAF_FILE = re.compile(r"_((test|bench|fuzz)\.(cc|cu)|test_util\.h)$")
LEAF_MAY_INCLUDE = ["kernels", "services", "tests"]

# First parts of quoted includes that are not ours.
LIBRARIES = {
    "absl", "benchmark", "boost", "CLI", "gmock", "google", "grpc", "grpcpp", "gtest", "nlohmann", "openssl",
    "prometheus", "sluice", "spdlog", "yaml-cpp",
}

# Folders that may ask the preprocessor what they are compiled for.
BACKENDS = ["kernels/cpu", "kernels/cuda"]
BACKEND_CONDITION = re.compile(
    r"^\s*#\s*(?:if|ifdef|ifndef|elif)\b.*"
    r"(?:SLUICE_|HAVE_|USE_|CUDA|NCCL|GLOO|__AVX|__AMX|__FMA__|__F16C__)"
)

INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')
TOP_FOLDERS = sorted({folder.split("/")[0] for folder in ALLOWED})
ENDINGS = {".h", ".cc", ".cu", ".cuh"}


def inside(path, folders):
    return any(path == folder or path.startswith(folder + "/") for folder in folders)


def folder_of(path):
    """The entry of ALLOWED that a path belongs to, or None."""
    owners = [folder for folder in ALLOWED if inside(path, [folder])]
    return max(owners, key=len, default=None)


def find_cycle():
    """A folder of ALLOWED that reaches itself through others, or None."""
    def next_folders(folder):
        return [f for f in ALLOWED if f != folder and inside(f, ALLOWED[folder])]

    for start in ALLOWED:
        seen, queue = set(), next_folders(start)
        while queue:
            folder = queue.pop()
            if folder == start:
                return start
            if folder not in seen:
                seen.add(folder)
                queue += next_folders(folder)
    return None


def check_include(root, path, bracket, target):
    """What is wrong with one include, or None."""
    top = target.split("/")[0]
    if top not in TOP_FOLDERS:
        if bracket == '"' and top not in LIBRARIES:
            return f'"{target}" is neither a path from the root of the tree nor of a known library'
        return None
    if bracket == "<":
        return f"<{target}> is a file of the tree: include it in quotes"
    if not (root / target).is_file():
        return f'"{target}" does not exist'
    owner, wanted = folder_of(path), folder_of(target)
    if owner is None:
        return f"the folder of this file is not in the table of {pathlib.Path(__file__).name}"
    if wanted is None:
        return f'the folder of "{target}" is not in the table of {pathlib.Path(__file__).name}'
    if wanted == owner or inside(wanted, ALLOWED[owner]):
        return None
    if LEAF_FILE.search(path) and inside(wanted, LEAF_MAY_INCLUDE):
        return None
    allowed = ", ".join(ALLOWED[owner]) or "nothing else"
    return f'{owner} may not include "{target}"; it may include: {allowed}'


def check_file(root, path):
    """Yields (line number, offence) for one source file."""
    lines = (root / path).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if match := INCLUDE.match(line):
            if offence := check_include(root, path, *match.groups()):
                yield number, offence
        if BACKEND_CONDITION.match(line) and not inside(path, BACKENDS):
            yield number, "asks for a backend or library with #if: let CMake choose a file instead"
    if path.endswith((".h", ".cuh")) and not any(line.strip() == "#pragma once" for line in lines):
        yield 1, "has no `#pragma once`"


def check_tree(root):
    """All offences in the tree, as lines to print."""
    offences = []
    if cycle := find_cycle():
        offences.append(f"{pathlib.Path(__file__).name}: the table has a cycle through {cycle}")
    folders = set()
    for top in TOP_FOLDERS:
        for file in sorted((root / top).rglob("*")):
            if file.suffix not in ENDINGS:
                continue
            path = file.relative_to(root).as_posix()
            folders.add(file.parent)
            offences += [f"{path}:{line}: {what}" for line, what in check_file(root, path)]
    for folder in sorted(folders):
        if not (folder / "README.md").is_file():
            offences.append(f"{folder.relative_to(root).as_posix()}: has code and no README.md")
    return offences


def main():
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parents[1]
    offences = check_tree(root.resolve())
    for offence in offences:
        print(offence)
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main())
