"""`metal-marlin serve` as a process of its own, and plain HTTP clients for it.

Knows no server internals: what these tests see is what a user sees.
"""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60  # far past any answer here; a test that waits this long has found a hang
_RUN = "import sys; from marlin.cli import main; sys.exit(main())"


class Served:
    """A running server; use it as a context manager.

    Args:
        arguments: of `metal-marlin serve`.
        environ: variables set for it; none of the caller's own METAL_MARLIN_* reaches it.
        port: None adds `--port 0`; a number means that arguments or environ say it.
        before_start: called in the new process before the server's program runs.
    """

    def __init__(self, *arguments, environ=None, port=None, before_start=None):
        own_port = ["--port", "0"] if port is None else []
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("METAL_MARLIN_")}
        self._log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", _RUN, "serve", *map(str, arguments), *own_port],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**inherited, **(environ or {})},
            preexec_fn=before_start,
        )
        self.announcement = self.process.stdout.readline()
        found = re.search(r" at http://(\S+):(\d+)$", self.announcement)
        if not found:
            self.process.wait(PATIENCE_S)
            raise AssertionError(f"{self.announcement}{self.log()}")
        self.host, self.port = found[1], int(found[2])
        self.base_url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        self.process.stdout.close()
        self._log.close()

    def log(self):
        """Standard error so far. Read at a place, not from where the file stands: it stands in the
        same place for the server's own writes."""
        file = self._log.fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")

    def stop(self, signum=signal.SIGTERM):
        """Send a signal and wait; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)

    def open_socket(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def send(self, method, path, body=None, headers=None):
        """One request on a connection of its own; returns (status, headers, body bytes)."""
        connection = self.connect()
        try:
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
            fields = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, body, {**fields, **(headers or {})})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def ask(self, method, path, body=None, headers=None):
        """As send(); returns (status, decoded JSON)."""
        status, _, content = self.send(method, path, body, headers)
        return status, json.loads(content)

    def post(self, path, body):
        """A generation request that has to succeed; returns its decoded answer."""
        status, answer = self.ask("POST", path, body)
        assert status == 200, answer
        return answer

    def events(self, path, body):
        """The server-sent events of a streamed request: decoded data, then "[DONE]" as it is."""
        status, headers, content = self.send("POST", path, {**body, "stream": True})
        assert status == 200, content
        assert headers["Content-Type"].startswith("text/event-stream")
        *blocks, rest = content.decode("utf-8").split("\n\n")
        assert rest == "" and all(block.startswith("data: ") for block in blocks)
        data = [block.removeprefix("data: ") for block in blocks]
        return [item if item == "[DONE]" else json.loads(item) for item in data]

    def metrics(self):
        return self.ask("GET", "/metrics", headers={"Accept": "application/json"})[1]

    def wait_for_active(self, number):
        """Poll until /metrics shows this many requests in hand."""
        end = time.monotonic() + PATIENCE_S
        while self.metrics()["requests_active"] != number:
            assert time.monotonic() < end, f"requests_active never became {number}"

    def wait_for_workers(self, number):
        """Poll until so many workers have said that they serve: one is enough to announce it."""
        end = time.monotonic() + PATIENCE_S
        while len(re.findall(r"worker \d+ \(process \d+\) serves", self.log())) < number:
            assert time.monotonic() < end, self.log()
            time.sleep(0.02)


def serve_mock(*arguments, environ=None, port=None, model="models/mock", before_start=None):
    """A Served on loopback with the mock model, under the last component of `model`."""
    variables = {"METAL_MARLIN_MOCK_MODEL": "1", "METAL_MARLIN_HOST": "127.0.0.1"}
    return Served(
        model,
        *arguments,
        environ={**variables, **(environ or {})},
        port=port,
        before_start=before_start,
    )
