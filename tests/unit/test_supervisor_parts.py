"""What a supervisor does with its workers and says of them, by a clock and processes of the test's
own; that real processes obey is tests/server/test_workers.py."""

import errno
import logging
import os
import signal
import socket
from types import SimpleNamespace

import pytest

from marlin.config import serve_config
from marlin.errors import SharedWeightsError
from marlin.files.sealed import nameless_file, seal
from marlin.server.http.limits import Limits
from marlin.server.process import supervisor
from marlin.server.process.supervisor import Supervisor
from marlin.server.process.worker import BAD_WEIGHTS

LIMITS = Limits(
    restart_s=1.0, restart_max_s=4.0, restart_reset_s=50.0, hung_s=20.0, abort_s=3.0,
    drain_s=10.0, stop_s=5.0,
)  # fmt: skip


class Process:
    """A process that lives until it is told to end, or until `returncode` is set."""

    def __init__(self, pid=4711):
        self.pid, self.returncode, self.told = pid, None, []
        self.stdin = open(os.devnull, "wb")
        self.waits = 0

    def poll(self):
        return self.returncode

    def wait(self):
        self.waits += 1
        return self.returncode

    def kill(self):
        self.told.append("kill")
        self.returncode = -9

    def terminate(self):
        self.told.append("terminate")

    def send_signal(self, signum):
        self.told.append(signum)


class Signals:
    """Signals in the order in which they come, a number each; 0 is a child's."""

    def __init__(self, *_others):
        self.coming = []

    def wait(self):
        return self.coming.pop(0)

    def fileno(self):
        return 0


@pytest.fixture
def supervised(monkeypatch):
    """make(workers=...) -> a Supervisor whose processes are Process, with `now`, `spawned` and
    `manager.heard` for the test."""
    monkeypatch.setattr(supervisor, "StopSignals", Signals)
    made = []

    def make(workers=1, **settings):
        listener = socket.create_server(("127.0.0.1", 0))
        config = serve_config({"workers": str(workers), "port": "0", **settings}, {})
        heard = []
        manager = SimpleNamespace(
            ready=lambda: heard.append("ready"), alive=lambda: heard.append("alive"),
            interval_s=None, heard=heard,
        )  # fmt: skip
        clock = SimpleNamespace(now=100.0)
        clocks = {"clock": lambda: clock.now, "wall_clock": lambda: 7.9}
        one = Supervisor(config, make, LIMITS, listener, manager, **clocks)
        one.clock, one.manager, one.spawned, one.pipes = clock, manager, [], []

        def spawn(index):
            reader, writer = os.pipe()
            one.pipes.append(writer)
            one.spawned.append((index, Process(4711 + len(one.spawned))))
            return one.spawned[-1][1], reader

        monkeypatch.setattr(one, "_spawn", spawn)
        made.append(one)
        return one

    yield make
    for one in made:
        for worker in one._workers:
            worker.close_ready_pipe()
        for fd in (*one.pipes, one._weights_fd, one._table_fd):
            os.close(fd)
        one._no_worker_server.server_close()


def manage(one, now=None):
    if now is not None:
        one.clock.now = now
    for worker in one._workers:
        one._manage(worker, one.clock.now)


def said(caplog, level=logging.ERROR):
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_each_worker_is_started_once_and_left_alone_while_it_lives(supervised):
    one = supervised(workers=3)
    manage(one)
    manage(one, 101.0)
    assert [index for index, _ in one.spawned] == [0, 1, 2]
    assert [worker.started for worker in one._workers] == [100.0] * 3
    assert one._created == 7


