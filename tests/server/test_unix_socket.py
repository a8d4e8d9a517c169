"""A server on a Unix socket: its file, who is who on it, and what becomes of it, with real sockets
and real processes."""

import errno
import json
import logging
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from contextlib import closing, contextmanager

import pytest
from clients import CLIENT_TIMEOUT_S, RawClient, completion_body, request_bytes
from worker_processes import HERE, ROOT, Workers, until

from marlin import turns
from marlin.config import serve_config
from marlin.errors import ConfigError
from marlin.option_values import file_mode, owner
from marlin.server.http.doors import Doors, filenos, inherited
from marlin.server.http.limits import Limits
from marlin.server.http.listener import HttpServer, open_listener
from marlin.server.http.unix_socket import MAX_PATH_BYTES, UnixListener
from marlin.server.process import seccomp
from marlin.server.process.serve import listen

PROGRAM = (str(HERE / "serve_attempts.py"),)
KEY = "k" * 32
ME = f"uid:{os.getuid()}"
_ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="names without files are Linux's")


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "s")


def connect(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(CLIENT_TIMEOUT_S)
    sock.connect(path)
    return RawClient(sock)


def made(path, mode=0o600, backlog=8):
    return closing(UnixListener(path, mode, (-1, -1), backlog))


class Served:
    """A server of one process or two on a Unix socket."""

    def __init__(self, path, num_workers, *words, **environ):
        gate = f"{path}.gate"
        words = ["model", "--uds", path, "--workers", num_workers, *map(str, words)]
        self.path = path
        self.workers = Workers(gate, *words, program=PROGRAM, **environ)

    def complete(self, *fields, **more):
        with connect(self.path) as client:
            body = completion_body(model="model", **more)
            return client.ask("POST", "/v1/completions", body, fields)

    def end(self, signum=signal.SIGTERM):
        self.workers.popen.send_signal(signum)
        return self.workers.wait()


@pytest.fixture
def served(path):
    started = []

    def start(num_workers, *words, **environ):
        started.append(Served(path, num_workers, *words, **environ))
        return started[-1]

    yield start
    for one in started:
        one.workers.close()


@pytest.mark.parametrize("num_workers", ["1", "2"])
def test_it_serves_says_where_and_leaves_no_file_behind(served, path, num_workers):
    server = served(num_workers)
    assert server.workers.announcement.rstrip().endswith(f"serving model at unix:{path}")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
    assert server.complete().status == 200
    until(lambda: server.workers.logged(rf"{ME} POST /v1/completions 200"), "a line by user")
    assert server.end() == 0
    assert os.listdir(os.path.dirname(path)) == []


@pytest.mark.parametrize("num_workers", ["1", "2"])
def test_what_a_killed_server_left_is_replaced_and_a_living_one_is_not(served, path, num_workers):
    first = served(num_workers)
    second = subprocess.run(
        [sys.executable, *PROGRAM, "model", "--uds", path, "--workers", num_workers],
        capture_output=True, text=True, check=False, timeout=60,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{HERE}"},
    )  # fmt: skip
    assert second.returncode != 0
    assert f"{path}: another server listens on it" in second.stderr
    assert first.complete().status == 200
    first.end(signal.SIGKILL)
    assert os.path.exists(path)
    again = served(num_workers)
    assert again.complete().status == 200


def test_beside_tcp_both_are_answered_by_workers_too(served, path):
    server = served("2", "--uds-beside-tcp")
    with server.workers.connect() as client:
        assert client.ask("POST", "/v1/completions", completion_body(model="model")).status == 200
    assert server.complete().status == 200
    assert server.end() == 0
    assert not os.path.exists(path)


def test_no_rule_of_browsers_is_in_the_way_and_without_json_it_is_415(served):
    server = served("1")
    foreign = ("Origin: https://evil.example", "Sec-Fetch-Site: cross-site")
    assert server.complete(*foreign).status == 200
    with connect(server.path) as client:
        head = "POST /v1/completions HTTP/1.1\r\nHost: any.name.example\r\nContent-Length: 2\r\n"
        assert client.send(f"{head}\r\n{{}}".encode()).read().status == 415
        named = "GET /v1/models HTTP/1.1\r\nHost: any.name.example\r\n\r\n"
        assert client.send(named.encode()).read().status == 200


def test_the_audit_log_has_whose_process_it_was(served, tmp_path):
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "key").chmod(0o600)
    log = tmp_path / "audit"
    server = served("1", "--audit-log", log, "--audit-key-file", tmp_path / "key")
    assert server.complete().status == 200
    begun = [json.loads(line) for line in log.read_text().splitlines()][1]
    assert (begun["event"], begun["client"], begun["principal"]) == ("begin", ME, ME)


@pytest.mark.parametrize("num_workers", ["1", "2"])
def test_lock_down_takes_a_unix_socket_for_an_address(served, path, tmp_path, num_workers):
    if (why := seccomp.why_not()) is not None:
        pytest.skip(f"no filter of system calls: {why}")
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "key").chmod(0o600)
    words = ("--audit-log", tmp_path / "audit", "--audit-key-file", tmp_path / "key")
    words += ("--manifest", tmp_path / "none", "--lock-down")
    server = served(num_workers, *words, METAL_MARLIN_API_KEY=KEY)
    assert server.complete().status == 401
    assert server.complete(f"Authorization: Bearer {KEY}").status == 200
    assert server.end() == 0
    assert not os.path.exists(path) and not os.path.exists(path + ".lock")


