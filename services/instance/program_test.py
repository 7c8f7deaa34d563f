"""sluice-prefill and sluice-decode as an operator meets them alone: exit status, SIGTERM, health of a process
whose routers are not there.

usage: program_test.py SLUICE_PREFILL SLUICE_DECODE     (from the root of the sources; ctest does that)
"""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

MODEL = pathlib.Path("deploy/models/sluice-tiny").resolve()
BIG_CONFIG = pathlib.Path("tests/bench/v2_lite_6_layers.json").resolve()
PREFILL = DECODE = ""
SOON_S = 60


def free_ports(count):
    """Ports that nobody has; all are held until all are known."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


class ProgramTest(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        self.admin, self.metrics, self.attach, self.balancer = free_ports(4)

    def write_cluster(self, model=f"{{dir: {MODEL}}}", role="decode"):
        path = pathlib.Path(self.dir.name) / "cluster.yaml"
        path.write_text(
            f"model: {model}\n"
            f"router: {{attach: 127.0.0.1:{self.attach}}}\n"
            f"{role}: {{count: 1, threads: 1, kv_memory: 16MiB, admin: 127.0.0.1:{self.admin},\n"
            f"         metrics: 127.0.0.1:{self.metrics}}}\n"
            f"balancer: {{grpc: 127.0.0.1:{self.balancer}}}\n"
            + ("prefill: {count: 1}\n" if role == "decode" else "decode: {count: 1}\n" if role == "prefill" else "")
        )
        return str(path)

    def start(self, *args, program=None):
        log = open(pathlib.Path(self.dir.name) / "log", "w+", encoding="utf-8")
        self.addCleanup(log.close)
        process = subprocess.Popen([program or DECODE, *args], stderr=log, stdout=subprocess.DEVNULL)

        def end():
            process.kill()
            process.wait()

        self.addCleanup(end)
        return process

    def log(self):
        return (pathlib.Path(self.dir.name) / "log").read_text(encoding="utf-8")

    def wait_for_log(self, text):
        until = time.monotonic() + SOON_S
        while text not in self.log():
            self.assertLess(time.monotonic(), until, self.log())
            time.sleep(0.02)

    def run_to_end(self, *args):
        return self.start(*args).wait(timeout=SOON_S)

    def test_usage_is_2(self):
        self.assertEqual(self.run_to_end(), 2)
        self.assertEqual(self.run_to_end("--config", "/nowhere.yaml", "--instance", "decode-1"), 2)
        self.assertEqual(self.run_to_end("--config", self.write_cluster(), "--instance", "prefill-1"), 2)
        self.assertIn("prefill-1", self.log())

    def test_a_port_that_only_sluice_up_would_choose_is_2(self):
        for name, key in (("attach", "router.attach"), ("balancer", "balancer.grpc")):
            with self.subTest(key):
                real = getattr(self, name)
                setattr(self, name, 0)
                self.assertEqual(self.run_to_end("--config", self.write_cluster(), "--instance", "decode-1"), 2)
                self.assertIn(f"{key}: is 127.0.0.1:0", self.log())
                setattr(self, name, real)

    def test_a_device_that_there_is_no_name_for_is_2(self):
        path = pathlib.Path(self.write_cluster())
        path.write_text(path.read_text().replace("threads: 1", "threads: 1, device: gpu"))
        self.assertEqual(self.run_to_end("--config", str(path), "--instance", "decode-1"), 2)
        self.assertIn("decode.device: is 'gpu', wanted cpu, cuda or cuda:N", self.log())

    def test_more_kv_memory_than_pages_have_numbers_is_2(self):
        path = pathlib.Path(self.write_cluster(role="mixed"))
        path.write_text(path.read_text().replace("16MiB", "64TiB"))
        self.assertEqual(self.run_to_end("--config", str(path), "--instance", "mixed-1"), 2)
        self.assertRegex(self.log(), r"kv_memory is 64\.0 TiB, allowed is \S+ .iB to \S+ .iB: 1 to 33554431 pages")

    def test_a_device_that_is_not_there_is_3(self):
        path = pathlib.Path(self.write_cluster(role="mixed"))
        path.write_text(path.read_text().replace("threads: 1", "threads: 1, device: cuda:99"))
        self.assertEqual(self.run_to_end("--config", str(path), "--instance", "mixed-1"), 3)

    def test_a_taken_port_is_3(self):
        with socket.socket() as other:
            other.bind(("127.0.0.1", self.admin))
            other.listen()
            self.assertEqual(self.run_to_end("--config", self.write_cluster(), "--instance", "decode-1"), 3)
        self.assertIn(str(self.admin), self.log())

    def test_a_model_that_is_not_there_is_4(self):
        config = self.write_cluster(model="{dir: nowhere}")
        self.assertEqual(self.run_to_end("--config", config, "--instance", "decode-1"), 4)
        self.assertIn("nowhere", self.log())

    def test_sigterm_while_loading_ends_at_once(self):
        model = pathlib.Path(self.dir.name) / "model"
        model.mkdir()
        (model / "config.json").write_bytes(BIG_CONFIG.read_bytes())
        # Hundreds of millions of generated weights: many seconds.
        config = self.write_cluster(model=f"{{dir: {model}, load_format: dummy}}")
        process = self.start("--config", config, "--instance", "decode-1")
        self.wait_for_log("loading")
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(timeout=SOON_S), 0)
        self.assertIn("stopped while loading", self.log())

    def test_each_role_runs_without_routers_and_drains(self):
        for role, program in (("prefill", PREFILL), ("decode", DECODE), ("mixed", DECODE)):
            with self.subTest(role):
                config = self.write_cluster(role=role)
                process = self.start("--config", config, "--instance", f"{role}-1", program=program)
                self.wait_for_log(" ready ")
                url = f"http://127.0.0.1:{self.metrics}/metrics"
                metrics = urllib.request.urlopen(url, timeout=SOON_S).read().decode()
                self.assertIn("vllm:num_requests_running", metrics)
                self.assertEqual("sluice_decode_slots_total" in metrics, role != "prefill")
                self.assertEqual("sluice_prefill_queue_requests" in metrics, role != "decode")
                process.send_signal(signal.SIGTERM)
                self.assertEqual(process.wait(timeout=SOON_S), 0)
                self.assertIn("stopped", self.log())


if __name__ == "__main__":
    PREFILL, DECODE = (os.path.abspath(path) for path in sys.argv[1:3])
    unittest.main(argv=sys.argv[:1])
