"""A server whose standard descriptors are closed, full or unread: it serves all the same."""

import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from served import PATIENCE_S, ROOT

JSON = {"Content-Type": "application/json"}
RUN = "import sys; from marlin.cli import main; sys.exit(main())"


@contextmanager
def served(redirections, *options, model="models/mock", environ=()):
    """A mock server started by a shell with these redirections; yields (process, port)."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-c", RUN, "serve", model, "--port", str(port), *options]
    variables = {"METAL_MARLIN_MOCK_MODEL": "1", "METAL_MARLIN_HOST": "127.0.0.1"}
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *words],
        cwd=ROOT,
        env={**os.environ, **variables, **dict(environ)},
    )
    try:
        wait_until_well(process, port)
        yield process, port
    finally:
        process.kill()
        process.wait()


def wait_until_well(process, port):
    end = time.monotonic() + PATIENCE_S
    while True:
        assert process.poll() is None, f"ended with {process.returncode}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < end, "it never served"
            time.sleep(0.05)


def completion(port, model="mock"):
    body = json.dumps({"model": model, "prompt": "a", "max_tokens": 3}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body, JSON)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return json.load(answer)["choices"][0]["text"]


def stop(process):
    process.send_signal(signal.SIGTERM)
    return process.wait(PATIENCE_S)


def standard_files(pid):
    return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)]


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="descriptors are read from /proc")
@pytest.mark.parametrize("redirections", [">&- 2>&-", "<&-", "<&- >&- 2>&-", ">&-", "2>&-"])
@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["one", "workers"])
def test_no_file_of_the_server_gets_the_number_of_a_standard_descriptor(redirections, options):
    with served(redirections, *options) as (process, port):
        for pid in [process.pid, *children(process.pid)]:
            own = [name for name in standard_files(pid) if "memfd" in name or "socket" in name]
            assert own == [], pid
        marks = ("<&-", " >&-", "2>&-")
        closed = [fd for fd, mark in enumerate(marks) if mark in " " + redirections]
        names = standard_files(process.pid)
        assert [names[fd] for fd in closed] == ["/dev/null"] * len(closed)
        assert completion(port)
        assert stop(process) == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["one", "workers"])
@pytest.mark.parametrize("redirections", [">/dev/full", "2>/dev/full", ">/dev/full 2>/dev/full"])
def test_an_output_that_fails_does_not_end_a_server(redirections, options):
    with served(redirections, *options) as (process, port):
        assert completion(port)
        assert stop(process) == 0


def test_a_name_that_the_locale_has_no_letters_for_is_announced_with_escapes(tmp_path):
    out = tmp_path / "out"
    environ = {"PYTHONIOENCODING": "ascii"}
    with served(f">{out}", model="models/модель", environ=environ) as (process, port):
        end = time.monotonic() + PATIENCE_S
        while "\\u043c\\u043e" not in out.read_text("ascii"):
            assert time.monotonic() < end, out.read_text("ascii")
            time.sleep(0.02)  # it is said after the first answer
        assert completion(port, "модель")
        assert stop(process) == 0


@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["one", "workers"])
def test_a_log_that_nobody_reads_holds_no_request_and_no_stop_up(options, tmp_path):
    """Its pipe holds a page, some 40 lines; lines that are written at once may begin a page."""
    fifo = tmp_path / "log"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    room = fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    with served(f"2>{fifo}", *options) as (process, port):
        for _ in range(440):
            assert completion(port)
        threads = [len(os.listdir(f"/proc/{pid}/task")) for pid in children(process.pid)]
        threads.append(len(os.listdir(f"/proc/{process.pid}/task")))
        assert max(threads) < 40
        started = time.monotonic()
        assert stop(process) == 0
        assert time.monotonic() - started < 20
    assert len(os.read(reader, 1 << 20)) > room / 2
    os.close(reader)


@pytest.mark.parametrize(
    ("name", "environ"),
    [
        (b"models/m\xff", {}),
        (
            "models/модель".encode(),
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        ),
    ],
    ids=["not UTF-8", "not of the locale"],
)
@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["one", "workers"])
def test_a_name_that_no_request_could_say_is_refused_at_the_start(name, environ, options):
    variables = {"METAL_MARLIN_MOCK_MODEL": "1", "METAL_MARLIN_HOST": "127.0.0.1", **environ}
    done = subprocess.run(
        [sys.executable, "-c", RUN, "serve", name, "--port", "0", *options],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("metal-marlin: an argument is not UTF-8, or not of this locale's")


def limited(limit, value):
    """Runs before a program: it has no more than that of something."""
    return lambda: resource.setrlimit(limit, (value, value))


@pytest.mark.parametrize(
    ("megabytes", "said"),
    [
        (0, "File too large"),
        (20, "no room for 32 MiB of weights that workers share: File too large"),
    ],
)
def test_a_limit_of_file_sizes_is_a_sentence_at_the_start(demo_model_path, megabytes, said):
    done = subprocess.run(
        [sys.executable, "-c", RUN, "serve", str(demo_model_path), "--port", "0", "--workers", "2"],
        cwd=ROOT,
        env={**os.environ, "METAL_MARLIN_HOST": "127.0.0.1"},
        preexec_fn=limited(resource.RLIMIT_FSIZE, megabytes << 20),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [f"metal-marlin: {said}"]
