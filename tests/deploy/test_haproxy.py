"""deploy/haproxy.cfg in a real HAProxy, in front of three real servers: one is stopped, one killed,
one hangs, one cut off in the middle of a stream."""

import json
import re
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException

import pytest
from contract import CHAT, MODEL, chat
from served import PATIENCE_S, serve_mock

JSON = {"Content-Type": "application/json"}
pytestmark = pytest.mark.long


def wait_until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


class Haproxy:
    """A running HAProxy over three servers; the shipped file but for its addresses."""

    def __init__(self, program, text, folder, servers):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        assert text.count("bind 127.0.0.1:8080") == 1
        text = text.replace("bind 127.0.0.1:8080", f"bind 127.0.0.1:{self.port}")
        for number, served in enumerate(servers, 1):
            text, found = re.subn(rf"10\.0\.0\.{number}:8000", f"127.0.0.1:{served.port}", text)
            assert found == 2
        path = folder / "haproxy.cfg"
        path.write_text(text)
        checked = subprocess.run([program, "-c", "-f", path], capture_output=True, text=True)
        assert checked.returncode == 0 and "WARNING" not in checked.stderr, checked.stderr
        self.process = subprocess.Popen([program, "-db", "-f", path], stderr=subprocess.DEVNULL)
        wait_until(lambda: self.process.poll() is not None or self._listens())
        assert self.process.poll() is None

    def _listens(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def connect(self):
        return HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)

    def ask(self, body=None, headers=()):
        """(status, answer) of one chat."""
        connection = self.connect()
        try:
            body = json.dumps(chat(max_tokens=20) if body is None else body)
            connection.request("POST", CHAT, body, {**JSON, **dict(headers)})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


@pytest.fixture
def replicas():
    servers = [serve_mock(model=f"models/{MODEL}") for _ in range(3)]
    yield servers
    for served in servers:
        if served.process.poll() is None:
            served.process.send_signal(signal.SIGCONT)
        with served:
            pass


@pytest.fixture
def start_haproxy(program, deploy, tmp_path, replicas):
    """start_haproxy(words, others) -> a Haproxy of the shipped file with others for words."""
    started = []

    def start(words="", others=""):
        text = (deploy / "haproxy.cfg").read_text()
        assert not words or text.count(words) == 1
        text = text.replace(words, others) if words else text
        started.append(Haproxy(program("haproxy"), text, tmp_path, replicas))
        return started[-1]

    yield start
    for made in started:
        made.process.send_signal(signal.SIGTERM)
        made.process.wait(PATIENCE_S)


@pytest.fixture
def proxy(start_haproxy):
    return start_haproxy()


def counts(replicas):
    return [served.metrics()["requests_total"] for served in replicas]


def test_requests_spread_and_a_session_stays_with_one_server(proxy, replicas):
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda _: proxy.ask()[0], range(36)))
    assert found == [200] * 36
    assert min(counts(replicas)) > 0
    before = counts(replicas)
    assert [proxy.ask(headers={"X-Session-ID": "mine"})[0] for _ in range(9)] == [200] * 9
    added = [now - then for now, then in zip(counts(replicas), before, strict=True)]
    assert sorted(added) == [0, 0, 9]


def test_no_request_is_lost_when_a_server_is_told_to_stop(proxy, replicas):
    statuses, stopped = [], threading.Event()

    def ask():
        while not stopped.is_set():
            statuses.append(proxy.ask()[0])

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(statuses) > 20)
    assert replicas[0].stop() == 0
    num_before = len(statuses)
    time.sleep(1.5)
    wait_until(lambda: len(statuses) > num_before + 20)
    stopped.set()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200}


def test_a_stream_of_a_server_that_stops_goes_on_past_its_checks(proxy, replicas):
    body = json.dumps(chat(stream=True, max_tokens=6000, ignore_eos=True))
    connections = [proxy.connect() for _ in range(3)]
    responses = []
    for connection in connections:
        connection.request("POST", CHAT, body, JSON)
        responses.append(connection.getresponse())
        assert responses[-1].readline().startswith(b"data: {")
    start = time.monotonic()
    replicas[0].process.send_signal(signal.SIGTERM)
    ends = [response.read().endswith(b"data: [DONE]\n\n") for response in responses]
    assert ends == [True] * 3
    assert time.monotonic() - start > 4, "no check has failed meanwhile: ask for more tokens"
    assert replicas[0].process.wait(PATIENCE_S) == 0
    for connection in connections:
        connection.close()


def test_a_killed_server_loses_what_it_had_and_no_more(proxy, replicas):
    replicas[1].process.kill()
    replicas[1].process.wait()
    assert [proxy.ask()[0] for _ in range(12)] == [200] * 12
    session = {"X-Session-ID": "any"}
    assert [proxy.ask(headers=session)[0] for _ in range(3)] == [200] * 3


def test_a_server_that_hangs_is_left_out_and_what_it_had_goes_to_another(start_haproxy, replicas):
    proxy = start_haproxy("timeout server 130s", "timeout server 3s")
    replicas[2].process.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(12) as pool:
        statuses = list(pool.map(lambda _: proxy.ask()[0], range(12)))
    assert statuses == [200] * 12
    start = time.monotonic()
    assert [proxy.ask()[0] for _ in range(9)] == [200] * 9
    assert time.monotonic() - start < 3, "the server that hangs is still asked"


def test_a_stream_that_is_cut_off_is_seen_to_be_and_others_go_on(proxy, replicas):
    body = chat(stream=True, max_tokens=4000, ignore_eos=True)
    streams = []
    for _ in range(3):
        connection = proxy.connect()
        connection.request("POST", CHAT, json.dumps(body), JSON)
        response = connection.getresponse()
        assert response.readline().startswith(b"data: {")
        streams.append((connection, response))
    assert [served.metrics()["requests_active"] for served in replicas] == [1, 1, 1]
    replicas[0].process.kill()
    ends = []
    for connection, response in streams:
        try:
            ends.append(response.read().endswith(b"data: [DONE]\n\n"))
        except (HTTPException, OSError):
            ends.append(False)
        connection.close()
    assert sorted(ends) == [False, True, True]


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "/metrics//?a"])
def test_counters_are_not_for_everybody(proxy, path):
    connection = proxy.connect()
    connection.request("GET", path)
    assert connection.getresponse().status == 403
    connection.close()
