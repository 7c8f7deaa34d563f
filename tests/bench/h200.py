#!/usr/bin/env python3
"""Measures the CUDA backend on one GPU and writes the figures to a page.

    python3 tests/bench/h200.py build/cuda/bin --write docs/benchmarks/h200.md

Runs the benches of kernels and of whole steps one after the other, six to ten minutes in all, and replaces
what stands between the page's two marks. Names behind --only (steps, start, linear, attention, prompt, small) run
those alone and leave the other sections of the page as they are. "start" writes a checkpoint of 16 GB into a
temporary folder (TMPDIR), and removes it.
"""
import argparse
import functools
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
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
TIMEOUT_S = 600

# What this card reaches, as the programs of kernels have it.
BYTES_A_SECOND, FP8_FLOPS, BF16_FLOPS, ATTENTION_FLOPS = 4.3e12, 1450e12, 800e12, 865e12
SLOTS = 9  # of experts, in a slice
GROUPS = {
    "attention": "attention itself",
    "latent": "into the latent space and back (decode), keys and values from latents (prompt): bf16",
    "products": "FP8 products: attention's, dense, shared and routed experts",
    "head": "head",
    "other": "all else: quantisation, norms, gate, permutation, combination, cache, sampling",
}
DECODE_WANTED, PREFILL_WANTED = 4470, 7500


def run(command):
    """Shows the command's output as it comes; returns its lines."""
    print("$ " + " ".join(map(str, command)), flush=True)
    lines = []
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        late = threading.Timer(TIMEOUT_S, process.kill)
        late.start()
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if not line.startswith(("row\t", "kernel\t")):
                print(line, end="", flush=True)
        status = process.wait()
        late.cancel()
    if status != 0:
        raise SystemExit(f"h200.py: {command[0]} ended with {status} (it has {TIMEOUT_S} s)")
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
    cases = {}
    for row in rows(lines):
        cases.setdefault(row[0], []).append(row[1:])
    for case, measured in cases.items():
        out += ["", f"**{case}**", "", "| shape | us | TFLOPS | GB/s | bound, us | share of it | peer | MHz |", "|---|---|---|---|---|---|---|---|"]
        for shape, us, _, _, tflops, gbps, bound, share, peer, peer_us, mhz in measured:
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


def bounds(kind, sequences, tokens):
    """Milliseconds of a slice's step that the hardware's bounds allow, by group; see GROUPS."""
    c = json.loads(V3.read_text())
    layers, hidden, heads = c["num_hidden_layers"], c["hidden_size"], c["num_attention_heads"]
    moe = layers - c["first_k_dense_replace"]
    rank, rope, nope, v_dim = c["kv_lora_rank"], c["qk_rope_head_dim"], c["qk_nope_head_dim"], c["v_head_dim"]
    rows = sequences if kind == "decode" else sequences * tokens
    pairs = rows * c["num_experts_per_tok"]
    attention = [(c["q_lora_rank"] + rank + rope, hidden), (heads * (nope + rope), c["q_lora_rank"]), (hidden, heads * v_dim)]

    def mlp(width):
        return [(2 * width, hidden), (hidden, width)]

    def product(m, n, k, groups=1):  # FP8
        return max(groups * n * k / BYTES_A_SECOND, 2 * m * n * k / FP8_FLOPS)

    shared = c["moe_intermediate_size"] * c["n_shared_experts"]
    if kind == "prompt":
        # Behind the last layer's KV only the rows go on that a token is sampled from.
        layers, moe = layers - 1, moe - 1
    products = sum(product(rows, n, k) for n, k in attention) * layers
    products += sum(product(rows, n, k) for n, k in mlp(c["intermediate_size"])) * c["first_k_dense_replace"]
    products += sum(product(rows, n, k) for n, k in mlp(shared)) * moe
    products += sum(product(pairs, n, k, SLOTS) for n, k in mlp(c["moe_intermediate_size"])) * moe
    if kind == "decode":
        flops, kv = 2 * rows * heads * tokens * (2 * rank + rope), 2 * rows * tokens * (rank + rope)
        core = max(flops / ATTENTION_FLOPS, kv / BYTES_A_SECOND) * layers
        latent = 2 * heads * rank * (nope + v_dim) / BYTES_A_SECOND * layers
        other = 0  # all of it lies in L2
        head_rows = rows
    else:
        core = sequences * tokens * tokens / 2 * heads * 2 * (nope + rope + v_dim) / BF16_FLOPS * layers
        latent = 2 * rows * heads * (nope + v_dim) * rank / BF16_FLOPS * layers
        read_and_quantised = 5 * rows * (sum(k for _, k in attention))
        experts = (4 + c["num_experts_per_tok"]) * rows * hidden + 5 * pairs * c["moe_intermediate_size"]
        combined = 4 * pairs * hidden + 12 * rows * hidden
        norms = 8 * rows * (2 * hidden + c["q_lora_rank"])
        rotated = 8 * rows * heads * rope
        moved = (read_and_quantised + norms + rotated) * layers + (experts + 5 * rows * (hidden + shared) + combined) * moe
        router = 3 * 2 * rows * hidden * c["n_routed_experts"] * moe  # three bf16 products for the digits of f32
        other = moved / BYTES_A_SECOND + router / BF16_FLOPS
        head_rows = sequences
    head = max(2 * c["vocab_size"] * hidden / BYTES_A_SECOND, 2 * head_rows * c["vocab_size"] * hidden / BF16_FLOPS)
    seconds = {"attention": core, "latent": latent, "products": products, "head": head, "other": other}
    return {group: 1e3 * value for group, value in seconds.items()}


