"""A worker's own part of its life: its job, its exit code, and what it takes from a shared socket;
without a process."""

import errno
import json
import os
import socket
import threading
from types import SimpleNamespace

import pytest

from marlin.config import serve_config
from marlin.errors import ConfigError, DeviceError, ModelFileError, SharedWeightsError
from marlin.server.http.limits import Limits
from marlin.server.process import worker
from marlin.server.process.worker import BAD_WEIGHTS, Job, WorkerServer

LIMITS = Limits(heartbeat_s=0.25)


def worker_server(monkeypatch, gives_way=False, num_busy=0):
    naps = []
    monkeypatch.setattr(worker.time, "sleep", naps.append)
    listener = socket.create_server(("127.0.0.1", 0))
    app = SimpleNamespace(gives_way=lambda: gives_way)
    server = WorkerServer(listener, app, LIMITS)
    server.places = SimpleNamespace(num_busy=num_busy)
    assert listener.gettimeout() == 0.0
    return server, naps


def test_a_worker_takes_a_connection_at_once_or_leaves_it_a_moment_to_others(monkeypatch):
    for num_busy, expected in ((0, []), (1, [0.002])):
        server, naps = worker_server(monkeypatch, num_busy=num_busy)
        with server.socket, socket.create_connection(server.socket.getsockname()):
            taken, _ = server.get_request()
            taken.close()
        assert naps == expected


def test_a_worker_that_gives_way_takes_none(monkeypatch):
    server, naps = worker_server(monkeypatch, gives_way=True)
    with server.socket, socket.create_connection(server.socket.getsockname()):
        with pytest.raises(BlockingIOError):
            server.get_request()
    assert naps == [0.25]


def test_a_job_is_read_from_its_line_and_not_beyond_it(monkeypatch):
    for pieces in ([b"a", b"bc\n"], [b"abc\n"], [b"\n"]):
        coming = list(pieces)
        monkeypatch.setattr(worker.os, "read", lambda _fd, _size, coming=coming: coming.pop(0))
        assert worker._read_line(0) == b"".join(pieces) and coming == []
    monkeypatch.setattr(worker.os, "read", lambda _fd, _size: b"")
    with pytest.raises(SystemExit) as caught:
        worker._read_line(0)
    assert caught.value.code == 0


def job(**changes):
    config = serve_config({"port": "0", "workers": "3", **changes}, {})
    return Job(config, LIMITS, 1, 7, 3, 4, 5, 6)


def test_a_job_shares_the_weights_and_who_has_no_number_writes_them():
    share = job().share
    assert (share.num_processes, share.writes_weights) == (3, False)
    writer = Job(job().config, LIMITS, None, 7, 3, 4, 5, 6).share
    assert writer.writes_weights


def test_who_fills_the_weights_tries_what_a_worker_needs_and_lets_go(monkeypatch):
    """What one of many would lack is said once, before they begin."""
    done = []
    monkeypatch.setattr(worker, "_when_orphaned", lambda _action: None)
    monkeypatch.setattr(worker, "check_threads", lambda limits: done.append(limits))
    engine = SimpleNamespace(close=lambda: done.append("closed"))
    assert worker._fill_weights(job(), lambda *_given: SimpleNamespace(engine=engine)) == 0
    assert done == [LIMITS, "closed"]


@pytest.fixture
def worker_main(monkeypatch):
    """run(outcome) -> the exit code of a worker whose work returns or raises that."""
    monkeypatch.setattr(worker.signal, "signal", lambda *_what: None)
    monkeypatch.setattr(worker.signal, "pthread_sigmask", lambda *_what: None)
    monkeypatch.setattr(worker.faulthandler, "enable", lambda **_what: None)
    monkeypatch.setattr(worker, "_continue_when_orphaned", lambda: None)
    monkeypatch.setattr(worker, "lock_down", lambda _libraries: None)
    monkeypatch.setattr(worker.allocator, "keep_little", lambda: None)
    monkeypatch.setattr(worker.sys, "stdin", SimpleNamespace(fileno=lambda: 0))

    def run(outcome, index=1):
        given = Job(job().config, LIMITS, index, 7, 3, 4, 5, 6)
        monkeypatch.setattr(worker, "_read_line", lambda _fd: given.encode())

        def act(_job, _load):
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr(worker, "_serve", act)
        return worker.main(None, lambda config: None)

    return run


@pytest.mark.parametrize(
    ("outcome", "code", "said"),
    [
        (0, 0, ""),
        (SharedWeightsError("changed"), BAD_WEIGHTS, "metal-marlin: changed\n"),
        (ConfigError("bad"), 2, "metal-marlin: bad\n"),
        (DeviceError("lost"), 1, "metal-marlin: lost\n"),
        (ModelFileError("m", "no"), 1, "metal-marlin: m: no\n"),
    ],
)
def test_a_workers_exit_code_tells_what_went_wrong(worker_main, capsys, outcome, code, said):
    assert worker_main(outcome) == code
    assert capsys.readouterr().err == said


def test_what_no_message_tells_of_is_raised(worker_main):
    with pytest.raises(ZeroDivisionError):
        worker_main(ZeroDivisionError())


def test_a_system_that_has_no_room_is_told_in_one_line(worker_main, capsys):
    assert worker_main(OSError(errno.ENOSPC, "No space left on device")) == 1
    said = capsys.readouterr().err
    assert said.startswith("metal-marlin: ") and said.count("\n") == 1


@pytest.mark.parametrize(("model_id", "line"), [("mödel", "mödel\n"), (None, "\n")])
def test_a_worker_that_serves_says_what(model_id, line):
    reader, writer = os.pipe()
    model = None if model_id is None else SimpleNamespace(model_id=model_id)
    worker._report_ready(SimpleNamespace(ready_fd=writer), model)
    assert os.read(reader, 100) == line.encode() and os.read(reader, 100) == b""
    os.close(reader)
    reader, writer = os.pipe()
    os.close(reader)
    worker._report_ready(SimpleNamespace(ready_fd=writer), model)  # nobody is there any more


def test_the_end_of_standard_input_is_the_end_of_the_supervisor(monkeypatch):
    coming, acted = [b"x", b""], threading.Event()
    monkeypatch.setattr(worker.os, "read", lambda fd, _size: coming.pop(0) if fd == 0 else b"")
    worker._when_orphaned(acted.set)
    assert acted.wait(5) and coming == []


def test_a_key_travels_in_the_job_and_nowhere_else():
    config = serve_config({"port": "0"}, {"METAL_MARLIN_API_KEY": "secret"})
    line = Job(config, LIMITS, 0, 7, 3, 4, 5, 6).encode()
    assert json.loads(line)["config"]["api_key"] == "secret"
    assert Job.decode(line).config.api_key == b"secret"
