#!/usr/bin/env python3
"""Load on a real sluice-router: how many streams, how fast, at what cost.

usage: router_load.py BIN_DIR [--only NAME,...] [--smoke] [--write FILE]     (from the root of the sources)

BIN_DIR holds sluice-router, mock_worker, load_client and router_core_bench. Instances are mock ones
(mock_worker.cc), so that nothing but the router is loaded; the router, its protocols and the
clients' connections are real. Every answer is checked to the letter by load_client.cc.

Prints the table of docs/benchmarks/router.md; exit status 1 when an answer was wrong. A figure that
misses its bar is marked, and is no failure: the machine may be busy.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cluster"))
import kv_share  # noqa: E402
from cluster import MODEL, free_ports  # noqa: E402

POSITIONS = 1 << 17  # of the model as the router is told: the shipped one holds 2,048
LONG_TOKENS = 100_000
MARKS = ("<!-- measured: begin -->", "<!-- measured: end -->")


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid):
    return int(re.search(r"VmRSS:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text())[1]) / 1024


class Failed(Exception):
    pass


class Bench:
    """A router and a mock worker, until the end of the with block."""

    def __init__(self, bin_dir, worker):
        self.bin = pathlib.Path(bin_dir)
        self.worker_options = worker
        self.folder = tempfile.TemporaryDirectory(prefix="sluice-load-")
        self.path = pathlib.Path(self.folder.name)

    def make_model(self):
        """The shipped model but for its positions: long prompts must fit."""
        source, model = pathlib.Path(MODEL).resolve(), self.path / "sluice-tiny"
        model.mkdir()
        for file in source.iterdir():
            (model / file.name).symlink_to(file)
        config = json.loads((source / "config.json").read_text())
        config["max_position_embeddings"] = POSITIONS
        (model / "config.json").unlink()
        (model / "config.json").write_text(json.dumps(config))
        return str(model)

    def start(self, name, command):
        with open(self.path / f"{name}.log", "ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def __enter__(self):
        http, grpc, attach, admin = [f"127.0.0.1:{port}" for port in free_ports(4)]
        model = self.make_model()
        config = {"model": {"dir": model},
                  "router": {"http": http, "grpc": grpc, "attach": attach, "admin": admin,
                             "active_requests_max": 16384, "queued_requests_max": 16384},
                  "mixed": {"count": 1},  # a file needs instances; which ones come, the router learns from them
                  "balancer": {"enabled": False}, "timeouts": {"drain": "2s"}}
        (self.path / "cluster.yaml").write_text(json.dumps(config))
        self.http, self.emits = http, str(self.path / "emits")
        self.router = self.start("router", [self.bin / "sluice-router", "--config", self.path / "cluster.yaml"])
        self.worker = self.start("worker", [self.bin / "mock_worker", "--router", attach, "--model", model,
                                            "--emits", self.emits, *self.worker_options])
        deadline = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(f"http://{http}/health", timeout=2):
                    break
            except OSError:
                pass
            if time.monotonic() > deadline:
                self.__exit__()
                raise Failed("not ready\n" + self.logs)
            time.sleep(0.05)
        time.sleep(0.5)  # so that all instances have come
        return self

    def __exit__(self, *_):
        for process in (self.worker, self.router):
            process.send_signal(signal.SIGTERM)
        self.codes = [process.wait(timeout=20) for process in (self.worker, self.router)]
        self.logs = "".join(f"--- {name}\n{(self.path / f'{name}.log').read_text()[-3000:]}"
                            for name in ("router", "worker"))
        self.folder.cleanup()
        if self.codes != [0, 0]:
            raise Failed(f"worker and router ended with {self.codes}\n{self.logs}")

    def tokens_of(self, text):
        body = json.dumps({"prompt": text}).encode()
        request = urllib.request.Request(f"http://{self.http}/tokenize", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["count"]

    def long_prompt(self):
        """A file with a text of about LONG_TOKENS tokens."""
        lines = [json.loads(line) for line in (pathlib.Path(MODEL) / "eval.jsonl").read_text().splitlines()]
        text = " ".join(str(value) for line in lines for value in line.values() if isinstance(value, str))
        text = re.sub(r"[^ -~]|[\"\\]", " ", text)
        tokens = self.tokens_of(text)
        text *= LONG_TOKENS // tokens + 1
        text = text[:len(text) * LONG_TOKENS // self.tokens_of(text)]
        path = self.path / "long.txt"
        path.write_text(text)
        return str(path)

    def load(self, *options, on_held=None):
        """Runs load_client; its figures, with the processor time that each process used meanwhile."""
        before = [cpu_seconds(process.pid) for process in (self.router, self.worker)]
        client = subprocess.Popen([self.bin / "load_client", "--router", self.http, "--emits", self.emits,
                                   *[str(option) for option in options]],
                                  stdout=subprocess.PIPE, text=True)
        result = None
        for line in client.stdout:
            event = json.loads(line)
            if "held" in event:
                on_held()
            else:
                result = event
        code = client.wait()
        if result is None or code != 0:
            raise Failed(f"load_client ended with {code}: {result and result['errors']}")
        after = [cpu_seconds(process.pid) for process in (self.router, self.worker)]
        result["router_cpu"], result["worker_cpu"] = [b - a for a, b in zip(before, after)]
        return result

    def router_mib(self):
        return resident_mib(self.router.pid)


# --- Scenarios: each gives rows of (what, bar, measured, whether it holds) ---


def cost(result):
    """Where processor time went: in all, and the router's share of it."""
    total = result["router_cpu"] + result["worker_cpu"] + result["cpu_seconds"]
    return (f"CPU {total / result['finished'] * 1e6:.0f} us a request: router "
            f"{result['router_cpu'] / result['finished'] * 1e6:.0f}, mock worker "
            f"{result['worker_cpu'] / result['finished'] * 1e6:.0f}, client "
            f"{result['cpu_seconds'] / result['finished'] * 1e6:.0f}")


