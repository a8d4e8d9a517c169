"""The small parts of a serving process: what it says, its exit codes, signals, deadlines and the
socket of its service manager, each without a process."""

import errno
import ipaddress
import logging
import os
import signal
import socket
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from marlin import __version__
from marlin.config import serve_config
from marlin.errors import ConfigError, DeviceError
from marlin.server.http.limits import Limits
from marlin.server.process import serve, service_manager
from marlin.server.process.service_manager import ServiceManager
from marlin.server.process.signals import StopSignals

LIMITS = Limits(num_connections=77, drain_s=10.0, stop_s=5.0, linger_s=1.5)


def listener_at(host, port=8080):
    return SimpleNamespace(getsockname=lambda: (host, port))


@pytest.fixture
def announced(monkeypatch, caplog):
    """announced(host, model_id, key) -> (lines on standard output, warnings)."""

    def run(host, model_id="m", key=None, **settings):
        lines = []
        monkeypatch.setattr(serve, "say", lines.append)
        environ = {} if key is None else {"METAL_MARLIN_API_KEY": key}
        caplog.clear()
        with caplog.at_level(logging.INFO):
            config = serve_config({"port": "0", **settings}, environ)
            serve.announce(config, model_id, listener_at(host), LIMITS)
        warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert "up to 77 connections at once in each process" in caplog.text
        return lines, warnings

    return run


def open_to_all(host):
    assert not ipaddress.ip_address(host).is_loopback
    return [
        f"listening on {host} without METAL_MARLIN_API_KEY: anyone who reaches it can use it"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("host", "where", "more"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080", []),
        ("::1", "http://[::1]:8080", []),
        ("192.0.2.1", "http://192.0.2.1:8080", []),
        ("0.0.0.0", "http://0.0.0.0:8080", ["on this machine: http://127.0.0.1:8080"]),
        ("::", "http://[::]:8080", ["on this machine: http://[::1]:8080"]),
    ],
)
def test_a_server_says_what_it_serves_where_and_warns_of_an_open_address(
    announced, host, where, more
):
    is_loopback = host in ("127.0.0.1", "::1")
    first = f"metal-marlin {__version__}: serving m at {where}"
    assert announced(host) == ([first, *more], [] if is_loopback else open_to_all(host))
    assert announced(host, key="secret") == ([first, *more], [])


def test_a_server_says_the_names_that_requests_give(announced):
    ((line,), _) = announced("127.0.0.1", served_names="one,two,*")
    assert line == f"metal-marlin {__version__}: serving one, two at http://127.0.0.1:8080"


def test_a_server_without_a_model_says_so(announced):
    lines, _ = announced("127.0.0.1", None)
    assert lines == [
        f"metal-marlin {__version__}: no model loaded (every request gets 503; MODEL_PATH is "
        "missing) at http://127.0.0.1:8080"
    ]


def test_an_address_that_is_taken_is_refused_with_a_hint():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        config = serve_config({"port": str(port), "host": "127.0.0.1"}, {})
        with pytest.raises(ConfigError) as caught:
            serve.listen(config, LIMITS)
    said = f"cannot listen on 127.0.0.1 port {port}: {os.strerror(errno.EADDRINUSE)}"
    assert caught.value.message == f"{said}; --port 0 takes a free one"


def test_another_error_of_an_address_has_no_hint(monkeypatch):
    def fail(_host, _port, backlog):
        assert backlog == LIMITS.backlog
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(serve, "open_listener", fail)
    with pytest.raises(ConfigError) as caught:
        serve.listen(serve_config({"port": "80", "host": "127.0.0.1"}, {}), LIMITS)
    assert caught.value.message == "cannot listen on 127.0.0.1 port 80: Permission denied"


class Server:
    def __init__(self, drains=True):
        self.asked, self.drains = [], drains

    def drain(self, seconds):
        self.asked.append(("drain", seconds))
        return self.drains

    def wait_idle(self, seconds):
        self.asked.append(("wait_idle", seconds))


def engine(alive=True):
    one = SimpleNamespace(alive=alive, closed=0)
    one.close = lambda: setattr(one, "closed", one.closed + 1)
    return SimpleNamespace(engine=one, close=one.close)


def test_a_stop_lets_requests_finish_and_frees_the_engine(caplog):
    server, model = Server(), engine()
    assert serve.stop(15, model, server, LIMITS) == 0
    assert server.asked == [("drain", 10.0), ("wait_idle", 1.5)] and model.engine.closed == 1
    assert serve.stop(0, engine(), Server(), LIMITS) == 1
    assert serve.stop(15, None, server := Server(), LIMITS) == 0
    assert server.asked == [("drain", 10.0)]
    assert serve.stop(0, None, Server(), LIMITS) == 1
    assert caplog.text == ""


def test_a_stop_with_an_engine_that_has_ended_leaves_it_and_is_1(caplog):
    model = engine(alive=False)
    assert serve.stop(15, model, Server(drains=False), LIMITS) == 1
    assert model.engine.closed == 0
    assert "requests still running after 10 s were cut off" in caplog.text


@pytest.fixture
def exits(monkeypatch):
    """Statuses with which the process would have ended at once."""
    statuses = []

    def leave(status):
        statuses.append(status)
        raise SystemExit  # ends the thread

    monkeypatch.setattr(serve.os, "_exit", leave)
    monkeypatch.setattr(serve.logging, "shutdown", lambda: None)
    monkeypatch.setattr(threading, "excepthook", lambda _what: None)
    return statuses


