"""The whole of a supervisor's life: loading, serving and its exit code, by processes of the test's
own."""

import errno
import fcntl
import logging
import os
import signal

import pytest
from test_supervisor_parts import Process, said
from test_supervisor_parts import supervised as supervised_by

from marlin.server.process.worker import BAD_WEIGHTS

supervised = supervised_by  # the fixture, by its name


def fill(one, monkeypatch, returncode=None, signals=()):
    def spawn(index):
        assert index is None
        process = Process()
        process.returncode = returncode
        reader, writer = os.pipe()
        one.pipes.append(writer)
        one.spawned.append((index, process))
        return process, reader

    monkeypatch.setattr(one, "_spawn", spawn)
    one._signals.coming = list(signals)
    return one._fill_weights()


def seals(fd):
    return fcntl.fcntl(fd, fcntl.F_GET_SEALS)


def test_weights_that_were_filled_are_sealed(supervised, monkeypatch):
    one = supervised()
    assert fill(one, monkeypatch, 0) is None
    if hasattr(os, "memfd_create"):
        wanted = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
        assert seals(one._weights_fd) & wanted == wanted
        assert not seals(one._table_fd)
    assert one.spawned[0][1].stdin.closed


@pytest.mark.parametrize(
    ("returncode", "code", "message"),
    [(2, 2, []), (1, 1, []), (-9, 1, ["loading the model was ended by signal 9"])],
)
def test_a_model_that_cannot_be_loaded_ends_the_supervisor(
    supervised, monkeypatch, caplog, returncode, code, message
):
    assert fill(supervised(), monkeypatch, returncode) == code
    assert said(caplog) == message


def test_a_signal_while_the_model_loads_ends_the_loading(supervised, monkeypatch):
    one = supervised()
    assert fill(one, monkeypatch, None, (0, signal.SIGTERM)) == 0
    process = one.spawned[0][1]
    assert process.told == ["kill"] and process.waits == 1 and one._signals.coming == []


def test_no_process_to_load_the_model_is_said(supervised, monkeypatch, caplog):
    one = supervised()

    def fail(_index):
        raise OSError(errno.EAGAIN, "no room")

    monkeypatch.setattr(one, "_spawn", fail)
    assert one._fill_weights() == 1
    assert said(caplog) == ["no process can be started to load the model: no room"]


def run(one, monkeypatch, *signals):
    """Run it with these signals, one a wait; returns the exit code."""
    coming = list(signals)

    def wait(_now):
        one.clock.now += 1
        signum = coming.pop(0)
        return signum() if callable(signum) else signum

    monkeypatch.setattr(one, "_wait", wait)
    return one.run()


def test_it_ends_with_0_once_its_workers_have_after_a_signal(supervised, monkeypatch):
    one = supervised(workers=2)

    def all_end():
        for _, process in one.spawned:
            process.returncode = 0

    assert run(one, monkeypatch, None, signal.SIGINT, None, all_end) == 0
    assert [process.told for _, process in one.spawned] == [["terminate"]] * 2
    assert one.manager.heard == ["alive"] * 5


def test_a_second_signal_kills_and_is_its_exit_code(supervised, monkeypatch):
    one = supervised(workers=2)
    assert run(one, monkeypatch, signal.SIGTERM, None, signal.SIGTERM) == 128 + signal.SIGTERM
    for _, process in one.spawned:
        assert process.told == ["terminate", "kill"] and process.waits == 1


def test_a_worker_that_cannot_be_replaced_ends_it_with_1(supervised, monkeypatch, caplog):
    one = supervised(workers=2)

    def bad():
        one.spawned[0][1].returncode = BAD_WEIGHTS

    assert run(one, monkeypatch, bad) == 1
    assert one.spawned[1][1].told == ["kill"]
    assert said(caplog, logging.CRITICAL) == [
        "no worker can be replaced: the shared weights have to be made anew"
    ]


def test_loading_tells_how_long_a_worker_may_take_to_start(supervised, monkeypatch):
    one = supervised(workers=3, model_path="m", mock_model=True)

    def load():
        one.clock.now += 5.0

    monkeypatch.setattr(one, "_fill_weights", load)
    monkeypatch.setattr(one, "_wait", lambda _now: signal.SIGTERM)
    assert one.run() == 128 + signal.SIGTERM
    assert one._start_s == 2 * 3 * 5.0