def test_a_user_is_a_client_whose_prefixes_are_his_own(start_server, path):
    server = start_server()
    listener = UnixListener(path, 0o600, (-1, -1), 8)
    beside = HttpServer(listener, server.app, Limits())
    threading.Thread(target=beside.serve_forever, args=(0.01,), daemon=True).start()
    with connect(path) as client:
        assert client.ask("POST", "/v1/completions", completion_body()).status == 200
    assert [request.client for request in server.engine.requests] == [ME]
    assert turns.owner(ME) == ME != turns.owner(turns.client_of_uid(os.getuid() + 1))
    assert beside.drain(CLIENT_TIMEOUT_S)
    assert not os.path.exists(path)


def test_a_path_too_long_for_the_system_is_refused_with_the_limit(tmp_path):
    longest = str(tmp_path / ("x" * (MAX_PATH_BYTES - len(str(tmp_path)) - 1)))
    assert len(longest) == MAX_PATH_BYTES
    with made(longest), connect(longest):
        assert os.path.exists(longest)
    with pytest.raises(ConfigError, match=f"of {MAX_PATH_BYTES} bytes at most.*got 10[48]"):
        UnixListener(longest + "x", 0o600, (-1, -1), 8)


def test_a_mode_and_an_owner_are_there_before_anybody_connects(path, monkeypatch):
    asked, listening = [], []
    monkeypatch.setattr(os, "chown", lambda *given, **how: asked.append((given, how)))
    real = socket.socket.listen

    def listen(self, backlog):
        listening.append((stat.S_IMODE(os.stat(path).st_mode), len(asked)))
        real(self, backlog)

    monkeypatch.setattr(UnixListener, "listen", listen)
    before = os.umask(0o022)
    os.umask(before)
    with closing(UnixListener(path, 0o620, (-1, 7), 8)):
        assert listening == [(0o620, 1)]
        assert asked == [((path, -1, 7), {"follow_symlinks": False})]
    assert os.umask(before) == before


def test_an_owner_that_may_not_be_is_a_refusal_and_leaves_nothing(path, monkeypatch):
    def refuse(*_given, **_how):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(ConfigError, match="cannot listen on .*: Operation not permitted"):
        UnixListener(path, 0o600, (0, -1), 8)
    assert os.listdir(os.path.dirname(path)) == []


def test_what_is_no_servers_socket_is_left_alone(path):
    with open(path, "w") as file:
        file.write("mine")
    with pytest.raises(ConfigError, match="there is a file that is no socket"):
        UnixListener(path, 0o600, (-1, -1), 8)
    with open(path) as file:
        assert file.read() == "mine"
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        with pytest.raises(ConfigError, match="remove it if nobody listens on it"):
            UnixListener(path, 0o600, (-1, -1), 8)
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]


def test_a_folder_where_anybody_may_put_another_socket_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="chmod o-w its folder"):
        UnixListener(str(tmp_path / "s"), 0o600, (-1, -1), 8)
    tmp_path.chmod(0o1777)
    with made(str(tmp_path / "s")):
        assert os.path.exists(tmp_path / "s")


def test_closing_leaves_the_file_of_whoever_came_after(path):
    first = UnixListener(path, 0o600, (-1, -1), 8)
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        first.close()
        assert os.path.exists(path)


def test_doors_take_turns_and_are_the_same_in_another_process(path):
    with made(path) as unix, closing(Doors([open_listener("127.0.0.1", 0, 8), unix])) as doors:
        with pytest.raises(BlockingIOError):
            doors.accept()
        address = doors.getsockname()
        clients = [socket.create_connection(address) for _ in range(2)]
        clients += [connect(path) for _ in range(2)]
        accepted = [doors.accept()[0] for _ in range(3)]
        inner = inherited([os.dup(fd) for fd in filenos(doors)])
        accepted.append(inner.accept()[0])
        families = [one.family for one in accepted]
        assert families[0] != families[1] and families[0] == families[2]
        assert inner.getsockname() == address
        inner.close()
        for one in (*clients, *accepted):
            one.close()


def test_the_options_say_what_they_must_be():
    assert file_mode("0660") == "0660" and file_mode("600") == "600"
    assert [owner(text) for text in ("7", ":8", "7:8")] == [(7, -1), (-1, 8), (7, 8)]
    for parse, text in ((file_mode, "0999"), (file_mode, "60"), (owner, "www-data"), (owner, "")):
        with pytest.raises(ValueError, match="must be"):
            parse(text)
    with pytest.raises(ConfigError, match=re.escape("add --uds")):
        listen(serve_config({"uds_beside_tcp": "true"}, {}), Limits())


@contextmanager
def beside(server, path, limits):
    """The same application on a Unix socket."""
    also = HttpServer(UnixListener(path, 0o600, (-1, -1), 8), server.app, limits)
    threading.Thread(target=also.serve_forever, args=(0.01,), daemon=True).start()
    yield
    assert also.drain(CLIENT_TIMEOUT_S)


def test_a_request_that_is_cut_off_is_answered_as_on_tcp(start_server, path):
    limits = Limits(head_s=0.2, linger_s=0.1)
    with beside(start_server(head_s=0.2), path, limits), connect(path) as client:
        assert client.send(request_bytes("GET", "/health")[:-3]).read().status == 408


@pytest.mark.parametrize(
    "name",
    [pytest.param("{}.client", id="file"), pytest.param("\0{}", marks=_ON_LINUX, id="abstract")],
)
def test_a_client_whose_own_socket_has_a_name_is_known_by_its_user_all_the_same(
    start_server, path, name, caplog
):
    caplog.set_level(logging.INFO, "marlin.server")
    with beside(start_server(), path, Limits()), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(CLIENT_TIMEOUT_S)
        sock.bind(name.format(path))
        sock.connect(path)
        assert RawClient(sock).ask("POST", "/v1/completions", completion_body()).status == 200
    assert any(record.getMessage().startswith(f"{ME} POST ") for record in caplog.records)