def throughput(bin_dir, smoke):
    requests = 300 if smoke else 20_000
    with Bench(bin_dir, ["--prefills", "2", "--decodes", "4", "--step-ms", "10"]) as bench:
        result = bench.load("--streams", 20 if smoke else 500, "--requests", requests, "--tokens", 32)
    rate = result["requests_per_second"]
    assert result["finished"] == requests, result
    return [("streamed requests of 32 tokens, started and finished", "1,000/s",
             f"{rate:.0f}/s, {rate * 32:.0f} tokens/s; {cost(result)}", rate >= 1000)]


def latency(bin_dir, smoke):
    streams, seconds, settle = (50, 3, 1) if smoke else (2000, 40, 8)
    # Steps of 100 ms of 32 decodes with 64 streams each, spread evenly over time.
    with Bench(bin_dir, ["--prefills", "4", "--decodes", "32", "--slots", "128", "--step-ms", "100"]) as bench:
        result = bench.load("--streams", streams, "--seconds", seconds, "--settle", settle, "--rate", 500,
                            "--tokens", 20 if smoke else 200, "--long-prompt", bench.long_prompt())
    times, token_us = result["latency"], result["router_cpu"] / result["tokens"] * 1e6
    assert times["count"] > 0 and result["long_finished"] > 0, result
    load = (f"{result['open_max']} streams of 10 tokens/s, a prompt of {result['long_prompt_tokens']} tokens a second "
            f"({result['long_finished']} of them)")
    return [(f"latency added to a token, p50: {load}", "1 ms", f"{times['p50_ms']:.2f} ms", times["p50_ms"] < 1),
            ("the same, p99", "5 ms", f"{times['p99_ms']:.2f} ms (p99.9 {times['p999_ms']:.1f}, largest "
             f"{times['max_ms']:.1f}; {times['count']} tokens); router CPU {token_us:.0f} us a token, "
             "long prompts included", times["p99_ms"] < 5),
            ("first token of the long prompts, p50", "", f"{result['long_ttft']['p50_ms']:.0f} ms, largest "
             f"{result['long_ttft']['max_ms']:.0f} ms", True)]


