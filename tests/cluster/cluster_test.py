"""The cluster as its clients meet it, whole and hurt: processes are really killed.

usage: cluster_test.py BIN_DIR [--device NAME] [--numerics exact|fast] [--model DIR] [TESTS]
(from the root of the sources; ctest does that)

With `--device cuda` all instances share one GPU:
cluster_test.py build/cuda/bin --device cuda --numerics fast --model deploy/models/sluice-tiny-fp8 EvalTest
"""

import json
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.error

import cluster as clusters
from cluster import Cluster, make_certificate

BIN = ""
PROBLEMS = "deploy/models/sluice-tiny/eval.jsonl"
QUESTION = {"messages": [{"role": "user", "content": "What is 47 + 85?"}], "temperature": 0}
# Long enough to be interrupted: it goes on to the limit.
LONG = {"prompt": "The", "temperature": 0, "max_tokens": 1200, "ignore_eos": True}


def wait_for(condition, timeout=10):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def make_long_model(folder):
    """The tiny model's geometry and tokenizer with room for 65,536 tokens; without weights."""
    for file in pathlib.Path(clusters.MODEL).iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    config = json.loads((pathlib.Path(clusters.MODEL) / "config.json").read_text()) | {"max_position_embeddings": 65536}
    (pathlib.Path(folder) / "config.json").write_text(json.dumps(config))


def who_decodes(cluster):
    """The name of one of two decodes; the other may be starting."""
    busy = []

    def one_is_busy():  # the metric is a little late
        for name in ("decode-1", "decode-2"):
            try:
                if (cluster.metric("sluice_decode_running_requests", name) or 0) > 0:
                    busy.append(name)
            except urllib.error.URLError:
                pass
        return busy

    wait_for(one_is_busy)
    return busy[0]


def text_of(events):
    return "".join(choice.get("text") or "" for event in events for choice in event["choices"])


class TlsTest(unittest.TestCase):
    def test_answers_over_https_with_certificates_that_come_and_go(self):
        with Cluster(BIN, prefill=0, decode=0, mixed=1, tls=True) as cluster:
            reply = cluster.post("/v1/chat/completions", QUESTION)
            self.assertIn("132", reply["choices"][0]["message"]["content"])
            self.assertGreater(len(list(cluster.stream("/v1/completions", {"prompt": "The", "max_tokens": 20}))), 5)

            chat = [f"{BIN}/sluice", "chat", "--endpoint", f"https://{cluster.http}", "--ask", "What is 47 + 85?"]
            known = subprocess.run([*chat, "--ca", cluster.ca], capture_output=True, text=True, timeout=60)
            self.assertIn("132", known.stdout, known.stderr)
            unknown = subprocess.run(chat, capture_output=True, text=True, timeout=60)
            self.assertEqual(unknown.returncode, 1)
            self.assertIn("self-signed certificate", unknown.stderr)
            elsewhere = [part.replace("127.0.0.1", "127.0.0.2") for part in chat]  # not in the certificate
            self.assertEqual(subprocess.run([*elsewhere, "--ca", cluster.ca], capture_output=True,
                                            timeout=60).returncode, 1)

            old = pathlib.Path(cluster.ca).read_text()
            with tempfile.TemporaryDirectory() as folder:
                for name, path in make_certificate(folder).items():
                    shutil.copy(path, cluster.ca if name == "certificate" else cluster.ca.replace("cert", "key"))
            self.assertNotEqual(old, pathlib.Path(cluster.ca).read_text())

            def is_new():
                try:
                    return cluster.request("GET", "/health")[0] == 200
                except ssl.SSLError:
                    return False
            wait_for(is_new)

    def test_wrong_files_are_told_before_anything_starts(self):
        cluster = Cluster(BIN, prefill=0, decode=0, mixed=1, sections={
            "router": {"tls": {"certificate": "/nowhere/cert.pem", "key": "/nowhere/key.pem"}}})
        try:
            self.assertNotEqual(cluster.processes["router-1"].wait(timeout=20), 0)
            self.assertIn("router.tls.certificate: /nowhere/cert.pem: cannot be read", cluster.logs())
        finally:
            cluster.stop()


class WholeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(BIN, prefill=2, decode=2).__enter__()

    @classmethod
    def tearDownClass(cls):
        logs = cls.cluster.logs()
        codes = cls.cluster.stop()
        assert set(codes.values()) == {0}, f"{codes}\n{logs}"

    def test_models_are_listed(self):
        status, _, text = self.cluster.request("GET", "/v1/models")
        self.assertEqual(status, 200)
        model = json.loads(text)["data"][0]
        self.assertEqual(model["max_model_len"], 2048)
        self.assertEqual(model["object"], "model")

    def test_an_answer_with_reasoning(self):
        reply = self.cluster.post("/v1/chat/completions", QUESTION)
        message = reply["choices"][0]["message"]
        self.assertIn("132", message["content"])
        self.assertNotIn("think", message["content"])
        self.assertIn("carry", message["reasoning_content"])
        self.assertEqual(message["reasoning"], message["reasoning_content"])
        self.assertEqual(reply["choices"][0]["finish_reason"], "stop")
        usage = reply["usage"]
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"])

    def test_a_stream_adds_up_to_the_answer(self):
        whole = self.cluster.post("/v1/chat/completions", QUESTION)
        events = list(self.cluster.stream("/v1/chat/completions",
                                          {**QUESTION, "stream_options": {"include_usage": True}}))
        self.assertEqual(events[0]["choices"][0]["delta"]["role"], "assistant")
        deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
        self.assertEqual("".join(delta.get("content") or "" for delta in deltas),
                         whole["choices"][0]["message"]["content"])
        self.assertEqual("".join(delta.get("reasoning_content") or "" for delta in deltas),
                         whole["choices"][0]["message"]["reasoning_content"])
        self.assertEqual(events[-1]["choices"], [])
        self.assertEqual(events[-1]["usage"]["completion_tokens"], whole["usage"]["completion_tokens"])
        self.assertGreater(len(deltas), 20, "it was not streamed")

    def test_n_answers_and_their_seed(self):
        body = {"prompt": "The", "n": 3, "temperature": 1.2, "seed": 11, "max_tokens": 12}
        first = self.cluster.post("/v1/completions", body)
        self.assertEqual([choice["index"] for choice in first["choices"]], [0, 1, 2])
        texts = [choice["text"] for choice in first["choices"]]
        self.assertGreater(len(set(texts)), 1, "all answers are the same")
        again = self.cluster.post("/v1/completions", body)
        self.assertEqual(texts, [choice["text"] for choice in again["choices"]])
        self.assertEqual(first["usage"]["completion_tokens"], 36)

    def test_logprobs(self):
        choice = self.cluster.post("/v1/completions", {"prompt": "The", "max_tokens": 5, "logprobs": 3,
                                                       "temperature": 0})["choices"][0]
        logprobs = choice["logprobs"]
        self.assertEqual(len(logprobs["tokens"]), 5)
        self.assertEqual("".join(logprobs["tokens"]), choice["text"])
        for own, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"]):
            self.assertAlmostEqual(own, max(top.values()), places=5)

    def test_a_stop_string_is_not_shown(self):
        body = {**QUESTION, "stop": ["= 1", "carry"]}  # the second is in the reasoning alone: no stop
        choice = self.cluster.post("/v1/chat/completions", body)["choices"][0]
        self.assertEqual(choice["finish_reason"], "stop")
        self.assertEqual(choice["message"]["content"], "47 + 85 ")
        self.assertIn("carry", choice["message"]["reasoning_content"])

    def test_tokenize_and_back(self):
        tokens = self.cluster.post("/tokenize", {"prompt": "Sort: 3 1 2"})
        self.assertEqual(tokens["count"], len(tokens["tokens"]))
        back = self.cluster.post("/detokenize", {"tokens": tokens["tokens"]})
        self.assertTrue(back["prompt"].endswith("Sort: 3 1 2"), back)

    def test_errors_have_openais_shape(self):
        cases = [
            ({"messages": []}, 400, "messages"),
            ({**QUESTION, "temperature": -1}, 400, "temperature"),
            ({**QUESTION, "tools": [{"type": "function"}]}, 400, "tools"),
            ({**QUESTION, "model": "gpt-17"}, 404, "model"),
        ]
        for body, wanted, param in cases:
            status, _, text = self.cluster.request("POST", "/v1/chat/completions", body)
            self.assertEqual(status, wanted, text)
            error = json.loads(text)["error"]
            self.assertEqual(error["param"], param)
            self.assertIn(param, error["message"])
        status, _, text = self.cluster.request("POST", "/v1/completions", {"prompt": "7 " * 5000})
        self.assertEqual(status, 400)
        self.assertEqual(json.loads(text)["error"]["code"], "context_length_exceeded")
        status, _, text = self.cluster.request("POST", "/v1/completions", "{not json")
        self.assertEqual(status, 400)
        self.assertEqual(self.cluster.request("GET", "/nowhere")[0], 404)
        status, headers, _ = self.cluster.request("POST", "/v1/chat/completions",
                                                  {**QUESTION, "max_tokens": 1, "frobnicate": 3})
        self.assertEqual(status, 200)
        self.assertIn("frobnicate", headers["x-sluice-ignored-fields"])

    def test_many_at_once_get_what_each_alone_gets(self):
        questions = [f"What is {a} + {b}?" for a in range(11, 19) for b in range(31, 35)]
        answers = {}

        def ask(question):
            reply = self.cluster.post("/v1/chat/completions", {
                "messages": [{"role": "user", "content": question}], "temperature": 0})
            answers[question] = reply["choices"][0]["message"]["content"]

        threads = [threading.Thread(target=ask, args=[question]) for question in questions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(answers), len(questions))
        right = sum(str(eval(q[len("What is "):-1])) in answers[q] for q in questions)  # noqa: S307
        self.assertGreaterEqual(right, len(questions) - 1)

    def test_a_prompt_seen_before_comes_from_the_cache(self):
        body = {"prompt": "Here is a text that is long enough to fill pages. " * 12, "max_tokens": 1}
        self.cluster.post("/v1/completions", body)
        time.sleep(0.5)  # until the router has heard of it
        usage = self.cluster.post("/v1/completions", body)["usage"]
        self.assertGreaterEqual(usage["prompt_tokens_details"]["cached_tokens"], 64)


