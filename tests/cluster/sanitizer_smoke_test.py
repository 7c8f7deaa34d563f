"""The smallest cluster that can lose a decode, with programs that sanitizers watch: a few requests, kills in the
middle of a stream, and a drain. Sanitizers end a program that they find something in.

usage: sanitizer_smoke_test.py BIN_DIR     (from the root of the sources; ctest does that)
"""

import os
import pathlib
import sys
import tempfile
import unittest

from cluster import Cluster

BIN = ""


class SanitizerSmokeTest(unittest.TestCase):
    def setUp(self):
        reports = tempfile.TemporaryDirectory(prefix="sluice-reports-")
        self.addCleanup(reports.cleanup)
        for name in ("ASAN_OPTIONS", "LSAN_OPTIONS", "UBSAN_OPTIONS"):
            os.environ[name] = f"log_path={reports.name}/report"
        self.addCleanup(self.show, pathlib.Path(reports.name))

    @staticmethod
    def show(reports):
        for report in sorted(reports.iterdir()):
            print(report.read_text(errors="replace")[:8000])

    def test_answers_survives_a_kill_and_drains(self):
        with Cluster(BIN, prefill=1, decode=2) as cluster:
            chat = {"messages": [{"role": "user", "content": "What is 47 + 85?"}], "temperature": 0}
            reply = cluster.post("/v1/chat/completions", chat)
            self.assertIn("132", reply["choices"][0]["message"]["content"])
            body = {"prompt": "The", "n": 2, "seed": 1, "max_tokens": 8, "logprobs": 2, "stop": ["\n\n\n"]}
            self.assertEqual(len(cluster.post("/v1/completions", body)["choices"]), 2)
            self.assertEqual(cluster.request("POST", "/v1/completions", "{not json")[0], 400)
            self.assertEqual(cluster.post("/tokenize", {"prompt": "7 " * 2000})["max_model_len"], 2048)

            # One decode dies, and when it is back the other: one of them had the stream.
            body = {"prompt": "The", "temperature": 0, "max_tokens": 1500, "ignore_eos": True,
                    "stream_options": {"include_usage": True}}
            usage, steps = None, [self.kill_first, self.start_first, self.kill_second]
            for event in cluster.stream("/v1/completions", body, timeout=300):
                usage = event.get("usage") or usage
                if event["choices"] and steps and steps[0](cluster):
                    steps.pop(0)
            self.assertEqual(steps, [], "the stream ended too soon")
            self.assertEqual(usage["completion_tokens"], 1500)
            self.assertGreater(cluster.metric("sluice_router_attempts_failed_total"), 0)

    @staticmethod
    def kill_first(cluster):
        cluster.kill("decode-1")
        return True

    @staticmethod
    def start_first(cluster):
        if cluster.metric("sluice_router_endpoints", target_role="decode", state="ready") != 1:
            return False
        cluster.start("decode-1")
        return True

    @staticmethod
    def kill_second(cluster):
        if cluster.metric("sluice_router_endpoints", target_role="decode", state="ready") != 2:
            return False
        cluster.kill("decode-2")
        return True


if __name__ == "__main__":
    BIN = sys.argv.pop(1)
    unittest.main(verbosity=2)
