"""`sluice up`, `chat`, `eval --endpoint` and `top` from outside, against programs that stand in for the
services; sluice-balancer is the real one.

usage: up_test.py DIR_OF_PROGRAMS     (from the root of the sources; ctest does that)
"""

import contextlib
import http.server
import json
import os
import pathlib
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import unittest

PROGRAMS = pathlib.Path()
DEADLINE_S = 60

# Stands in for every program: a router answers /health, the others wait. Exits 0 on SIGTERM.
STUB = r'''#!PYTHON
import http.server, os, re, signal, sys, threading
name = sys.argv[sys.argv.index("--instance") + 1]
config = open(sys.argv[sys.argv.index("--config") + 1]).read()
if name == os.environ.get("STUB_CRASHES"):
    print("2026-11-22T05:40:10.123456Z error [decode-1] ends reason=\"no weights here\"", flush=True)
    print("and a last word", flush=True)
    sys.exit(int(os.environ["STUB_STATUS"]))
term = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: None if name == os.environ.get("STUB_IGNORES_TERM") else term.set())
print(f"pid={os.getpid()} {os.path.basename(sys.argv[0])}", flush=True)
if name.startswith("router"):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            healthy = self.path == "/health" and "STUB_CRASHES" not in os.environ
            self.send_response(200 if healthy else 503)
            self.end_headers()
        def log_message(self, *args): pass
    port = int(re.search(r'router:.*?http: "127.0.0.1:(\d+)"', config, re.S)[1])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
if "STUB_PRINTS" in os.environ and name == "decode-1":
    for _ in range(int(os.environ["STUB_PRINTS"])):
        print("x" * 1000)
    sys.stdout.flush()
    open(os.path.join(os.path.dirname(sys.argv[0]), "printed"), "w").close()
term.wait()
print("drained", flush=True)
os._exit(0)
'''


class Lines:
    """What a process prints on stdout and stderr, to wait in."""

    def __init__(self, process):
        self.text = ""
        self.process = process

    def wait_for(self, pattern, count=1):
        """The match objects, once there are `count`."""
        deadline = threading.Event()
        timer = threading.Timer(DEADLINE_S, deadline.set)
        timer.start()
        try:
            while len(found := list(re.finditer(pattern, self.text))) < count:
                if deadline.is_set():
                    raise AssertionError(f"no {count} x {pattern!r} in:\n{self.text}")
                if select.select([self.process.stdout], [], [], 1)[0]:
                    part = os.read(self.process.stdout.fileno(), 65536).decode()
                    if not part and self.process.poll() is not None:
                        raise AssertionError(f"it ended; no {count} x {pattern!r} in:\n{self.text}")
                    self.text += part
            return found
        finally:
            timer.cancel()

    def rest(self):
        self.text += self.process.communicate(timeout=DEADLINE_S)[0].decode()
        return self.text