class LogTest(unittest.TestCase):
    def test_with_json_logs_all_of_stderr_is_json(self):
        """A whole life of a cluster under `sluice up`: start, a request, drain."""
        def no_key_twice(pairs):
            self.assertEqual(len({key for key, _ in pairs}), len(pairs), pairs)
            return dict(pairs)

        free = "127.0.0.1:0"
        instances = {"count": 1, "threads": 1, "kv_pages": 64, "admin": free, "metrics": free}
        config = {"model": {"dir": str(pathlib.Path(clusters.MODEL).resolve())},
                  "router": {"http": free, "grpc": free, "attach": free, "admin": free},
                  "prefill": instances, "decode": instances, "balancer": {"grpc": free, "metrics": free},
                  "logging": {"format": "json", "level": "debug"}, "timeouts": {"drain": "5s"}}
        client = ("import json, os, urllib.request as u\n"
                  "body = json.dumps({'prompt': 'The', 'max_tokens': 4}).encode()\n"
                  "u.urlopen(u.Request(os.environ['SLUICE_ENDPOINT'] + '/v1/completions', body,\n"
                  "                    {'Content-Type': 'application/json'}), timeout=60).read()\n")
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "cluster.yaml"
            path.write_text(json.dumps(config))
            run = subprocess.run([f"{BIN}/sluice", "up", "-c", path, "--", sys.executable, "-c", client],
                                 stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        self.assertEqual(run.returncode, 0, run.stderr)
        lines = [json.loads(line, object_pairs_hook=no_key_twice) for line in run.stderr.splitlines()]
        self.assertEqual({line["process"] for line in lines},
                         {"sluice-up", "sluice-router", "sluice-prefill", "sluice-decode", "sluice-balancer"})
        weights = [line for line in lines if line["msg"] == "loading weights"]
        self.assertEqual({line["instance"] for line in weights if line["percent"] == 100}, {"prefill-1", "decode-1"})
        self.assertEqual([line for line in lines if line["msg"] == "printed"], [])


class ExitStatusTest(unittest.TestCase):
    """Of routers and balancers; services/instance/program_test.py has those of the others."""

    def status_of(self, program, config, *more):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "cluster.yaml"
            path.write_text(json.dumps(config))
            run = subprocess.run([f"{BIN}/sluice-{program}", "--config", path, *more], stdin=subprocess.DEVNULL,
                                 capture_output=True, text=True, timeout=60)
        self.assertNotEqual(run.stderr, "")
        return run.returncode

    def test_the_status_says_what_is_wrong(self):
        free = "127.0.0.1:0"
        good = {"model": {"dir": str(pathlib.Path(clusters.MODEL).resolve())}, "mixed": {"count": 1},
                "router": {"http": free, "grpc": free, "attach": free, "admin": free},
                "balancer": {"grpc": free, "metrics": free}}
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            taken = f"127.0.0.1:{other.getsockname()[1]}"
            for program, port in (("router", "http"), ("router", "attach"), ("balancer", "grpc")):
                with self.subTest(program=program, port=port):
                    self.assertEqual(self.status_of(program, good | {program: good[program] | {port: taken}}), 3)
        for program in ("router", "balancer"):
            with self.subTest(program):
                self.assertEqual(self.status_of(program, good | {"moddel": {}}), 2)
                self.assertEqual(self.status_of(program, good, "--instance", "mixed-1"), 2)
                self.assertEqual(self.status_of(program, good, "--nonsense"), 2)
        self.assertEqual(self.status_of("router", good | {"model": {"dir": "/nowhere"}}), 4)


class EvalTest(unittest.TestCase):
    def test_64_problems_at_once(self):
        # All of them where that is quick.
        limit = "28" if clusters.DEVICE == "cpu" else "0"
        instances = {"slots": 64, "kv_pages": 2048}
        with Cluster(BIN, prefill=1, decode=1, sections={"prefill": instances, "decode": instances}) as cluster:
            done = subprocess.run(
                [pathlib.Path(BIN) / "sluice", "eval", "--endpoint", f"http://{cluster.http}", "--data", PROBLEMS,
                 "--batch", "64", "--limit", limit, "--json"], capture_output=True, text=True, timeout=240)
            self.assertEqual(done.returncode, 0, done.stderr)
            report = json.loads(done.stdout)
            print(report["right"], "of", report["total"], "right;", done.stderr.splitlines()[-1], file=sys.stderr)
            self.assertGreaterEqual(report["accuracy"], 0.9)


class HurtTest(unittest.TestCase):
    def test_a_killed_decode_does_not_end_the_stream(self):
        with Cluster(BIN, prefill=1, decode=2) as cluster:
            wanted = cluster.post("/v1/completions", LONG)["choices"][0]["text"]
            events = []
            longest, last = 0.0, time.monotonic()
            # One of the two is decoding at first; whoever it is then dies with one of the kills.
            victims = {100: "decode-1", 500: "decode-2"}
            for event in cluster.stream("/v1/completions", LONG):
                events.append(event)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
                if victim := victims.pop(len(events), None):
                    cluster.kill(victim)
                    cluster.start(victim)
            self.assertEqual(victims, {}, "the stream was shorter than expected")
            self.assertEqual(text_of(events), wanted)
            self.assertLess(longest, 5.0)
            self.assertGreaterEqual(cluster.metric("sluice_router_migrations_total") or 0, 1)

    def test_a_stopped_decode_counts_as_dead(self):
        with Cluster(BIN, prefill=1, decode=2) as cluster:
            wanted = cluster.post("/v1/completions", LONG)["choices"][0]["text"]
            # Metrics are a little late, so it may be the other one that is stopped: then again.
            for _ in range(5):
                events = []
                for event in cluster.stream("/v1/completions", LONG):
                    events.append(event)
                    if len(events) == 100:
                        victim = who_decodes(cluster)
                        cluster.signal(victim, signal.SIGSTOP)
                self.assertEqual(text_of(events), wanted)
                cluster.signal(victim, signal.SIGCONT)
                time.sleep(2)
                if "reason=dead requests=1" in cluster.logs():
                    break
            self.assertIn(f"worker failed worker={victim} reason=dead requests=1", cluster.logs())

    def test_a_killed_prefill_does_not_lose_prompts(self):
        # A busy machine may take long for so many prompts.
        with Cluster(BIN, prefill=2, decode=1, sections={"router": {"queue_timeout": "5m"}}) as cluster:
            bodies = [{"prompt": f"{i} " + "some words to be read first " * 150, "max_tokens": 4, "temperature": 0}
                      for i in range(16)]
            wanted = [cluster.post("/v1/completions", body)["choices"][0]["text"] for body in bodies]
            answers = [None] * len(bodies)

            def ask(i, salt):
                answers[i] = cluster.post("/v1/completions", {**bodies[i], "cache_salt": salt})["choices"][0]["text"]

            for name, end in (("prefill-1", cluster.kill), ("prefill-2", cluster.terminate)):
                threads = [threading.Thread(target=ask, args=[i, name]) for i in range(len(bodies))]
                for thread in threads:
                    thread.start()
                wait_for(lambda: cluster.metric("sluice_prefill_running_requests", name) > 0)
                end(name)
                for thread in threads:
                    thread.join()
                self.assertEqual(answers, wanted)
                cluster.start(name)
                wait_for(lambda: cluster.metric("sluice_router_endpoints", state="ready") == 3)

    def test_pages_come_back_when_clients_go(self):
        with Cluster(BIN, prefill=1, decode=1) as cluster:
            for _ in range(3):
                stream = cluster.stream("/v1/completions", LONG)
                for _ in range(300):
                    next(stream)
                wait_for(lambda: cluster.metric("sluice_kv_pages_used", "decode-1") >= 3)
                stream.close()
                wait_for(lambda: cluster.metric("sluice_router_requests_active") == 0)
                for instance in ("prefill-1", "decode-1"):
                    wait_for(lambda: cluster.metric("sluice_kv_pages_used", instance) == 0)
                    self.assertEqual(cluster.metric("sluice_kv_pages_quarantined", instance), 0)

    def test_a_deadline_ends_a_request(self):
        with Cluster(BIN, sections={"router": {"request_timeout": "300ms"}}) as cluster:
            status, _, text = cluster.request("POST", "/v1/completions", LONG)
            self.assertEqual(status, 504, text)
            self.assertEqual(json.loads(text)["error"]["type"], "timeout_error")

    def test_overload_is_refused_with_a_hint(self):
        sections = {"router": {"active_requests_max": 2, "queued_requests_max": 2}}
        with Cluster(BIN, sections=sections) as cluster:
            results = []

            def ask():
                status, headers, text = cluster.request("POST", "/v1/completions", LONG)
                results.append((status, headers.get("Retry-After"), text))

            threads = [threading.Thread(target=ask) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(len([r for r in results if r[0] == 200]), 4, results)
            for status, retry_after, text in results:
                if status != 200:
                    self.assertEqual(status, 429, text)
                    self.assertGreaterEqual(int(retry_after), 1)

    def test_without_a_decode_nothing_is_ready(self):
        with Cluster(BIN) as cluster:
            cluster.kill("decode-1")
            time.sleep(1.5)
            self.assertEqual(cluster.request("GET", "/health")[0], 503)
            self.assertEqual(cluster.request("GET", "/v1/models")[0], 503)

    def test_a_decode_that_drains_hands_its_requests_over(self):
        # Not even one step of grace: what runs has to go elsewhere.
        with Cluster(BIN, prefill=1, decode=2, sections={"timeouts": {"drain": "0s"}}) as cluster:
            wanted = cluster.post("/v1/completions", LONG)["choices"][0]["text"]
            events = []
            # More often than a request out of pages may be handed back; on a GPU all would be over
            # before an instance is back.
            ends = (100, 400, 700, 1000) if clusters.DEVICE == "cpu" else (100,)
            for event in cluster.stream("/v1/completions", LONG):
                events.append(event)
                if len(events) in ends:
                    name = who_decodes(cluster)
                    cluster.terminate(name)
                    cluster.start(name)
                    wait_for(lambda: cluster.metric("sluice_router_endpoints", state="ready") == 3)
            self.assertEqual(text_of(events), wanted)

    def test_a_router_that_drains_ends_its_streams_whole(self):
        with Cluster(BIN) as cluster:
            wanted = cluster.post("/v1/completions", LONG)["choices"][0]["text"]
            events = []
            for event in cluster.stream("/v1/completions", LONG):
                events.append(event)
                if len(events) == 50:
                    cluster.signal("router-1", signal.SIGTERM)
            self.assertEqual(text_of(events), wanted)
            self.assertEqual(cluster.processes["router-1"].wait(timeout=15), 0)

    def test_a_step_that_does_not_end_does_not_keep_a_process(self):
        # One prompt of 60,000 tokens in one step, by one thread: minutes.
        with tempfile.TemporaryDirectory() as model:
            make_long_model(model)
            sections = {"model": {"dir": model, "load_format": "dummy"}, "timeouts": {"drain": "1s"},
                        "router": {"request_timeout": "6s"}, "mixed": {"step_tokens": 65536, "kv_pages": 1024}}
            with Cluster(BIN, prefill=0, decode=0, mixed=1, sections=sections) as cluster:
                body = {"prompt": [7] * 60000, "max_tokens": 1}
                status = []
                client = threading.Thread(
                    target=lambda: status.append(cluster.request("POST", "/v1/completions", body)[0]))
                client.start()
                wait_for(lambda: cluster.metric("sluice_router_endpoints", state="wedged") == 1)
                cluster.signal("mixed-1", signal.SIGTERM)
                began = time.monotonic()
                self.assertEqual(cluster.processes["mixed-1"].wait(timeout=15), 1)
                self.assertLess(time.monotonic() - began, 6.0)
                self.assertIn("something hangs", cluster.logs())
                client.join()
                self.assertEqual(status, [504])
                cluster.killed.add("mixed-1")

    def test_kv_that_does_not_come_in_time_is_a_failed_attempt(self):
        with tempfile.TemporaryDirectory() as model:
            make_long_model(model)
            sections = {"model": {"dir": model, "load_format": "dummy"}, "timeouts": {"kv": "1s", "drain": "0s"},
                        "prefill": {"kv_pages": 1024}, "decode": {"kv_pages": 1024}}
            with Cluster(BIN, sections=sections) as cluster:
                # Half a minute of computing, in small steps.
                status, _, text = cluster.request("POST", "/v1/completions", {"prompt": [7] * 30000, "max_tokens": 2})
                self.assertEqual(status, 503, text)
                self.assertIn("kv_failed", text)

    def test_a_mixed_instance_is_a_cluster(self):
        with Cluster(BIN, prefill=0, decode=0, mixed=1) as cluster:
            reply = cluster.post("/v1/chat/completions", QUESTION)
            self.assertIn("132", reply["choices"][0]["message"]["content"])
            # What it answered comes from its cache in the next turn, but for nobody else.
            body = {"prompt": "The", "max_tokens": 200, "temperature": 0, "ignore_eos": True, "cache_salt": "turns"}
            answer = cluster.post("/v1/completions", {**body, "return_token_ids": True})["choices"][0]
            # Tokens, not text: text may be cut into other tokens.
            prompt = cluster.post("/tokenize", {"prompt": "The"})["tokens"] + answer["token_ids"]
            for salt, least, most in (("turns", 64, 192), ("somebody else", 0, 0)):
                again = cluster.post("/v1/completions", {**body, "prompt": prompt, "max_tokens": 1, "cache_salt": salt})
                cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
                self.assertTrue(least <= cached <= most, f"{salt}: {cached}")


if __name__ == "__main__":
    BIN = sys.argv.pop(1)
    while sys.argv[1:2] and sys.argv[1] in ("--device", "--numerics", "--model"):
        setattr(clusters, sys.argv[1][2:].upper(), sys.argv[2])
        del sys.argv[1:3]
    unittest.main(verbosity=2)
