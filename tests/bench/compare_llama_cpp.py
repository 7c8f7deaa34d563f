#!/usr/bin/env python3
"""Compares Sluice's CPU steps with llama.cpp's: same machine, threads, checkpoints, one run.

  tests/bench/compare_llama_cpp.py WORKDIR [--rounds N] [--threads N]

Fills WORKDIR once (30 GB): llama.cpp from the source package of llama-cpp-python, random weights with
DeepSeek-V2-Lite's dimensions cut to 6 layers, and GGUF files of both checkpoints. Then measures in
turns, prints the best round of each, and the ratio of our best to theirs. Needs a release build,
pip and network; torch, transformers and gguf for converting. See tests/bench/README.md.
"""

import argparse
import csv
import io
import json
import os
import pathlib
import platform
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = ROOT / "build/release/bin"
PACKAGE = "llama_cpp_python-0.3.36"
RATES = ("prompt 512", "decode 1", "decode 16")


def run(command, **options):
    print("+ " + " ".join(map(str, command)), file=sys.stderr, flush=True)
    options.setdefault("stdout", sys.stderr)
    return subprocess.run([str(c) for c in command], check=True, **options)


def output(command):
    return run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def patch(path, old, new):
    text = path.read_text()
    if new not in text:
        assert old in text, f"{path}: another version of llama.cpp? {old!r} not found"
        path.write_text(text.replace(old, new, 1))


def prepare(work):
    """Returns llama.cpp's program folder and the checkpoints: name -> (directory, [GGUF])."""
    source = work / PACKAGE / "vendor/llama.cpp"
    programs = work / "build/bin"
    if not source.is_dir():
        run([sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:",
             "--no-build-isolation", "-d", work, PACKAGE.replace("_", "-").replace("-0.", "==0.", 1)])
        run(["tar", "xf", work / f"{PACKAGE}.tar.gz", "-C", work])
    # It tells Lite models by their number of layers.
    patch(source / "src/models/deepseek2.cpp", "n_layer() == 27 ||",
          "n_layer() == 27 || hparams.n_layer() == 6 ||")
    if not (programs / "llama-batched-bench").exists():
        run(["cmake", "-S", source, "-B", work / "build", "-G", "Ninja",
             "-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF"])
        run(["cmake", "--build", work / "build", "--target", "llama-bench", "llama-batched-bench",
             "llama-quantize"])

    big = work / "v2lite6-bf16"
    for dtype in ("bf16", "fp8"):
        out = work / f"v2lite6-{dtype}"
        if not out.is_dir():
            run([BIN / "make_checkpoint", "--config", ROOT / "tests/bench/v2_lite_6_layers.json",
                 "--out", out, "--dtype", dtype])
    # Random weights have no tokenizer: speeds do not need one.
    convert = ("import sys, runpy; sys.path[:0] = ['gguf-py', '.']; import conversion.deepseek as d; "
               "d.DeepseekV2Model.set_vocab = lambda self: self._set_vocab_none(); "
               "runpy.run_path('convert_hf_to_gguf.py', run_name='__main__')")
    gguf = {}
    for name, directory, types in (("tiny", ROOT / "deploy/models/sluice-tiny", ("bf16", "f16", "q8_0")),
                                   ("v2lite6", big, ("bf16", "f16", "q8_0"))):
        gguf[name] = [work / f"{name}-{t}.gguf" for t in types]
        if not gguf[name][0].exists():
            run([sys.executable, "-c", convert, directory, "--outtype", "bf16", "--outfile",
                 gguf[name][0]], cwd=source)
        for path, kind in zip(gguf[name][1:], types[1:]):
            if not path.exists():
                run([programs / "llama-quantize", gguf[name][0], path, kind.upper(), "2"])
    tiny = ROOT / "deploy/models"
    return programs, {
        "tiny": ([tiny / "sluice-tiny", tiny / "sluice-tiny-fp8"], gguf["tiny"]),
        "v2lite6": ([big, work / "v2lite6-fp8"], gguf["v2lite6"]),
    }


def measure_ours(directory, threads):
    text = output([BIN / "step_bench", "--model", directory, "--numerics", "fast", "--threads",
                   threads, "--benchmark_format=json", "--benchmark_min_time=1",
                   "--benchmark_filter=prompt|batch:1/|batch:16"])
    rates = [b["items_per_second"] for b in json.loads(text)["benchmarks"]]
    return dict(zip(RATES, rates))


def measure_theirs(programs, path, threads):
    # Without repacking: its AMX form of the weights stops with an assertion on these models.
    table = output([programs / "llama-bench", "-m", path, "-p", 512, "-n", 32, "-t", threads,
                    "-r", 3, "--repack", 0, "-o", "csv"])
    rates = {}
    for row in csv.DictReader(io.StringIO(table)):
        rates[RATES[0] if int(row["n_prompt"]) else RATES[1]] = float(row["avg_ts"])
    for _ in range(5):  # it sometimes exits before its table is written
        table = output([programs / "llama-batched-bench", "-m", path, "-c", 2048, "-b", 2048,
                        "-ub", 512, "-npp", 16, "-ntg", 32, "-npl", 16, "-t", threads, "--no-repack"])
        rows = [line.split("|") for line in table.splitlines() if re.match(r"\|\s+16 \|", line)]
        if rows:
            rates[RATES[2]] = float(rows[0][8])
            return rates
    sys.exit(f"llama-batched-bench printed no table for {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--models", default="tiny,v2lite6", help="comma-separated")
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    programs, models = prepare(args.workdir.resolve())

    commit = output(["git", "-C", ROOT, "describe", "--always", "--dirty"]).strip()
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo")
                if line.startswith("model name")), platform.processor())
    print(f"Sluice {commit} against llama.cpp ({PACKAGE}); {cpu}, {args.threads} threads; "
          f"tokens/s, best of {args.rounds} rounds\n")
    print("| checkpoint | engine, weights | " + " | ".join(RATES) + " |\n| --- | --- | --- | --- | --- |")
    for name in args.models.split(","):
        directories, ggufs = models[name]
        ours, theirs = {}, {}
        for _ in range(args.rounds):
            for directory in directories:
                key = "Sluice " + ("FP8" if directory.name.endswith("fp8") else "BF16")
                rates = measure_ours(directory, args.threads)
                ours[key] = {r: max(v, ours.get(key, {}).get(r, 0)) for r, v in rates.items()}
            for path in ggufs:
                key = "llama.cpp " + path.stem.split("-")[1].upper()
                rates = measure_theirs(programs, path, args.threads)
                theirs[key] = {r: max(v, theirs.get(key, {}).get(r, 0)) for r, v in rates.items()}
        for key, rates in (ours | theirs).items():
            print(f"| {name} | {key} | " + " | ".join(f"{rates[r]:,.0f}" if rates[r] >= 100 else
                                                      f"{rates[r]:.1f}" for r in RATES) + " |")
        best = [max(o[r] for o in ours.values()) / max(t[r] for t in theirs.values()) for r in RATES]
        print(f"| {name} | ratio of the best | " + " | ".join(f"{b:.2f}" for b in best) + " |",
              flush=True)


if __name__ == "__main__":
    main()