def dict_without_duplicates(pairs):
    keys = [key for key, _ in pairs]
    assert len(set(keys)) == len(keys), f"a key stands twice: {keys}"
    return dict(pairs)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class UpTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        for name in ("router", "prefill", "decode", "balancer"):
            program = self.folder / f"sluice-{name}"
            program.write_text(STUB.replace("PYTHON", sys.executable))
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        zero = "admin: 127.0.0.1:0, metrics: 127.0.0.1:0"
        self.file = self.folder / "cluster.yaml"
        self.file.write_text(
            "model: {dir: m}\n"
            "router: {http: 127.0.0.1:0, grpc: 127.0.0.1:0, attach: 127.0.0.1:0, admin: 127.0.0.1:0}\n"
            f"prefill: {{count: 2, {zero}}}\ndecode: {{count: 1, {zero}}}\n"
            "balancer: {grpc: 127.0.0.1:0, metrics: 127.0.0.1:0}\ntimeouts: {drain: 0}\n")

    @contextlib.contextmanager
    def up(self, *arguments, programs=None, **environment):
        process = subprocess.Popen(
            [PROGRAMS / "sluice", "up", "-c", self.file, "--programs", programs or self.folder, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env={**os.environ, **environment}, start_new_session=True)
        try:
            yield process, Lines(process)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    def test_starts_all_and_drains_routers_first(self):
        with self.up() as (process, lines):
            lines.wait_for("Ctrl-C drains")
            self.assertIn("m is up: 1 router, 2 prefill, 1 decode, 1 balancer.", lines.text)
            self.assertRegex(lines.text, r"curl -sSN http://127.0.0.1:\d+/v1/chat/completions")
            for name, program in [("router-1", "router"), ("prefill-1", "prefill"), ("prefill-2", "prefill"),
                                  ("decode-1", "decode"), ("balancer", "balancer")]:
                lines.wait_for(rf"\[{name}\] pid=\d+ sluice-{program}\n")
            process.send_signal(signal.SIGINT)
            text = lines.rest()
            self.assertEqual(process.returncode, 0, text)
            drained = re.findall(r"\[([\w-]+)\] drained", text)
            self.assertEqual(drained[0], "router-1")
            self.assertEqual(sorted(drained), ["balancer", "decode-1", "prefill-1", "prefill-2", "router-1"])

    def test_a_dead_child_is_started_again_and_the_others_stay(self):
        with self.up() as (process, lines):
            lines.wait_for("Ctrl-C drains")
            lines.wait_for(r"pid=\d+ sluice-", 5)
            pids = dict(re.findall(r"\[([\w-]+)\] pid=(\d+)", lines.text))
            os.kill(int(pids["prefill-2"]), signal.SIGKILL)
            again = lines.wait_for(r"\[prefill-2\] pid=(\d+)", 2)[1][1]
            self.assertNotEqual(again, pids["prefill-2"])
            self.assertIn("died; will be started again child=prefill-2 how=\"killed by signal 9", lines.text)
            for name in ("router-1", "prefill-1", "decode-1", "balancer"):
                self.assertTrue(alive(pids[name]), name)
            process.terminate()
            self.assertEqual(process.wait(DEADLINE_S), 0)

    @contextlib.contextmanager
    def flooded(self):
        """One whose stderr nobody has read while decode-1 printed 20,000 lines, and the pipe's other end."""
        printed = self.folder / "printed"
        printed.unlink(missing_ok=True)
        read_end, write_end = os.pipe()
        process = subprocess.Popen(
            [PROGRAMS / "sluice", "up", "-c", self.file, "--programs", self.folder], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=write_end, env={**os.environ, "STUB_PRINTS": "20000"})
        os.close(write_end)
        with open(read_end, "rb") as log:
            try:
                Lines(process).wait_for("Ctrl-C drains")
                self.wait_until(printed.exists, "all lines are printed")
                yield process, log
            finally:
                process.kill()
                process.wait()
                process.stdout.close()

    def wait_until(self, holds, what):
        deadline = time.monotonic() + DEADLINE_S
        while not holds():
            self.assertLess(time.monotonic(), deadline, what)
            time.sleep(0.02)

    def test_goes_on_though_nobody_reads_its_log(self):
        def pid_of(name):
            for pid in pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                with contextlib.suppress(OSError):
                    if name in pathlib.Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                        return int(pid)

        cluster = self.file.read_text()
        for log_format in ("text", "json"):
            self.file.write_text(f"{cluster}logging: {{format: {log_format}}}\n")
            with self.subTest(log_format), self.flooded() as (process, _):
                killed = pid_of("decode-1")
                os.kill(killed, signal.SIGKILL)
                self.wait_until(lambda: pid_of("decode-1") not in (None, killed), "it is started again")
                process.terminate()
                self.assertEqual(process.wait(DEADLINE_S), 0)

    def test_says_how_many_lines_of_its_log_are_lost(self):
        with self.flooded() as (process, log):
            process.terminate()
            text = log.read().decode()
            self.assertEqual(process.wait(DEADLINE_S), 0)
        lost = re.findall(r"Z warn  \[up\] log lines are lost: they are not read fast enough lines=(\d+)\n", text)
        printed = text.count("[decode-1] " + "x" * 1000 + "\n")
        self.assertLess(printed, 20000)
        self.assertGreaterEqual(printed + sum(map(int, lost)), 20000)  # with lines of others

    def test_json_logs_are_json_whatever_children_print(self):
        with self.file.open("a") as file:
            file.write("logging: {format: json}\n")
        with self.up() as (process, lines):
            lines.wait_for("Ctrl-C drains")
            lines.wait_for(r"pid=\d+ sluice-", 5)
            pid = int(re.search(r'"prefill-1","line":"pid=(\d+)', lines.text)[1])
            os.kill(pid, signal.SIGKILL)
            lines.wait_for("died; will be started again")
            process.terminate()
            text = lines.rest()
        # In between stands what it prints on stdout: the addresses, and how to ask.
        logged = [line for line in text.splitlines() if line.startswith("{")]
        for line in logged:
            json.loads(line, object_pairs_hook=dict_without_duplicates)
        self.assertNotIn("[prefill-1]", text)
        self.assertGreaterEqual(len(logged), 5 + 5)

    def test_children_die_with_it(self):
        with self.up() as (process, lines):
            lines.wait_for(r"pid=\d+ sluice-", 5)
            pids = re.findall(r"pid=(\d+) sluice-", lines.text)
            self.assertEqual({os.getsid(int(pid)) for pid in pids}, {process.pid})
            handles = [os.pidfd_open(int(pid)) for pid in pids]
            process.kill()
            for pid, handle in zip(pids, handles):
                self.assertTrue(select.select([handle], [], [], DEADLINE_S)[0], f"{pid} lives on")
                os.close(handle)

    def test_a_child_that_never_starts_ends_it_with_the_reason(self):
        cases = [(1, 3), (2, 1), (3, 1), (4, 1), (5, 3)]  # 2 to 4: starting again is of no use
        for status, deaths in cases:
            with self.subTest(status=status), self.up(
                    STUB_CRASHES="decode-1", STUB_STATUS=str(status)) as (process, lines):
                text = lines.rest()
                self.assertEqual(process.returncode, 1)
                self.assertEqual(text.count("[decode-1] and a last word"), deaths)
                self.assertEqual(text.count("died; will be started again"), deaths - 1)
                self.assertEqual(text.count("died; will not be started again child=decode-1"), 1)
                self.assertRegex(
                    text, f"sluice: the cluster did not start: decode-1 exited with status {status}"
                    + (f", {deaths} times" if deaths > 1 else "")
                    + r"; its last: \S+Z error \[decode-1\] ends reason=\"no weights here\"\n")

    def test_one_that_does_not_drain_is_killed(self):
        with self.up(STUB_IGNORES_TERM="decode-1") as (process, lines):
            lines.wait_for("Ctrl-C drains")
            lines.wait_for(r"\[decode-1\] pid=")
            process.terminate()
            text = lines.rest()
            self.assertEqual(process.returncode, 1, text)
            self.assertIn("1 workers did not drain within 5s and were killed", text)

    def test_a_second_signal_ends_all_at_once(self):
        with self.up(STUB_IGNORES_TERM="decode-1") as (process, lines):
            lines.wait_for("Ctrl-C drains")
            lines.wait_for(r"pid=\d+ sluice-", 5)
            process.terminate()
            lines.wait_for("drained", 4)
            process.send_signal(signal.SIGINT)
            lines.rest()
            self.assertEqual(process.returncode, 128 + signal.SIGINT)

    def test_runs_a_command_and_ends_with_it(self):
        log = self.folder / "log"
        for status in (0, 7):
            script = f"echo endpoint $SLUICE_ENDPOINT --x=y; exit {status}"
            with self.up("--log", log, "--", "sh", "-c", script) as (process, lines):
                text = lines.rest()
                self.assertRegex(text, r"endpoint http://127.0.0.1:\d+ --x=y\n")
                self.assertEqual(process.returncode, 1 if status else 0)
                self.assertEqual("sh exited with status 7" in text, status == 7)
                self.assertNotIn("pid=", text)
        self.assertIn("[router-1] drained", log.read_text())

    def test_says_what_is_wrong_before_it_starts_anything(self):
        with self.up(programs="/nowhere") as (process, lines):
            self.assertIn("/nowhere/sluice-router: cannot be run", lines.rest())
            self.assertEqual(process.returncode, 1)
        self.file.write_text("model: {dri: m}\n")
        with self.up() as (process, lines):
            self.assertIn("cluster.yaml:1: model.dri: no such key; did you mean dir?", lines.rest())
            self.assertEqual(process.returncode, 1)


class Endpoint(http.server.ThreadingHTTPServer):
    """Stands in for a router's OpenAI API. `answers`: what to do with each request, in turn."""

    daemon_threads = True

    def __init__(self, answer):
        self.requests = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.reply(self, 200, {"object": "list", "data": [{"id": "stub-model"}]})

            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                request["authorization"] = self.headers["Authorization"]
                outer.requests.append(request)
                answer(outer, self, request)

            def log_message(self, *args):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def reply(self, handler, status, body, headers=()):
        data = json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        for name, value in headers:
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    def stream(self, handler, deltas, done=True):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        events = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
        events.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        events.append({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}})
        lines = [json.dumps(event) for event in events] + (["[DONE]"] if done else [])
        for line in lines:
            data = f"data: {line}\n\n".encode()
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        handler.wfile.write(b"0\r\n\r\n")


