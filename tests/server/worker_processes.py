"""A server of several worker processes, and what a test wants to see of it."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from clients import CLIENT_TIMEOUT_S, RawClient, chat_body, request_bytes

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
# A gentle poll of what has no event to wait for: other processes' lives.
_POLL_S = 0.02
# Processes start one after another, and with them everything else on the machine.
PATIENCE_S = 60


def until(condition, what):
    """Poll until condition() is true; returns its value."""
    end = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(_POLL_S)
    return value


def running(pid):
    """Whether a process is there and not only waits to be reaped."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


class Stream:
    """A streamed chat answer of the gated script; its text begins with the worker's process id."""

    def __init__(self, client, model):
        self.client = client
        body = chat_body(model=model, stream=True)
        client.send(request_bytes("POST", "/v1/chat/completions", body))
        client.read_stream_head()
        self._chunks = client.chunks()
        self._data = b""
        while not (match := re.match(r"(\d+) ", self.text())):
            self._data += next(self._chunks)
        self.pid = int(match[1])

    def events(self):
        """What came so far, as texts."""
        return [part[6:] for part in self._data.decode().split("\n\n")[:-1]]

    def text(self):
        chunks = [json.loads(event) for event in self.events() if event != "[DONE]"]
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks if "choices" in chunk]
        return "".join(delta.get("content", "") for delta in deltas)

    def finish(self):
        """Read the rest; returns the text after the process id."""
        self._data += b"".join(self._chunks)
        return self.text().partition(" ")[2]


class Workers:
    """The supervisor's process.

    Args:
        gate: path of the file that scripts wait for.
        program: what Python runs, before `arguments`.
        announces: whether it is going to serve; else nothing is waited for.
        port: to listen on; 0 for any, which only the announcement tells.

    Attributes:
        log: lines of standard error so far.
    """

    def __init__(
        self,
        gate,
        *arguments,
        port=0,
        program=(str(HERE / "serve_workers.py"),),
        announces=True,
        **environ,
    ):
        self.gate = gate
        self.popen = subprocess.Popen(
            [sys.executable, *program, *arguments, "--port", str(port), "--host", "127.0.0.1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": f"{ROOT}:{HERE}",
                "GATE": str(gate),
                **environ,
            },
        )
        self.log = []
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        self.announcement = self.popen.stdout.readline() if announces else ""
        match = re.search(r":(\d+)$", self.announcement)
        self.port = int(match[1]) if match else port

    def _read_log(self):
        for line in self.popen.stderr:
            self.log.append(line)

    def logged(self, pattern):
        """All matches in the log."""
        return re.findall(pattern, "".join(self.log))

    def pids(self):
        """Process ids of all workers that ever served, in order."""
        return [int(pid) for pid in self.logged(r"worker \d+ \(process (\d+)\) serves")]

    def wait_for_workers(self, count):
        """Wait until so many workers have begun to serve since the start; returns their ids."""
        return until(lambda: len(pids := self.pids()) >= count and pids, f"{count} workers")

    def connect(self):
        address = ("127.0.0.1", self.port)
        return RawClient(socket.create_connection(address, timeout=CLIENT_TIMEOUT_S))

    def ask(self, path, *headers):
        with self.connect() as client:
            return client.ask("GET", path, headers=headers)

    def streams(self, stack, model="gated"):
        """Two streams of two different workers."""
        first = Stream(stack.enter_context(self.connect()), model)

        def of_another_worker():
            stream = Stream(stack.enter_context(self.connect()), model)
            return stream.pid != first.pid and stream

        return first, until(of_another_worker, "a stream of another worker")

    def open_gate(self):
        self.gate.touch()

    def wait(self):
        """Returns the exit code."""
        code = self.popen.wait(timeout=CLIENT_TIMEOUT_S)
        self._reader.join(CLIENT_TIMEOUT_S)
        return code

    def close(self):
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        self._reader.join(CLIENT_TIMEOUT_S)
        self.popen.stdout.close()
        self.popen.stderr.close()
