"""What a service manager hears on the socket that it names."""

import os
import socket
import subprocess
import sys

import pytest
from worker_processes import HERE, ROOT

from marlin.server.process.service_manager import ServiceManager

TIMEOUT_S = 20


@pytest.fixture
def manager(tmp_path):
    """(the address, the socket at which a service manager listens)."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(path)
        listening.settimeout(TIMEOUT_S)
        yield path, listening


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("serve_fake.py", ["hello"]),
        pytest.param(
            "serve_workers.py",
            ["gated", "--workers", "2"],
            marks=pytest.mark.skipif(sys.platform != "linux", reason="as the workers' other tests"),
        ),
    ],
)
def test_it_hears_that_the_server_is_ready_and_then_that_it_lives(manager, script, arguments):
    path, listening = manager
    words = [sys.executable, str(HERE / script), *arguments, "--port", "0", "--host", "127.0.0.1"]
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT}:{HERE}",
        "GATE": path + ".gate",
        "NOTIFY_SOCKET": path,
        "WATCHDOG_USEC": "600000",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, env=environ, text=True, **pipes) as process:
        heard = [listening.recv(100) for _ in range(8)]
        process.terminate()
        log = process.communicate(timeout=TIMEOUT_S)[1]
    assert process.returncode == 0
    assert heard.count(b"READY=1") == 1 and set(heard) == {b"READY=1", b"WATCHDOG=1"}
    assert "refused" not in log and "OUTGOING socket.sendto" not in log


def test_nobody_is_told_where_nobody_asks(tmp_path):
    for environ in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": str(tmp_path / "none")}):
        nobody = ServiceManager(environ)
        nobody.ready()
        nobody.alive()
        assert nobody.interval_s is None


def test_signs_of_life_are_given_to_the_process_that_they_are_asked_of(manager):
    path, listening = manager
    asked = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "3000000"}
    assert ServiceManager(asked | {"WATCHDOG_PID": "1"}).interval_s is None
    mine = ServiceManager(asked | {"WATCHDOG_PID": str(os.getpid())})
    assert mine.interval_s == 1.0
    for _ in range(3):
        mine.alive()
    mine.ready()
    assert [listening.recv(100) for _ in range(2)] == [b"WATCHDOG=1", b"READY=1"]
