"""A server that something happens to: started by a shell that can take things away from it first,
and watched from outside as a service manager and its clients see it.

Knows no fault of its own; Linux alone, since processes are told apart by /proc.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import judge
from served import PATIENCE_S, ROOT

MODES = {
    "one": (),
    "batching": ("--enable-batching", "--speculative", "ngram"),
    "workers": ("--workers", "2"),
    "workers, batching": ("--workers", "2", "--enable-batching", "--speculative", "ngram"),
}
_RUN = "import sys; from marlin.__main__ import main; sys.exit(main())"
_POLL_S = 0.02


def until(condition, what, seconds=PATIENCE_S, log=lambda: ""):
    """Poll until condition() is true; returns its value. log: called when it never is."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"never happened: {what}: {log()}"
        time.sleep(_POLL_S)
    return value


class Victim:
    """`metal-marlin serve` on loopback, with whatever becomes of it.

    Args:
        model: path of the model.
        options: of `serve`, after the ones that every victim has.
        shell: what a shell does before it becomes the server: "ulimit -n 64".
        redirections: of standard descriptors, as a shell has them; otherwise standard error is a
            pipe that is read.
        environ: variables beside this process's own.
        program: what Python runs instead of the command line's main().
    """

    def __init__(
        self, model, options=(), *, shell=":", redirections="", environ=(), program=_RUN, cwd=ROOT
    ):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("METAL_MARLIN_")}
        self._log = []
        # By which all processes of this server are known, whoever their parent is.
        self._mark = f"VICTIM_PORT={self.port}"
        words = [sys.executable, "-c", program, "serve", os.fspath(model)]
        words += ["--host", "127.0.0.1", "--port", str(self.port), "--max-context", "512"]
        words += ["--timeout", str(judge.TIMEOUT_S)]
        words += ["--threads", "1"]  # several of these servers share a few cores with clients
        self.process = subprocess.Popen(
            ["sh", "-c", f'{shell}; exec "$@" {redirections}', "sh"] + [*words, *options],
            cwd=cwd,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # What a shell starts in its background ignores it, and so would all of these.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            env={
                "PYTHONPATH": str(ROOT),
                **inherited,
                "VICTIM_PORT": str(self.port),
                **dict(environ),
            },
        )

        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def _read_log(self):
        for line in self.process.stderr:
            self._log.append(line)

    def close(self):
        """Leave nothing behind, however far it came."""
        for pid in self.pids():
            for signum in (signal.SIGKILL, signal.SIGCONT):
                self.signal(signum, pid)
        self.process.wait()
        self._reader.join(PATIENCE_S)
        self.process.stderr.close()

    def log(self):
        """Standard error so far."""
        if self.process.poll() is not None:
            self._reader.join(1.0)  # another process may have it still
        return "".join(self._log)

    def pids(self):
        """Process ids of all of its processes that live."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    variables = (folder / "environ").read_bytes().split(b"\0")
                    state = (folder / "stat").read_text(errors="replace").rpartition(")")[2]
                except OSError:  # it has ended, or is somebody else's
                    continue
                if self._mark.encode() in variables and state.split()[0] not in "ZX":
                    found.append(int(folder.name))
        return sorted(found)

    def workers(self):
        """Process ids of the workers of a supervisor."""
        return [pid for pid in self.pids() if pid != self.process.pid]

    def signal(self, signum, pid=None):
        """To one of its processes, the first one unless told, or none when that has ended."""
        try:
            os.kill(self.process.pid if pid is None else pid, signum)
        except ProcessLookupError:
            pass

    def health(self):
        """The status of /health, or 0 without an answer."""
        try:
            url = f"http://127.0.0.1:{self.port}/health"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def metrics(self):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/metrics", headers={"Accept": "application/json"}
        )

        def answer():
            try:
                with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                assert error.code == 503, error
                return None

        return until(answer, "metrics are told", log=self.log)

    def wait_until_well(self):
        """It serves; an assertion error with its log when it ends instead."""

        def is_well():
            assert self.process.poll() is None, f"{self.process.returncode}: {self.log()}"
            return self.health() == 200

        until(is_well, "it serves")

    def wait_for_end(self, seconds):
        """Its exit code, once no process of it is left and others may have its port."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it still ran after {seconds} s: {self.log()}") from None
        until(lambda: not self.pids(), "all of its processes end", seconds, self.log)
        until(self._port_is_free, "its port is free", seconds, self.log)
        return code

    def _port_is_free(self):
        try:
            socket.create_server(("127.0.0.1", self.port)).close()
        except OSError:
            return False
        return True


class Load:
    """Clients that ask without a pause, from entering a `with` block until its end, and until
    nobody listens any more.

    Attributes:
        outcomes: all judge.Outcomes, complete after the block.
    """

    def __init__(self, victim, reference, numbers, num_clients):
        self.outcomes = []
        self._victim = victim
        self._reference = reference
        self._numbers = list(numbers)
        self._begun = threading.Semaphore(0)
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(index,), daemon=True)
            for index in range(num_clients)
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        for _ in self._threads:  # streams are under way: what comes now, comes in the middle
            assert self._begun.acquire(timeout=PATIENCE_S), self._victim.log()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join(2 * judge.ANSWER_S)
            assert not thread.is_alive(), "a client got no answer, no refusal and no end"

    def _ask(self, first):
        """From number to number, each client beginning at another."""
        step = 0
        while not self._over.is_set():
            number = self._numbers[(first * 5 + step) % len(self._numbers)]
            step += 1
            outcome = judge.ask(self._victim.port, number, self._reference, self._begun.release)
            self.outcomes.append(outcome)
            if outcome.kind == judge.REFUSED:
                if self._victim.process.poll() is not None:
                    return
                self._over.wait(min(outcome.retry_after or 0.05, 1.0))


class Tally(Counter):
    """A row of the table, and what is worth telling of it.

    Attributes:
        notes: a line for whatever was refused, lost, wrong or silent.
    """

    def __init__(self):
        super().__init__()
        self.notes = Counter()

    def count(self, outcomes):
        for outcome in outcomes:
            self[outcome.kind] += 1
            if outcome.kind != judge.RIGHT:
                self.notes[f"{outcome.kind}: {outcome.note}"] += 1

    def silent(self, what):
        """Something failed, and nothing said so."""
        self["silent"] += 1
        self.notes[f"silent: {what}"] += 1