def test_a_worker_that_ended_is_replaced_after_pauses_that_double(supervised, caplog):
    one = supervised()
    now, pauses = 100.0, []
    for code in (1, -9, 3, 0):
        manage(one, now)
        one.spawned[-1][1].returncode = code
        now += 2.0  # it lived
        manage(one, now)
        (worker,) = one._workers
        assert worker.process is None and worker.ready_fd is None
        assert one.spawned[-1][1].stdin.closed
        pauses.append(worker.due - now)
        manage(one, worker.due - 0.01)
        assert worker.process is None
        now = worker.due
    assert pauses == [1.0, 2.0, 4.0, 4.0]
    assert said(caplog) == [
        "worker 0 (process 4711) ended with code 1; replaced in 1 s",
        "worker 0 (process 4712) was ended by signal 9; replaced in 2 s",
        "worker 0 (process 4713) ended with code 3; replaced in 4 s",
        "worker 0 (process 4714) ended with code 0; replaced in 4 s",
    ]


def test_a_worker_that_cannot_be_started_is_tried_again(supervised, caplog, monkeypatch):
    one = supervised()
    spawn = one._spawn

    def fail(_index):
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(one, "_spawn", fail)
    manage(one)
    manage(one, 101.0)
    assert said(caplog) == [
        f"worker 0 cannot be started (Resource temporarily unavailable); tried again in {n} s"
        for n in (1, 2)
    ]
    assert one._workers[0].due == 103.0
    monkeypatch.setattr(one, "_spawn", spawn)
    manage(one, 103.0)
    assert len(one.spawned) == 1 and one._workers[0].started == 103.0


def test_a_worker_that_hangs_is_asked_where_and_then_killed(supervised, caplog):
    one = supervised()
    manage(one)
    (_, process) = one.spawned[0]
    row = one._table.rows[0]
    row.heartbeat(100.0, 0.0)
    for now in range(101, 120):
        manage(one, float(now))
    assert process.told == []
    manage(one, 120.0)
    manage(one, 121.0)
    assert process.told == [signal.SIGABRT]
    assert said(caplog) == ["worker 0 (process 4711) hangs: nothing was heard of it for 20 s"]
    manage(one, 122.9)
    assert process.told == [signal.SIGABRT]
    manage(one, 123.0)
    assert process.told == [signal.SIGABRT, "kill"]
    manage(one, 124.0)
    manage(one, one._workers[0].due)
    assert len(one.spawned) == 2
    row.heartbeat(one.clock.now, 0.0)
    manage(one, one.clock.now + 1)
    assert one.spawned[1][1].told == [] and not one._workers[0].is_aborted


def test_a_worker_has_its_time_to_start(supervised):
    one = supervised()
    one._start_s = 30.0
    manage(one)
    for now in range(101, 150):
        manage(one, float(now))
    assert one.spawned[0][1].told == []
    manage(one, 150.0)
    assert one.spawned[0][1].told == [signal.SIGABRT]


def test_a_worker_that_has_time_left_is_let_end_and_is_killed_after_it(supervised, caplog):
    one = supervised(workers=2)
    manage(one)
    with caplog.at_level(logging.INFO):
        one._begin_stopping()
    assert said(caplog, logging.INFO) == ["stopping: waiting up to 10 s for requests in flight"]
    first, second = (process for _, process in one.spawned)
    assert (first.told, second.told) == (["terminate"], ["terminate"])
    assert one._kill_at == 115.0 and one._listener.fileno() == -1
    first.returncode = 0
    manage(one, 101.0)
    manage(one, 114.9)
    assert second.told == ["terminate"] and one._processes() == [second]
    manage(one, 115.0)
    assert second.told == ["terminate", "kill"] and second.waits == 1
    assert one._processes() == [] and len(one.spawned) == 2
    words = "worker 1 did not end in time and is killed"
    assert said(caplog, logging.WARNING) == [words] and said(caplog) == []


def test_weights_that_changed_end_it_all(supervised, caplog):
    one = supervised(workers=2)
    manage(one)
    one.spawned[0][1].returncode = BAD_WEIGHTS
    with pytest.raises(SharedWeightsError, match="the shared weights have to be made anew"):
        manage(one)