def group_of(kernel, calls):
    if "TileLinear" in kernel or "nvjet_sm90_q" in kernel:
        return "products"
    if re.search(r"MlaDecode|MlaPrompt|CombineKernel<(true|false)>", kernel):
        return "attention"
    if "nvjet" in kernel or "gemm" in kernel:
        return "latent" if calls > 2 else "head"
    return "other"


def gap_table(lines, kind, shape, rate, wanted):
    """Where a slice's step stands beside its bounds, and what separates it from `wanted` tokens a second."""
    sequences, tokens = map(int, shape.split("x"))
    times = dict.fromkeys(GROUPS, 0.0)
    for line in lines:
        if line.startswith(f"kernel\t{kind} {shape}\t"):
            name, calls, us = line.split("\t")[2:5]
            times[group_of(name, float(calls))] += float(us) / 1e3
    least = bounds(kind, sequences, tokens)
    count = sequences if kind == "decode" else sequences * tokens
    out = [f"**{kind} {shape}**: {rate:,} tok/s, goal {wanted:,} ({1e3 * count / wanted:.1f} ms a step), and the bounds below allow "
           f"{1e3 * count / sum(least.values()):,.0f}.", "",
           "| what | ms | bound, ms | share of the bound | above 85 % of the bound by, ms |", "|---|---|---|---|---|"]
    for group, label in GROUPS.items():
        share = f"{100 * least[group] / times[group]:.0f} %" if times[group] else ""
        out.append(f"| {label} | {times[group]:.2f} | {least[group]:.2f} | {share} | {times[group] - least[group] / 0.85:.2f} |")
    return out + [f"| all kernels | {sum(times.values()):.2f} | {sum(least.values()):.2f} | "
                  f"{100 * sum(least.values()) / sum(times.values()):.0f} % | {sum(times.values()) - sum(least.values()) / 0.85:.2f} |", ""]


def rate_of(lines, kind, shape):
    return next(int(row[5]) for row in rows(lines) if row[:2] == [f"step {kind}", shape])


def steps_section(bin_dir):
    program = bin_dir / "cuda_step_bench"
    batches = [f"decode:{batch}x4096" for batch in (1, 8, 32, 64, 128, 256)]
    prompts = ["prompt:1x1024", "prompt:1x2048", "prompt:1x4096", "prompt:2x4096", f"prompt:{PREFILL}"]
    command = [program, "--config", V3, "--ep-slice", "0/32", *batches, *prompts]
    slices = run(command)
    decode, prefill = rate_of(slices, "decode", DECODE), rate_of(slices, "prompt", PREFILL)
    out = ["### Whole steps: one GPU's share of DeepSeek-V3 at EP32", "",
           f"Decode slice: {decode} tok/s", "", f"Prefill slice: {prefill} tok/s", ""]
    out += heading(slices, command) + step_table(slices)
    command = [program, "--config", V3, "--ep-slice", "0/32", "--kernels", f"decode:{DECODE}", f"prompt:{PREFILL}"]
    traced = run(command)
    out += ["### What the slices' time goes into", ""] + heading(traced, command)
    out += gap_table(traced, "decode", DECODE, decode, DECODE_WANTED) + gap_table(traced, "prompt", PREFILL, prefill, PREFILL_WANTED)
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