@pytest.mark.parametrize(("signum", "status"), [(15, 143), (2, 130), (0, 1), (None, 1)])
def test_a_process_ends_by_its_deadline_or_by_a_second_signal(exits, caplog, signum, status):
    waits = []

    def wait_for(seconds):
        waits.append(seconds)
        return signum

    begin = serve.end_in_time(LIMITS, wait_for)
    (watch,) = (thread for thread in threading.enumerate() if thread.name == "deadline")
    assert watch.daemon and waits == []
    begin()
    watch.join(10)
    assert waits == [15.0] and exits[0] == status
    assert ("did not end in time" in caplog.text) == (not signum)


@pytest.mark.parametrize(
    ("error", "said"),
    [(DeviceError("lost"), "lost"), (KeyError("x"), "KeyError('x')"), (None, None)],
)
def test_an_engine_that_ends_by_itself_ends_the_server(caplog, error, said):
    finished = threading.Event()
    model = SimpleNamespace(engine=SimpleNamespace(wait_for_end=lambda: error))
    before = set(threading.enumerate())
    serve.watch_engine(model, SimpleNamespace(finish=finished.set))
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert finished.is_set() == (error is not None)
    words = f"the engine has ended, and this process ends with it: {said}"
    assert (words in caplog.text) == (error is not None)
    serve.watch_engine(None, None)


@pytest.fixture
def signals():
    kept = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    made = StopSignals()
    yield made
    signal.set_wakeup_fd(-1)
    for signum, handler in kept.items():
        signal.signal(signum, handler)
    os.close(made._reader)
    os.close(made._writer)


def test_signals_are_told_in_their_order_and_a_finish_is_0(signals):
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
    signals.finish()
    assert [signals.wait() for _ in range(3)] == [signal.SIGINT, signal.SIGTERM, 0]
    assert signals.fileno() == signals._reader


def test_a_wait_with_an_end_skips_what_is_no_signal(signals):
    began = time.monotonic()
    assert signals.wait_for(0.05) == 0
    assert 0.04 < time.monotonic() - began < 5
    signals.finish()
    signal.raise_signal(signal.SIGTERM)
    assert signals.wait_for(10) == signal.SIGTERM
    signals.finish()
    assert signals.wait_for(0.05) == 0
    assert signals.wait_for(0) == 0


@pytest.fixture
def systemd(tmp_path):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(path)
        listening.settimeout(5)
        yield path, listening


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "30s"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({}, None),
    ],
)
def test_a_watchdog_is_told_three_times_in_its_span(systemd, environ, interval_s):
    path, _ = systemd
    manager = ServiceManager({"NOTIFY_SOCKET": path, **environ})
    assert manager.interval_s == interval_s
    manager._socket.close()


def test_a_sign_of_life_is_given_at_most_twice_an_interval(systemd, monkeypatch):
    path, listening = systemd
    manager = ServiceManager({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "30000000"})
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(service_manager.time, "monotonic", lambda: clock.now)
    manager.ready()
    for now in (1000.0, 1004.9, 1005.0, 1009.9, 1010.0):
        clock.now = now
        manager.alive()
    listening.setblocking(False)
    heard = [listening.recv(100) for _ in range(4)]
    assert heard == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1", b"WATCHDOG=1"]
    with pytest.raises(BlockingIOError):
        listening.recv(100)
    manager._socket.close()


def test_without_a_watchdog_no_sign_of_life_is_given(systemd):
    path, listening = systemd
    manager = ServiceManager({"NOTIFY_SOCKET": path})
    manager.alive()
    manager.ready()
    assert listening.recv(100) == b"READY=1"
    manager._socket.close()


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="abstract names are Linux's")
def test_a_name_with_an_at_is_abstract():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        name = f"metal-marlin-test-{os.getpid()}"
        listening.bind(f"\0{name}")
        listening.settimeout(5)
        manager = ServiceManager({"NOTIFY_SOCKET": f"@{name}"})
        manager.ready()
        assert listening.recv(100) == b"READY=1"
        manager._socket.close()


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative", "/nowhere/at/all"])
def test_where_no_socket_is_named_or_none_is_there_nobody_is_told(address):
    manager = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000"})
    assert manager.interval_s is None and manager._socket is None
    manager.ready()
    manager.alive()


def test_a_socket_that_nobody_listens_at_is_closed_again(monkeypatch):
    opened = []

    class Socket:
        def __init__(self, *_kind):
            opened.append(self)
            self.is_closed = False

        def connect(self, _address):
            raise ConnectionRefusedError

        def close(self):
            self.is_closed = True

    monkeypatch.setattr(service_manager.socket, "socket", Socket)
    assert ServiceManager({"NOTIFY_SOCKET": "/run/notify"}).interval_s is None
    assert [one.is_closed for one in opened] == [True]


def test_a_full_socket_costs_nothing(systemd):
    path, listening = systemd
    manager = ServiceManager({"NOTIFY_SOCKET": path})
    listening.close()
    manager.ready()
    manager._socket.close()


@pytest.mark.parametrize(("platform", "limits"), [("linux", [True]), ("darwin", [])])
def test_a_server_that_is_locked_down_refuses_what_would_have_no_effect(
    monkeypatch, platform, limits
):
    done = []
    monkeypatch.setattr(serve.requirements, "check", lambda _config: done.append("checked"))
    monkeypatch.setattr(serve.seccomp, "install", done.append)
    monkeypatch.setattr(serve, "sys", SimpleNamespace(platform=platform))
    config = serve_config({"port": "0"}, {})
    assert serve.locked(config, True) is config and done == []
    locked = serve.locked(replace(config, lock_down=True), True)
    assert locked == replace(config, lock_down=True, unknown_parameters="strict")
    assert done == ["checked", *limits]
