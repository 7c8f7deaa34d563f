#!/usr/bin/env python3
"""Measures the CUDA backend on one GPU and writes the figures to a page.

    python3 tests/bench/h200.py build/cuda/bin --write docs/benchmarks/h200.md

Runs the benches of kernels and of whole steps one after the other, some ten minutes in all, and replaces
what stands between the page's two marks. Names behind --only (steps, start, linear, attention, prompt, small) run
those alone and leave the other sections of the page as they are. "start" writes a checkpoint of 16 GB into a
temporary folder (TMPDIR), and removes it.
"""
import argparse
import functools
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
TOKENIZER = HERE.parents[1] / "deploy/models/sluice-tiny"
V3, V2_LITE = HERE / "deepseek_v3.json", HERE / "deepseek_v2_lite.json"
DECODE, PREFILL = "128x4096", "4x4096"  # the slices whose figures stand by themselves
KERNELS = {
    "linear": ("cuda_linear_bench", "Products with weights"),
    "attention": ("cuda_attention_bench", "Attention of decoding tokens"),
    "prompt": ("cuda_prompt_bench", "Attention of prompts"),
    "small": ("cuda_small_bench", "Everything else in a layer, and sampling"),
}
TIMEOUT_S = 900


def run(command):
    """Shows the command's output as it comes; returns its lines."""
    print("$ " + " ".join(map(str, command)), flush=True)
    lines = []
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if not line.startswith(("row\t", "kernel\t")):
                print(line, end="", flush=True)
        if process.wait(timeout=TIMEOUT_S) != 0:
            raise SystemExit(f"h200.py: {command[0]} ended with {process.returncode}")
    return lines


def rows(lines):
    return [line.split("\t")[1:] for line in lines if line.startswith("row\t")]


def heading(lines, command):
    comments = [line[2:] for line in lines if line.startswith("# ") and "command:" not in line]
    commit = next(re.search(r"commit (\S+),", line)[1] for line in lines if "commit " in line)
    shown = " ".join(str(part).replace(str(HERE), "tests/bench") for part in command[1:])
    return [f"Commit {commit}. " + "; ".join(comments) + ".", "", f"    {pathlib.Path(command[0]).name} {shown}".rstrip(), ""]


def kernel_section(bin_dir, name):
    program, title = KERNELS[name]
    command = [bin_dir / program]
    lines = run(command)
    out = [f"### {title}", ""] + heading(lines, command)
    last = None
    for case, shape, us, _, _, tflops, gbps, bound, share, peer, peer_us, mhz in rows(lines):
        if case != last:
            out += ["", f"**{case}**", "", "| shape | us | TFLOPS | GB/s | bound, us | share of it | peer | MHz |", "|---|---|---|---|---|---|---|---|"]
            last = case
        beside = f"{peer} {float(peer_us):.1f} us ({float(peer_us) / float(us):.2f}x)" if peer else ""
        out.append(f"| {shape} | {float(us):.1f} | {float(tflops):.0f} | {float(gbps):.0f} | {float(bound):.1f} | {100 * float(share):.0f} % | {beside} | {mhz} |")
    return out + [""]


def step_table(lines):
    out = ["| step | sequences x tokens | ms, median | fastest, slowest | tok/s | MHz |", "|---|---|---|---|---|---|"]
    for kind, shape, us, least, most, rate, mhz in rows(lines):
        out.append(f"| {kind.removeprefix('step ')} | {shape} | {float(us) / 1e3:.3f} | {float(least) / 1e3:.3f}, {float(most) / 1e3:.3f} | {int(rate):,} | {mhz} |")
    return out + [""]