def idle(bin_dir, smoke):
    streams = 100 if smoke else 10_000
    held = {}
    with Bench(bin_dir, ["--mixed", "8", "--slots", "2000", "--step-ms", "4000"]) as bench:
        before = bench.router_mib()
        result = bench.load("--streams", streams, "--requests", streams, "--rate", 500, "--tokens", 1000, "--hold",
                            2 if smoke else 10, on_held=lambda: held.update(mib=bench.router_mib()))
        assert result["held_open"] == streams, result
        held["mib"] = max(held["mib"], bench.router_mib())
        deadline = time.monotonic() + 20
        while True:  # the clients have gone: so must their requests
            with urllib.request.urlopen(f"http://{bench.http}/load", timeout=10) as response:
                left = json.load(response)["server_load"]
            if left == 0:
                break
            assert time.monotonic() < deadline, f"{left} requests of clients that have gone"
            time.sleep(0.1)
    each = (held["mib"] - before) / streams * 1024
    return [(f"resident memory of the router with {streams:,} idle streams open", "1 GiB",
             f"{held['mib']:.0f} MiB: {before:.0f} before, {each:.1f} KiB a stream", held["mib"] < 1024)]


def memory(bin_dir, smoke):
    rounds, requests = (3, 200) if smoke else (10, 10_000)
    samples = []
    with Bench(bin_dir, ["--prefills", "1", "--decodes", "2", "--step-ms", "5", "--kv-pages", "8192"]) as bench:
        for _ in range(rounds):
            bench.load("--streams", 20 if smoke else 200, "--requests", requests, "--tokens", 8)
            samples.append(bench.router_mib())
    # The index and the buffers fill at first.
    warm = samples[len(samples) // 5]
    grown = samples[-1] - warm
    return [(f"resident memory over {rounds * requests:,} requests", "flat",
             f"{' '.join(f'{sample:.0f}' for sample in samples)} MiB after each {requests:,}", grown < 0.05 * warm)]


def decision(bin_dir, smoke):
    output = subprocess.run([pathlib.Path(bin_dir) / "router_core_bench", "--benchmark_format=json",
                             "--benchmark_filter=BM_Decision"], check=True, capture_output=True, text=True).stdout
    rows = []
    for run in json.loads(output)["benchmarks"]:
        p50 = run.get("decision_p50_us")
        if p50 is not None:
            rows.append((f"routing decision, p50: {run['name']}", "0.2 ms", f"{p50 / 1000:.3f} ms", p50 < 200))
    return rows


def kv(bin_dir, smoke):
    return kv_share.measure(bin_dir, turns=2 if smoke else 21)


SCENARIOS = {"throughput": throughput, "latency": latency, "idle": idle, "memory": memory, "decision": decision,
             "kv": kv}
NOT_IN_SMOKE = ("decision", "kv")


def lateness():
    """What the machine itself adds: how late a thread that sleeps for a millisecond wakes up."""
    late = []
    for _ in range(2000):
        begun = time.monotonic()
        time.sleep(0.001)
        late.append((time.monotonic() - begun) * 1e3 - 1)
    late.sort()
    return f"wakes up late by p50 {late[1000]:.2f}, p99 {late[1980]:.2f} ms"


def header():
    model = re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    return (f"{len(os.sched_getaffinity(0))} cores of {model[1] if model else 'an unknown processor'}; commit {commit}; "
            f"{time.strftime('%Y-%m-%d')}; load average at the start {os.getloadavg()[0]:.1f}, "
            f"{lateness()}\n\n"
            f"    python3 {' '.join(sys.argv)}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bin_dir")
    parser.add_argument("--only", help="scenarios: " + ", ".join(SCENARIOS))
    parser.add_argument("--smoke", action="store_true", help="a few hundred requests, to see that it works")
    parser.add_argument("--write", help="put what is printed there, between the lines with the marks")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else [
        name for name in SCENARIOS if not (options.smoke and name in NOT_IN_SMOKE)]
    lines = [header(), "| what | bar | measured | |", "|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    failed = False
    for name in names:
        try:
            rows = SCENARIOS[name](options.bin_dir, options.smoke)
        except (Failed, AssertionError) as error:
            failed = True
            rows = [(name, "", f"FAILED: {error}", False)]
        for what, bar, measured, holds in rows:
            lines.append(f"| {what} | {bar} | {measured} | {'' if holds or options.smoke else 'missed'} |")
            print(lines[-1], flush=True)
    if options.write:
        page = pathlib.Path(options.write)
        before, _, rest = page.read_text().partition(MARKS[0])
        page.write_text(f"{before}{MARKS[0]}\n" + "\n".join(lines) + f"\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