def run(*arguments, **options):
    return subprocess.run([PROGRAMS / "sluice", *arguments], capture_output=True, text=True,
                          timeout=DEADLINE_S, **options)


class ChatTest(unittest.TestCase):
    def endpoint(self, answer):
        server = Endpoint(answer)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return server

    def test_streams_and_keeps_history(self):
        server = self.endpoint(lambda s, h, r: s.stream(
            h, [{"reasoning_content": "thin"}, {"reasoning_content": "king"}, {"content": "4"}, {"content": "2."}]))
        done = run("chat", "--endpoint", server.url + "/v1", "--api-key", "k", "--system", "Be brief.",
                   input="first?\n\nsecond?\n")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, "<think>\nthinking\n</think>\n\n42.\n" * 2)
        self.assertIn("3 prompt tokens, 5 output tokens", done.stderr)
        self.assertEqual(server.requests[0]["model"], "stub-model")
        self.assertEqual(server.requests[0]["authorization"], "Bearer k")
        self.assertEqual(server.requests[1]["messages"], [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "first?"},
            {"role": "assistant", "content": "42."}, {"role": "user", "content": "second?"}])

    def test_tells_failures(self):
        error = {"error": {"message": "full up"}}
        cases = [
            (lambda s, h, r: s.reply(h, 429, error), "HTTP 429: full up"),
            (lambda s, h, r: s.stream(h, [{"content": "4"}], done=False), "the answer was cut off"),
        ]
        for answer, wanted in cases:
            done = run("chat", "--endpoint", self.endpoint(answer).url, "--ask", "x?")
            self.assertEqual(done.returncode, 1)
            self.assertIn(wanted, done.stderr)
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        done = run("chat", "--endpoint", f"http://127.0.0.1:{port}", "--ask", "x?")
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"cannot connect to http://127.0.0.1:{port}", done.stderr)

    def test_ctrl_c_ends_the_answer(self):
        release = threading.Event()

        def answer(server, handler, request):
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(b'data: {"choices": [{"delta": {"content": "begun"}}]}\n\n')
            handler.wfile.flush()
            release.wait()

        self.addCleanup(release.set)
        server = self.endpoint(answer)
        process = subprocess.Popen([PROGRAMS / "sluice", "chat", "--endpoint", server.url, "--ask", "x?"],
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        lines = Lines(process)
        lines.wait_for("begun")
        process.send_signal(signal.SIGINT)
        self.assertIn("cancelled", lines.rest())
        self.assertEqual(process.returncode, 1)

    def test_eval_scores_what_the_endpoint_says(self):
        refused = threading.Event()

        def answer(server, handler, request):
            question = request["messages"][-1]["content"]
            if question == "2" and not refused.is_set():  # asked again
                refused.set()
                return server.reply(handler, 503, {"error": {"message": "wait"}}, [("Retry-After", "0")])
            content, finish = {"1": ("right ", "stop"), "2": ("right", "stop"), "3": ("wrong", "stop"),
                               "4": ("right", "length")}[question]
            server.reply(handler, 200, {"choices": [{"message": {"content": content}, "finish_reason": finish}],
                                        "usage": {"completion_tokens": 10}})

        server = self.endpoint(answer)
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as data:
            for i in range(1, 5):
                problem = {"id": f"p{i}", "task": "t", "answer": "right",
                           "messages": [{"role": "user", "content": str(i)}]}
                data.write(json.dumps(problem) + "\n")
            data.flush()
            done = run("eval", "--endpoint", server.url, "--data", data.name, "--json")
            self.assertEqual(done.returncode, 0, done.stderr)
            result = json.loads(done.stdout)
            self.assertEqual((result["right"], result["total"]), (2, 4))
            self.assertEqual(sorted(f["id"] for f in result["failures"]), ["p3", "p4"])
            self.assertIn("40 tokens", done.stderr)
            self.assertEqual({r["temperature"] for r in server.requests}, {0})
        for arguments, message in [(["--endpoint", server.url], "--data FILE is needed"), ([], "--model DIR is needed")]:
            done = run("eval", *arguments)
            self.assertIn(message, done.stderr)
            self.assertEqual(done.returncode, 2)


class BalancerTest(unittest.TestCase):
    def test_top_shows_it_and_sigterm_drains_it(self):
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
            grpc, metrics = one.getsockname()[1], two.getsockname()[1]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write("model: {dir: m}\nmixed: {count: 1}\nlogging: {format: json}\n"
                       f"balancer: {{grpc: 127.0.0.1:{grpc}, metrics: 127.0.0.1:{metrics}}}\n")
            file.flush()
            process = subprocess.Popen([PROGRAMS / "sluice-balancer", "--config", file.name],
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            lines = Lines(process)
            lines.wait_for('"msg":"ready"')
            top = run("top", "--once", "--admin", f"127.0.0.1:{grpc}")
            self.assertEqual(top.returncode, 0, top.stderr)
            self.assertRegex(top.stdout, r"^balancer \(sluice [\d.]+\), up \S+, ready\n")
            self.assertIn("none attached", top.stdout)
            process.terminate()
            text = lines.rest()
            self.assertEqual(process.returncode, 0, text)
            for line in text.splitlines():
                self.assertEqual(json.loads(line)["instance"], "balancer")
            gone = run("top", "--once", "--admin", f"127.0.0.1:{grpc}")
            self.assertEqual(gone.returncode, 1)
            self.assertIn(f"127.0.0.1:{grpc}", gone.stderr)


if __name__ == "__main__":
    PROGRAMS = pathlib.Path(sys.argv.pop(1)).absolute()
    unittest.main()