def kernel_tables(lines, names):
    """Of the steps named, what kernels they are made of; kernels under 0.2 % together in one line."""
    out = []
    for name in names:
        times = [(line.split("\t")[2], float(line.split("\t")[3]), float(line.split("\t")[4]))
                 for line in lines if line.startswith(f"kernel\t{name}\t")]
        total = sum(us for _, _, us in times)
        out += [f"**{name}**: {total / 1e3:.2f} ms in kernels", "", "| kernel | calls | us a call | share |", "|---|---|---|---|"]
        for kernel, calls, us in times:
            if us >= 0.002 * total:
                out.append(f"| `{kernel[:80]}` | {calls:.0f} | {us / calls:.1f} | {100 * us / total:.1f} % |")
        rest = [us for _, _, us in times if us < 0.002 * total]
        out += [f"| {len(rest)} others | | | {100 * sum(rest) / total:.1f} % |", ""]
    return out


def rate_of(lines, kind, shape):
    return next(int(row[5]) for row in rows(lines) if row[:2] == [f"step {kind}", shape])


def steps_section(bin_dir):
    program = bin_dir / "cuda_step_bench"
    batches = [f"decode:{batch}x4096" for batch in (1, 8, 32, 64, 128, 256)]
    prompts = ["prompt:1x1024", "prompt:1x2048", "prompt:1x4096", "prompt:2x4096", f"prompt:{PREFILL}", "prompt:8x4096"]
    command = [program, "--config", V3, "--ep-slice", "0/32", *batches, *prompts]
    slices = run(command)
    decode, prefill = rate_of(slices, "decode", DECODE), rate_of(slices, "prompt", PREFILL)
    out = ["### Whole steps: one GPU's share of DeepSeek-V3 at EP32", "",
           f"Decode slice: {decode} tok/s", "", f"Prefill slice: {prefill} tok/s", ""]
    out += heading(slices, command) + step_table(slices)
    command = [program, "--config", V3, "--ep-slice", "0/32", "--kernels", f"decode:{DECODE}", f"prompt:{PREFILL}"]
    traced = run(command)
    out += ["### What the slices' time goes into", ""] + heading(traced, command)
    out += kernel_tables(traced, [f"decode {DECODE}", f"prompt {PREFILL}"])
    command = [program, "--config", V2_LITE, "decode:1x1024", "decode:64x1024", "prompt:1x1024", "prompt:4x4096"]
    lite = run(command)
    out += ["### Whole steps: DeepSeek-V2-Lite, all of it", ""] + heading(lite, command) + step_table(lite)
    return out


def start_section(bin_dir):
    """From the start of a process to its first token, DeepSeek-V2-Lite with FP8 weights."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TOKENIZER / name, folder)
        run([bin_dir / "make_checkpoint", "--config", V2_LITE, "--out", folder, "--dtype", "fp8", "--shard-bytes", "4G"])
        command = [bin_dir / "sluice", "generate", "--model", folder, "--device", "cuda", "--numerics", "fast",
                   "--prompt-token-ids", "5,6,7,8", "--max-tokens", "1", "--json"]
        out = ["### From a process's start to its first token: DeepSeek-V2-Lite, FP8", "",
               "    sluice generate --device cuda --numerics fast --prompt-token-ids 5,6,7,8 --max-tokens 1 --json --model DIR", "",
               "| weights | s, three times: start to end, CUDA's own start included |", "|---|---|"]
        for what, options in (("a checkpoint of 16 GB, in the page cache", []), ("--load-format dummy", ["--load-format", "dummy"])):
            seconds = []
            for _ in range(3):
                begin = time.monotonic()
                run(command + options)
                seconds.append(f"{time.monotonic() - begin:.2f}")
            out.append(f"| {what} | {', '.join(seconds)} |")
    return out + [""]


SECTIONS = {"steps": steps_section, "start": start_section,
            **{name: functools.partial(kernel_section, name=name) for name in KERNELS}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bin_dir", type=pathlib.Path)
    parser.add_argument("--write", type=pathlib.Path, metavar="PAGE")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    options = parser.parse_args()
    for name in options.only:
        section = SECTIONS[name](options.bin_dir)
        if options.write is None:
            continue
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        page = options.write.read_text()
        before, found, rest = page.partition(begin)
        if not found or end not in rest:
            raise SystemExit(f"h200.py: {options.write} lacks the marks {begin} and {end}")
        options.write.write_text(f"{before}{begin}\n" + "\n".join(section) + f"\n{end}{rest.partition(end)[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
