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
from attempts import ATTEMPTS, NATIVE, WRITES
from clients import CLIENT_TIMEOUT_S, RawClient
from worker_processes import HERE, ROOT, Workers, until

from marlin.server.process import seccomp

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


KEY = "k" * 32


@pytest.fixture(scope="module", params=["1", "2"], ids=["one process", "workers"])
def locked(request, tmp_path_factory):
    """A server in lock-down, but for what the scripted model has not: files."""
    if (why := seccomp.why_not()) is not None:
        pytest.skip(f"no filter of system calls: {why}")
    folder = tmp_path_factory.mktemp("locked")
    (folder / "audit.key").write_text(KEY)
    (folder / "audit.key").chmod(0o600)
    words = ["--audit-log", folder / "audit", "--audit-key-file", folder / "audit.key"]
    words += ["--manifest", folder / "none", "--workers", request.param]
    words = ["attempts", "--lock-down", *map(str, words)]
    workers = Workers(folder / "gate", *words, program=PROGRAM, METAL_MARLIN_API_KEY=KEY)
    yield workers
    workers.close()


def complete_with_key(served, prompt, **more):
    with served.connect() as client:
        body = {"model": "attempts", "prompt": prompt, "max_tokens": 1, **more}
        headers = [f"Authorization: Bearer {KEY}"]
        return client.ask("POST", "/v1/completions", body, headers)


@pytest.mark.parametrize("name", [*ATTEMPTS, *WRITES])
def test_in_lock_down_python_is_refused_as_ever_and_writes_nothing(name, locked):
    before = len(locked.logged("refused: "))
    assert complete_with_key(locked, name).status == 500
    until(lambda: len(locked.logged("refused: ")) > before, "a line in the log")
    assert complete_with_key(locked, "Hello").status == 200


@pytest.mark.parametrize("name", NATIVE)
def test_in_lock_down_native_code_is_refused_what_python_is(name, locked):
    said = r"PermissionError: \[Errno 1\] native: Operation not permitted"
    before = len(locked.logged(said))
    assert complete_with_key(locked, name).status == 500
    until(lambda: len(locked.logged(said)) == before + 1, "a line in the log")
    assert complete_with_key(locked, "Hello").status == 200


def test_in_lock_down_what_has_no_effect_is_refused(locked):
    answer = complete_with_key(locked, "Hello", user="me")
    assert (answer.status, answer.error["param"]) == (422, "user")
    assert "has no effect here" in answer.error["message"]


def test_in_lock_down_every_request_is_recorded(locked):
    answer = complete_with_key(locked, "Hello")
    logs = list(locked.gate.parent.glob("audit*"))
    wanted = answer.headers["x-request-id"]
    until(lambda: any(wanted in log.read_text() for log in logs if log.suffix != ".key"), "it")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_lock_down_does_not_start_without_what_it_requires(workers, tmp_path):
    words = ["attempts", "--lock-down", "--workers", workers]
    server = Workers(tmp_path / "gate", *words, program=PROGRAM, announces=False)
    try:
        assert server.wait() != 0
    finally:
        server.close()
    wanted = "give --manifest; give --audit-log; "
    wanted += "give --key-file, or set METAL_MARLIN_API_KEY"
    assert server.logged(f"--lock-down does not start without these: {wanted}")


def test_the_table_says_what_is_missing_and_what_is_held():
    words = [sys.executable, "-m", "marlin", "lockdown", "model", "--check"]
    words += ["--unknown-parameters", "warn"]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 1
    assert (
        "MISSING  every client has a key: give --key-file, or set METAL_MARLIN_API_KEY"
        in done.stdout
    )
    assert "effect is refused: --unknown-parameters warn lifts it" in done.stdout
    assert "held     answers are a model's" in done.stdout
    held = ["--manifest", "m", "--audit-log", "a"]
    environ["METAL_MARLIN_API_KEY"] = KEY
    done = subprocess.run(
        [*words[:6], *held], capture_output=True, text=True, env=environ, check=False
    )
    why = seccomp.why_not()
    assert (done.returncode, "all are held" in done.stdout) == (
        (0, True) if why is None else (1, False)
    )


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
