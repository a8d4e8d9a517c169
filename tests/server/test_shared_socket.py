"""Workers that accept from one socket: who takes a connection, and what the others do meanwhile."""

import socket
import threading
import time

import pytest
from clients import CLIENT_TIMEOUT_S, RawClient, request_bytes
from worker_processes import until

from marlin.server.http.limits import Limits
from marlin.server.http.listener import open_listener
from marlin.server.process import worker
from marlin.server.process.worker import WorkerServer


class Named:
    """An application that answers with its name, /hold once it is let go."""

    def __init__(self, name):
        self.name = name
        self.slow = False
        self.num_asked = 0
        self.held, self.let_go = threading.Event(), threading.Event()

    def gives_way(self):
        self.num_asked += 1
        return self.slow

    def handle(self, handler):
        if handler.path == "/hold":
            self.held.set()
            assert self.let_go.wait(CLIENT_TIMEOUT_S)
        handler.reply(200, self.name, "text/plain")


@pytest.fixture
def siblings():
    """Two applications served from one socket, and connect() to whichever takes it."""
    listener = open_listener("127.0.0.1", 0, 16)
    address = listener.getsockname()
    applications = [Named(b"one"), Named(b"two")]
    limits = Limits(heartbeat_s=0.05)
    servers = [WorkerServer(listener.dup(), app, limits) for app in applications]
    listener.close()
    for app, server in zip(applications, servers, strict=True):
        app.server = server
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def connect():
        return RawClient(socket.create_connection(address, timeout=CLIENT_TIMEOUT_S))

    yield *applications, connect
    for app in applications:
        app.let_go.set()
    for server in servers:
        server.drain(CLIENT_TIMEOUT_S)


def hold(app, connect):
    """A connection that is in the hands of an application and stays there."""
    end = time.monotonic() + CLIENT_TIMEOUT_S
    while True:
        client = connect()
        if client.ask("GET", "/").body == app.name:
            client.send(request_bytes("GET", "/hold"))
            assert app.held.wait(CLIENT_TIMEOUT_S)
            return client
        client.close()
        assert time.monotonic() < end, "it is never that one's turn"


def names(connect, count):
    found = []
    for _ in range(count):
        with connect() as client:
            found.append(client.ask("GET", "/").body)
    return found


def test_who_answers_somebody_leaves_new_connections_to_who_is_idle(siblings, monkeypatch):
    one, two, connect = siblings
    for busy, idle in ((one, two), (two, one)):
        busy.let_go.clear(), busy.held.clear()
        with hold(busy, connect), monkeypatch.context() as patch:
            patch.setattr(worker, "_YIELD_S", 0.2)  # on a machine with other work, too
            found = []
            for _ in range(20):
                until(lambda idle=idle: idle.server.num_busy == 0, "its last answer is over")
                found += names(connect, 1)
            assert found.count(idle.name) >= 15, found  # a sibling may be late by chance
            busy.let_go.set()


def test_when_all_answer_somebody_a_connection_is_taken_all_the_same_and_soon(siblings):
    one, two, connect = siblings
    with hold(one, connect), hold(two, connect):
        waited = []
        for _ in range(9):
            started = time.monotonic()
            names(connect, 1)
            waited.append(time.monotonic() - started)
        assert sorted(waited)[4] < 0.5


def test_who_gives_way_takes_nothing_and_looks_again_at_its_beats_only(siblings):
    one, two, connect = siblings
    one.slow = True
    assert set(names(connect, 20)) == {two.name}
    one.num_asked, began = 0, time.monotonic()
    two.slow = True
    with connect() as client:
        client.send(request_bytes("GET", "/"))
        time.sleep(0.4)
        assert one.num_asked <= (time.monotonic() - began) / 0.05 + 1
        one.slow = two.slow = False
        assert client.read().status == 200
