#!/usr/bin/env python3
"""Takes barriers out of the GPU kernels and shows that the numeric tests notice.

usage: run_gpu.py build --build-dir DIR LIBRARIES [--only NAME ...] [--jobs N]
       run_gpu.py run --programs DIR LIBRARIES [--only NAME ...] [--jobs N]

`build` needs CUDA's compiler and no GPU: for each mutant of gpu_mutants.py it builds the library of
kernels, LIBRARIES/NAME/libsluice_cuda_kernels.so. `run` needs a GPU and no compiler: it runs each
mutant's tests of DIR (build/cuda/bin, or sluice/bin of a bundle) with that library in place of the
right one, N at a time, after the tests without a mutant, which are to pass in a quarter of
TIMEOUT_S. A test that fails, a fault, or no end within TIMEOUT_S, which is tried again alone, counts
as noticed. Exits 1 when a mutant survives or does not build, or when the tests fail without one.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import gpu_mutants
import run as cpu_run

sys.path.insert(0, str(cpu_run.ROOT / "tools" / "lib"))
import child_groups

LIBRARY = "libsluice_cuda_kernels.so"
TIMEOUT_S = 20


def build(args, wanted):
    cpu_run.check_texts(gpu_mutants.texts())
    args.build_dir.mkdir(parents=True, exist_ok=True)
    tree = cpu_run.Tree(args.build_dir.resolve(), args.jobs)
    tree.configure("-DSLUICE_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=90a")
    failures = 0
    for mutant in wanted:
        path = tree.source / mutant.file
        original = changed = path.read_text()
        for text, replacement in mutant.edits:
            changed = changed.replace(text, replacement)
        path.write_text(changed)
        begin = time.monotonic()
        try:
            tree.compile("sluice_cuda_kernels")
            (args.libraries / mutant.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(tree.build / "kernels" / "cuda" / LIBRARY, args.libraries / mutant.name)
        except cpu_run.Broken as reason:
            print(reason, file=sys.stderr)
            failures += 1
        finally:
            path.write_text(original)
        print(f"{mutant.name}: {time.monotonic() - begin:.0f} s", flush=True)
    return failures


def what_failed(children, args, mutant, library):
    """What a run of the mutant's tests ends with, "" when they pass; whether it came to an end; and
    its seconds."""
    env = dict(os.environ, GTEST_FAIL_FAST="1")
    if library is not None:
        # Loaded first, so that nobody looks for another one of this name.
        env["LD_PRELOAD"] = str(library)
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as out:
        status = children.run([args.programs / mutant.program, f"--gtest_filter={mutant.tests}"],
                              TIMEOUT_S, cwd=cpu_run.ROOT, env=env, stdout=out,
                              stderr=subprocess.STDOUT)
        out.seek(0)
        said = out.read()
    seconds = time.monotonic() - begin
    tests = re.findall(r"\[ RUN      \] (\S+)", said)
    last = tests[-1] if tests else "start"
    if status is None:
        return f"{last} hangs", False, seconds
    failed = re.search(r"\[  FAILED  \] (\S+)", said)
    fault = re.search(r"CUDA says (\w+)", said)
    what = ""
    if failed or status != 0:
        what = failed[1].rstrip(",") if failed else last
        what += f": {fault[1]}" if fault else " fails" if failed else " ends the process"
    return what, True, seconds


def run(args, wanted):
    failures = 0
    width = max(len(m.name) for m in wanted)
    with child_groups.ChildGroups(args.jobs) as children:
        # Alone, so that their times say something: a mutant has no more than four times as long.
        for (program, tests), mutant in {(m.program, m.tests): m for m in wanted}.items():
            what, _, seconds = what_failed(children, args, mutant, None)
            print(f"without any: {program} {tests} {what or 'passes'}, {seconds:.1f} s", flush=True)
            if what or seconds > TIMEOUT_S / 4:
                raise cpu_run.Broken(f"{program} {tests}: without a mutant it is to pass in "
                                     f"{TIMEOUT_S / 4:.0f} s")
        runs = []
        for mutant in wanted:
            library = (args.libraries / mutant.name / LIBRARY).resolve()
            runs.append((mutant, library, children.submit(what_failed, children, args, mutant,
                                                          library)))
        concurrent.futures.wait([future for _, _, future in runs])
        for mutant, library, future in runs:
            what, ended, seconds = future.result()
            if not ended:  # it may have been the others
                what, _, seconds = what_failed(children, args, mutant, library)
            print(f"{mutant.name:{width}}  {seconds:5.1f} s  {what or 'NOT NOTICED'}: {mutant.trap}",
                  flush=True)
            failures += not what
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function in (("build", build), ("run", run)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("--only", nargs="*", help="names of mutants; all by default")
        command.add_argument("--jobs", type=int, default=os.cpu_count() if name == "build" else 4)
        command.add_argument("libraries", type=pathlib.Path)
        if name == "build":
            command.add_argument("--build-dir", type=pathlib.Path, required=True)
        else:
            command.add_argument("--programs", type=lambda p: pathlib.Path(p).resolve(),
                                 required=True)
    args = parser.parse_args()
    wanted = [m for m in gpu_mutants.MUTANTS if args.only is None or m.name in args.only]
    unknown = set(args.only or []) - {m.name for m in wanted}
    if unknown:
        sys.exit(f"no such mutant: {', '.join(sorted(unknown))}")
    try:
        failures = args.function(args, wanted)
    except cpu_run.Broken as reason:
        sys.exit(f"mutation: {reason}")
    print(f"{len(wanted)} mutants, {failures} failures")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
