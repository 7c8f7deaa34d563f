"""A cluster of real processes on this machine, for tests: started, asked, hurt, stopped.

Processes are started one by one, not by `sluice up`, so that a test decides who dies and who comes
back. Ports are free ones, so clusters do not meet.
"""

import http.client
import json
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request

MODEL = "deploy/models/sluice-tiny"
DEVICE = "cpu"  # of every instance
NUMERICS = "exact"


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def make_certificate(folder):
    """A certificate for this machine that signs itself: the cluster file's keys of it."""
    files = {"certificate": os.path.join(folder, "cert.pem"), "key": os.path.join(folder, "key.pem")}
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                    "-nodes", "-days", "1", "-subj", "/CN=localhost", "-addext",
                    "subjectAltName=IP:127.0.0.1,DNS:localhost", "-out", files["certificate"],
                    "-keyout", files["key"]], check=True, capture_output=True)
    return files


class Cluster:
    """prefill, decode, mixed: how many. `sections` overrides keys: {"router": {"queued_requests_max": 1}}."""

    def __init__(self, bin_dir, prefill=1, decode=1, mixed=0, sections=None, tls=False):
        self.bin = pathlib.Path(bin_dir)
        self.folder = tempfile.TemporaryDirectory(prefix="sluice-cluster-")
        ports = iter(free_ports(64))
        address = lambda: f"127.0.0.1:{next(ports)}"
        # The n-th instance of a role adds n to its ports: give every role room of its own.
        # Below those that the system gives to others.
        base = 20000 + os.getpid() % 600 * 20
        self.metrics = {}
        config = {
            "model": {"dir": os.path.abspath(MODEL), "numerics": NUMERICS},
            "router": {"http": address(), "grpc": address(), "attach": address(), "admin": address()},
            "balancer": {"grpc": address(), "metrics": address()},
            "logging": {"level": "info", "format": "text"},
            "timeouts": {"drain": "5s"},
        }
        for number, (role, count) in enumerate((("prefill", prefill), ("decode", decode), ("mixed", mixed))):
            if count > 0:
                self.metrics |= {f"{role}-{i + 1}": f"127.0.0.1:{base + 6 * number + 3 + i}" for i in range(count)}
                config[role] = {"count": count, "device": DEVICE, "threads": 1, "kv_pages": 256,
                                "admin": f"127.0.0.1:{base + 6 * number}",
                                "metrics": f"127.0.0.1:{base + 6 * number + 3}"}
        for section, keys in (sections or {}).items():
            config.setdefault(section, {}).update(keys)
        self.http = config["router"]["http"]
        self.ca = None  # of plain HTTP
        if tls:
            config["router"]["tls"] = make_certificate(self.folder.name)
            self.ca = config["router"]["tls"]["certificate"]
        self.config = os.path.join(self.folder.name, "cluster.yaml")
        with open(self.config, "w", encoding="utf-8") as file:
            json.dump(config, file)  # JSON is YAML
        self.processes = {}
        self.killed = set()  # and not started again: their exit status says nothing
        names = ["router-1"] + [f"{role}-{i + 1}" for role, count in
                                (("prefill", prefill), ("decode", decode), ("mixed", mixed))
                                for i in range(count)]
        for name in names:
            self.start(name)

    def start(self, name):
        self.killed.discard(name)
        role = name.rsplit("-", 1)[0]
        program = self.bin / ("sluice-decode" if role == "mixed" else f"sluice-{role}")
        log = open(os.path.join(self.folder.name, name + ".log"), "ab")
        self.processes[name] = subprocess.Popen(
            [program, "--config", self.config, "--instance", name],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()

    def __enter__(self):
        self.wait_ready()
        return self

    def __exit__(self, kind, *_):
        logs = self.logs()
        codes = self.stop()
        bad = {name: code for name, code in codes.items() if code != 0}
        if kind is not None or bad:
            print(logs)
        assert kind is not None or not bad, f"did not end well: {bad}"

    def stop(self):
        """SIGTERM to all; returns exit codes by name."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        codes = {}
        for name, process in self.processes.items():
            if name in self.killed:
                continue
            try:
                codes[name] = process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                codes[name] = "did not end"
        self.folder.cleanup()
        return codes

    def signal(self, name, number):
        self.processes[name].send_signal(number)

    def kill(self, name):
        self.killed.add(name)
        self.signal(name, signal.SIGKILL)
        self.processes[name].wait()

    def terminate(self, name):
        """SIGTERM, and a good end."""
        self.signal(name, signal.SIGTERM)
        code = self.processes[name].wait(timeout=20)
        assert code == 0, f"{name} ended with {code}"

    def logs(self):
        text = ""
        for name in self.processes:
            with open(os.path.join(self.folder.name, name + ".log"), encoding="utf-8") as file:
                text += f"--- {name}\n" + "".join(file.readlines()[-30:])
        return text

    # --- Asking ---

    def connect(self, timeout):
        if self.ca is None:
            return http.client.HTTPConnection(self.http, timeout=timeout)
        context = ssl.create_default_context(cafile=self.ca)
        return http.client.HTTPSConnection(self.http, timeout=timeout, context=context)

    def request(self, method, path, body=None, headers=None, timeout=60):
        """(status, headers, body)"""
        connection = self.connect(timeout)
        try:
            payload = None if body is None else body if isinstance(body, (bytes, str)) else json.dumps(body)
            connection.request(method, path, payload, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return response.status, response.headers, response.read().decode()
        finally:
            connection.close()

    def post(self, path, body, **options):
        status, _, text = self.request("POST", path, body, **options)
        assert status == 200, f"{status}: {text}"
        return json.loads(text)

    def stream(self, path, body, timeout=60):
        """Yields the events of an SSE stream, as objects, until [DONE]."""
        connection = self.connect(timeout)
        try:
            connection.request("POST", path, json.dumps({**body, "stream": True}),
                               {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.status == 200, f"{response.status}: {response.read().decode()}"
            for line in response:
                line = line.decode().rstrip("\r\n")
                if not line:
                    continue
                assert line.startswith("data: "), line
                if line == "data: [DONE]":
                    return
                yield json.loads(line[len("data: "):])
            raise AssertionError("the stream ended without [DONE]")
        finally:
            connection.close()

    def wait_ready(self, instances=None, timeout=60):
        deadline = time.monotonic() + timeout
        while True:
            for name, process in self.processes.items():
                assert process.poll() is None or instances is not None, f"{name} ended\n{self.logs()}"
            try:
                if self.request("GET", "/health", timeout=2)[0] == 200:
                    return
            except OSError:
                pass
            assert time.monotonic() < deadline, "not ready\n" + self.logs()
            time.sleep(0.05)

    def metric(self, name, instance=None, **labels):
        """The sum over the samples of a metric that have these labels; of the router or of an instance."""
        if instance is None:
            text = self.request("GET", "/metrics")[2]
        else:
            with urllib.request.urlopen(f"http://{self.metrics[instance]}/metrics", timeout=10) as response:
                text = response.read().decode()
        total, found = 0.0, False
        for line in text.splitlines():
            if not line.startswith(name):
                continue
            series, value = line.rsplit(" ", 1)
            if series.split("{")[0] == name and all(f'{k}="{v}"' in series for k, v in labels.items()):
                total, found = total + float(value), True
        return total if found else None