def watched(monkeypatch, one, readable=()):
    """What select() was given: what it waits on, and for how long."""
    given = []

    def select(watch, _write, _error, timeout):
        given.append((watch, timeout))
        return [fd for fd in readable if fd in watch], [], []

    monkeypatch.setattr(supervisor.select, "select", select)
    return given


def test_it_waits_until_there_is_something_to_do(supervised, monkeypatch):
    one = supervised(workers=2)
    given = watched(monkeypatch, one)
    for worker, due in zip(one._workers, (104.0, 103.0), strict=True):
        worker.due = due
    assert one._wait(100.0) is None
    # Nobody serves: it listens itself.
    assert given[-1] == ([one._signals, one._listener], 3.0)
    manage(one, 103.0)
    (pipe,) = (worker.ready_fd for worker in one._workers if worker.ready_fd)
    one._wait(103.0)
    assert given[-1] == ([one._signals, pipe], 0.5)
    one.manager.interval_s = 0.2
    one._wait(103.0)
    assert given[-1][1] == pytest.approx(0.2)
    one.manager.interval_s = None
    manage(one, 104.0)
    one._wait(104.0)
    assert len(given[-1][0]) == 3 and given[-1][1] == 0.5
    one._begin_stopping()
    one._wait(110.0)
    assert given[-1][1] == 104.0 + 15.0 - 110.0
    one._wait(999.0)
    assert given[-1][1] == 0.0


def test_a_signal_is_told_and_a_client_is_answered_while_nobody_serves(supervised, monkeypatch):
    one = supervised()
    answered = []
    monkeypatch.setattr(one._no_worker_server, "handle_request", lambda: answered.append(1))
    given = watched(monkeypatch, one, (one._signals, one._listener))
    one._signals.coming = [15]
    assert one._wait(100.0) == 15 and answered == [1] and len(given) == 1


def test_the_first_worker_that_is_ready_is_announced_once(supervised, monkeypatch):
    one = supervised(workers=3)
    announced = []
    monkeypatch.setattr(supervisor, "announce", lambda *what: announced.append(what[1]))
    manage(one)
    first, second, third = one._workers
    os.close(one.pipes.pop(0))  # it ended before
    one._hear(first)
    assert announced == [] and first.ready_fd is None
    os.write(one.pipes[0], "mödel\n".encode())
    one._hear(second)
    os.write(one.pipes[1], b"other\n")
    one._hear(third)
    assert announced == ["mödel"] and one.manager.heard == ["ready"]
    assert [worker.ready_fd for worker in one._workers] == [None] * 3


def test_without_a_model_none_is_announced_and_while_stopping_nothing_is(supervised, monkeypatch):
    one = supervised(workers=2)
    announced = []
    monkeypatch.setattr(supervisor, "announce", lambda *what: announced.append(what[1]))
    manage(one)
    os.write(one.pipes[0], b"\n")
    one._hear(one._workers[0])
    assert announced == [None]
    one._announced = False
    one._begin_stopping()
    os.write(one.pipes[1], b"m\n")
    one._hear(one._workers[1])
    assert announced == [None] and one.manager.heard == ["ready"]


def test_model_files_are_looked_at_before_each_start(supervised):
    one = supervised()
    looks = []
    one._model_files = SimpleNamespace(check_same=lambda: looks.append(1))
    manage(one)
    manage(one, 101.0)
    assert looks == [1]


def test_a_nameless_file_is_empty_and_ends_with_whoever_has_it():
    fd = nameless_file("test")
    try:
        assert os.fstat(fd).st_size == 0 and not os.get_inheritable(fd)
        os.write(fd, b"ab")
        seal(fd)
        if hasattr(os, "memfd_create"):
            for change in (lambda: os.write(fd, b"c"), lambda: os.ftruncate(fd, 1)):
                with pytest.raises(PermissionError):
                    change()
    finally:
        os.close(fd)
