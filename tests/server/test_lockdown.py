"""A serving process can reach nobody, start nothing and load no foreign code: each way is tried
in a real one."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest
from attempts import ATTEMPTS
from clients import CLIENT_TIMEOUT_S, RawClient
from worker_processes import HERE, ROOT, Workers, until

PROGRAM = (str(HERE / "serve_attempts.py"),)
COMMAND = ("-c", "import sys; from marlin.cli import main; sys.exit(main())", "serve")


@pytest.fixture(scope="module", params=["1", "2"], ids=["one process", "workers"])
def served(request, tmp_path_factory):
    gate = tmp_path_factory.mktemp("gate") / "gate"
    workers = Workers(gate, "attempts", "--workers", request.param, program=PROGRAM)
    yield workers
    workers.close()


def complete(served, prompt):
    with served.connect() as client:
        body = {"model": "attempts", "prompt": prompt, "max_tokens": 1}
        return client.ask("POST", "/v1/completions", body)


@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_serving_process_refuses_logs_it_and_serves_on(served, name):
    event = ATTEMPTS[name][0]
    before = len(served.logged(f"refused: {event} "))
    answer = complete(served, name)
    # The client learns nothing of it.
    assert (answer.status, answer.error["message"]) == (500, "internal error")
    until(lambda: len(served.logged(f"refused: {event} ")) == before + 1, "a line in the log")
    assert complete(served, "Hello").status == 200


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=CLIENT_TIMEOUT_S,
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{HERE}"},
    )


def test_importing_the_package_refuses_nothing():
    done = run(
        "import marlin.cli\n"
        "from marlin.server.process import lockdown, serve, supervisor, worker\n"
        "from attempts import ATTEMPTS\n"
        "names = [name for name in ATTEMPTS if name != 'another program']\n"
        "for name in names:\n"
        "    try:\n"
        "        ATTEMPTS[name][1]()\n"
        "    except OSError:\n"
        "        pass\n"
        "print(len(names))"
    )
    assert (done.stdout.split()[-1:], done.stderr) == ([str(len(ATTEMPTS) - 1)], "")


def test_a_supervisor_starts_its_own_program_and_nothing_else():
    done = run(
        "import os, subprocess, sys\n"
        "from marlin.errors import LockdownError\n"
        "from marlin.server.process.lockdown import lock_down\n"
        "lock_down((), program=sys.executable)\n"
        "subprocess.run([sys.executable, '-c', 'print(1, flush=True)'], check=True)\n"
        "for act in (lambda: subprocess.run(['true']), os.fork):\n"
        "    try:\n"
        "        act()\n"
        "    except LockdownError:\n"
        "        print(2, flush=True)"
    )
    assert done.stdout.split() == ["1", "2", "2"], done.stderr


def test_a_serving_process_has_not_imported_what_starts_processes_unheard_and_never_does():
    done = run(
        "import sys\n"
        "import marlin.engine.load, marlin.server.process.worker\n"
        "assert '_posixsubprocess' not in sys.modules\n"
        "from marlin.errors import LockdownError\n"
        "from marlin.server.process.lockdown import lock_down\n"
        "lock_down(())\n"
        "import multiprocessing\n"
        "for method in ('spawn', 'forkserver', 'fork'):\n"
        "    try:\n"
        "        multiprocessing.get_context(method).Process(target=print).start()\n"
        "    except LockdownError:\n"
        "        print(method)"
    )
    assert done.stdout.split() == ["spawn", "forkserver", "fork"], done.stderr


@pytest.fixture
def strace():
    path = shutil.which("strace")
    if path is None:
        pytest.skip("no strace on PATH, which sees what a process asks of the system")
    probe = subprocess.run([path, "-o", os.devnull, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"strace may not trace here: {probe.stderr.strip()}")
    return path


def test_no_system_call_of_a_server_connects_or_starts_a_program(strace, tmp_path):
    log = tmp_path / "strace"
    server = subprocess.Popen(
        [strace, "-f", "-o", log, "-e", "trace=connect,execve,listen", sys.executable, *COMMAND]
        + ["some/model", "--host", "localhost", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOME": str(tmp_path),  # without it Python asks the name service for it
            "METAL_MARLIN_MOCK_MODEL": "1",
        },
    )
    with server:
        try:
            port = int(re.search(r":(\d+)$", server.stdout.readline())[1])
            address = ("127.0.0.1", port)
            with RawClient(socket.create_connection(address, CLIENT_TIMEOUT_S)) as client:
                body = {"model": "model", "prompt": "Hello", "max_tokens": 3}
                assert client.ask("POST", "/v1/completions", body).status == 200
                streamed = body | {"stream": True}
                assert client.ask("POST", "/v1/completions", streamed).status == 200
                assert client.ask("GET", "/metrics").status == 200
        finally:
            pid = int(log.read_text().split()[0])
            os.kill(pid, signal.SIGTERM)
        assert server.wait(CLIENT_TIMEOUT_S) == 0
    calls = re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE)
    assert calls.count("listen") == 1  # it does see them
    assert calls.count("execve") == 1  # of Python itself
    assert "connect" not in calls
