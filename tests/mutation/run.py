#!/usr/bin/env python3
"""Falls into every known trap on purpose and shows that the conformance tests notice.

usage: run.py --build-dir DIR [--only NAME …] [--jobs N]
       run.py --texts

Copies the tree to DIR/source, builds the conformance tests in DIR/build and runs them: they must
pass. Then, for each mutant of mutants.py, changes its one place in the source, rebuilds, and runs
the tests until one fails. Prints a table; exits 1 when a mutant survives, does not compile, or its
text is not found exactly once (the source has moved on: mend the mutant). --texts looks for the
texts alone, those of gpu_mutants.py too, and needs no build.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import time

import gpu_mutants
import mutants

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOT_COPIED = shutil.ignore_patterns("build", ".git", "__pycache__", "*.pyc")
TEST_TIMEOUT_S = 300


class Broken(Exception):
    """Nothing can be said about the tests: the tree or a mutant is not as it should be."""


class Tree:
    """The copy of the sources and its build folder."""

    def __init__(self, directory, jobs):
        self.source, self.build, self._jobs = directory / "source", directory / "build", jobs
        # Compilations of unchanged files are found in ccache wherever the copy lies.
        self._env = dict(os.environ, CCACHE_BASEDIR=str(directory), CCACHE_NOHASHDIR="1",
                         GTEST_FAIL_FAST="1")
        self.refresh()

    def refresh(self):
        """Brings the copy up to date; files that have not changed keep their times."""
        for path in sorted(self.source.rglob("*"), reverse=True):
            if path.is_file() and not (ROOT / path.relative_to(self.source)).exists():
                path.unlink()
        shutil.copytree(ROOT, self.source, ignore=NOT_COPIED, copy_function=_copy_if_changed,
                        dirs_exist_ok=True)

    def configure(self, *options):
        self._run("configuring", "cmake", "-S", self.source, "-B", self.build, "-G", "Ninja",
                  "-DCMAKE_BUILD_TYPE=Release", "-DSLUICE_BUILD_BENCHMARKS=OFF", *options)

    def compile(self, target):
        self._run(f"building {target}", "ninja", "-C", self.build, f"-j{self._jobs}", target)

    def passes(self, test):
        try:
            done = subprocess.run([self.build / "bin" / test], cwd=self.source, env=self._env,
                                  capture_output=True, timeout=TEST_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def _run(self, what, *command):
        done = subprocess.run(command, env=self._env, capture_output=True, text=True)
        if done.returncode != 0:
            raise Broken(f"{what} failed:\n{(done.stdout + done.stderr)[-3000:]}")


def _copy_if_changed(source, target):
    target = pathlib.Path(target)
    if not target.exists() or target.read_bytes() != pathlib.Path(source).read_bytes():
        shutil.copy(source, target)
    return target


def check_texts(texts):
    """Each of these (mutant, file, text): the text must stand exactly once in the file."""
    problems = []
    for name, file, text in texts:
        path = ROOT / file
        found = path.read_text().count(text) if path.exists() else 0
        if found != 1:
            problems.append(f"{name}: its text is {found} times in {file}, not once")
    if problems:
        raise Broken("\n".join(problems))


def killer(tree, mutant):
    """The test that notices the mutant, or None."""
    path = tree.source / mutant.file
    original = path.read_text()
    path.write_text(original.replace(mutant.text, mutant.replacement))
    try:
        for test in sorted(mutants.TESTS, key=lambda test: test != mutant.noticed_by):
            tree.compile(test)
            if not tree.passes(test):
                return test
    finally:
        path.write_text(original)
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--build-dir", type=pathlib.Path)
    what.add_argument("--texts", action="store_true")
    parser.add_argument("--only", nargs="*", help="names of the mutants to try; all by default")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    wanted = [m for m in mutants.MUTANTS if args.only is None or m.name in args.only]
    unknown = set(args.only or []) - {m.name for m in wanted}
    if unknown:
        sys.exit(f"no such mutant: {', '.join(sorted(unknown))}")

    failures = 0
    try:
        check_texts([(m.name, m.file, m.text) for m in mutants.MUTANTS] + gpu_mutants.texts())
        if args.texts:
            return
        args.build_dir.mkdir(parents=True, exist_ok=True)
        tree = Tree(args.build_dir.resolve(), args.jobs)
        tree.configure()
        for test in mutants.TESTS:
            tree.compile(test)
            if not tree.passes(test):
                raise Broken(f"{test} fails without any mutant")
    except Broken as reason:
        sys.exit(f"mutation: {reason}")
    width = max(len(m.name) for m in wanted)
    print(f"{'mutant':{width}}  noticed by        seconds  what is wrong", flush=True)
    for mutant in wanted:
        begin = time.monotonic()
        try:
            verdict = killer(tree, mutant) or "NOBODY"
        except Broken as reason:
            print(reason, file=sys.stderr)
            verdict = "DOES NOT BUILD"
        failures += verdict not in mutants.TESTS
        seconds = time.monotonic() - begin
        print(f"{mutant.name:{width}}  {verdict:16}  {seconds:7.0f}  {mutant.trap}", flush=True)
    print(f"{len(wanted) - failures} of {len(wanted)} mutants noticed")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
