"""What a connection has it gives back, however it ends; and each of its requests begins anew.

Places are few here and one connection stays: a place that is kept back costs that one its own.
"""

import socket
import struct
import threading
import time
from contextlib import ExitStack

import pytest
from clients import CLIENT_TIMEOUT_S, chat_body, request_bytes
from fakes import FakeEngine, say, say_then_hang
from test_clients_that_misbehave import wait_for, wait_until

from marlin.server.http import listener
from marlin.server.http.connection import Connection, PeerGone

CHAT = "/v1/chat/completions"
NUM_PLACES = 3


def closes_at_once(_client):
    """Without a word."""


def closes_after_an_answer(client):
    assert client.ask("GET", "/health").status == 200


def asks_to_close(client):
    assert client.ask("GET", "/health", headers=["Connection: close"]).status == 200
    assert client.at_end()


def sends_what_is_no_request(client):
    assert client.send(b"\r\n\r\n\r\n").read().status == 400
    assert client.at_end()


def says_nothing(client):
    assert client.at_end()


def stalls_in_its_head(client):
    assert client.send(b"GET /").read().status == 408


def leaves_in_its_body(client):
    client.send(request_bytes("POST", CHAT, chat_body())[:-1])


def resets_in_its_body(client):
    leaves_in_its_body(client)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def leaves_in_mid_stream(client):
    client.send(request_bytes("POST", CHAT, chat_body(stream=True)))
    client.read_stream_head()


ENDINGS = [
    closes_at_once,
    closes_after_an_answer,
    asks_to_close,
    sends_what_is_no_request,
    says_nothing,
    stalls_in_its_head,
    leaves_in_its_body,
    resets_in_its_body,
    leaves_in_mid_stream,
]


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
def test_a_connection_that_ends_gives_its_place_back(start_server, ending):
    engine = FakeEngine(say_then_hang(b"some text"))
    server = start_server(engine, num_connections=NUM_PLACES, head_s=0.1, poll_s=0.01)
    with server.connect() as kept:
        assert kept.ask("GET", "/health").status == 200
        num_threads = threading.active_count()
        for _ in range(NUM_PLACES + 1):
            with server.connect() as client:
                wait_until(lambda: threading.active_count() > num_threads)
                ending(client)
            wait_until(lambda: threading.active_count() <= num_threads)
        wait_until(lambda: server.http_server.num_busy == 0)
        assert kept.ask("GET", "/health").status == 200


def test_a_connection_that_gets_no_thread_gives_its_place_back(start_server, monkeypatch):
    server = start_server(num_connections=NUM_PLACES)

    def no_thread(*_):
        raise RuntimeError("can't start new thread")

    with server.connect() as kept:
        assert kept.ask("GET", "/health").status == 200
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            for _ in range(NUM_PLACES + 1):
                with server.connect() as client:
                    assert client.read().status == 503
                    assert client.at_end()
        assert kept.ask("GET", "/health").json()["part"] == "threads"
        server.app.heartbeat()  # looks whether there are some again
        assert kept.ask("GET", "/health").status == 200


def test_an_extra_place_is_given_back_too(start_server):
    engine = FakeEngine(say_then_hang())
    server = start_server(engine, num_connections=1, num_extra_connections=1, poll_s=0.01)
    with server.connect() as busy:
        busy.send(request_bytes("POST", CHAT, chat_body()))
        wait_for(engine.submitted)
        num_threads = threading.active_count()
        for _ in range(3):
            with server.connect() as probe:
                assert probe.ask("GET", "/health").status == 200
            wait_until(lambda: threading.active_count() <= num_threads)
    wait_for(engine.aborted)
    # Its place is a whole one again: more than one request, and of any kind.
    wait_until(lambda: server.http_server.num_busy == 0)
    engine.script = say(b"Hello")
    with server.connect() as client:
        for _ in range(2):
            assert client.ask("POST", CHAT, chat_body()).status == 200


def test_each_head_has_its_own_time_and_the_pause_between_two_another(start_server):
    server = start_server(head_s=0.3, idle_s=30.0)
    with server.connect() as client:
        for _ in range(3):
            assert client.ask("GET", "/health").status == 200
            time.sleep(0.2)  # together more than one head may take
        time.sleep(0.3)
        started = time.monotonic()
        assert client.send(b"GET /health HT").read().status == 408
        assert 0.2 < time.monotonic() - started < 5


def test_a_body_has_its_time_from_its_head_on(start_server):
    server = start_server(head_s=0.2, body_s=5.0)
    request = request_bytes("POST", CHAT, chat_body())
    with server.connect() as client:
        client.send(request[:-5])
        time.sleep(0.4)
        assert client.send(request[-5:]).read().status == 200


@pytest.mark.parametrize("leaves", [False, True])
def test_an_unread_body_that_does_not_come_delays_its_answer_a_little_only(start_server, leaves):
    server = start_server(linger_s=0.2, body_s=30.0)
    request = request_bytes("POST", "/nowhere", b"0123456789")
    with server.connect() as client:
        client.send(request[:-5])
        if leaves:
            client.sock.shutdown(socket.SHUT_WR)
        answer = client.read()
        assert (answer.status, answer.headers["connection"]) == (404, "close")
        assert client.at_end()


def test_an_answer_of_500_or_more_is_logged_with_its_reason_and_its_request(start_server, caplog):
    engine = FakeEngine(say_then_hang())
    server = start_server(engine, options={"timeout_s": "0.1"}, poll_s=0.01)
    with server.connect() as client:
        answer = client.ask("POST", CHAT, chat_body(), headers=["X-Request-ID: mine"])
        assert answer.status == 504
        assert client.ask("GET", "/nowhere").status == 404
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warned == ["mine: the answer was not complete within 0.1 s"]


def test_nobody_is_told_to_continue_who_did_not_ask(server):
    request = request_bytes("POST", CHAT, chat_body())
    head, _, body = request.partition(b"\r\n\r\n")
    for start in (head, head.replace(b"HTTP/1.1", b"HTTP/1.0")):
        with server.connect() as client:
            client.send(start + b"\r\n\r\n")
            client.sock.settimeout(0.1)
            with pytest.raises(TimeoutError):
                client.sock.recv(1)
            client.sock.settimeout(10)
            assert client.send(body).read().status == 200


def test_whoever_sends_more_ahead_than_is_held_is_answered_all_of_it(start_server):
    engine = FakeEngine(say_then_hang())
    server = start_server(engine, pipelined_bytes=100, poll_s=0.01, options={"timeout_s": "0.4"})
    ahead = request_bytes("GET", "/health")
    with server.connect() as client:
        client.send(request_bytes("POST", CHAT, chat_body()))
        wait_for(engine.submitted)
        client.send(ahead * 10)
        assert client.read().status == 504
        assert [client.read().status for _ in range(10)] == [200] * 10


@pytest.fixture
def connected():
    """connected(write_s) -> (Connection, the socket of its peer)."""
    with ExitStack() as stack:

        def connect(write_s=10.0):
            with socket.create_server(("127.0.0.1", 0)) as listener:
                theirs = socket.create_connection(listener.getsockname(), timeout=10)
                ours, _ = listener.accept()
            connection = Connection(ours, write_s)
            stack.callback(connection.close)
            return connection, stack.enter_context(theirs)

        yield connect


def test_a_look_for_the_peer_takes_no_time_and_loses_nothing(connected):
    connection, theirs = connected()
    started = time.monotonic()
    for _ in range(20):
        assert not connection.peer_gone(100)
    assert time.monotonic() - started < 1
    theirs.sendall(b"GET / HTTP/1.1\r\n\r\nmore")
    wait_until(lambda: connection.peer_gone(100) is False and connection.num_buffered == 22)
    theirs.close()
    wait_until(lambda: connection.peer_gone(100))
    connection.set_deadline(1)
    assert connection.read_head(100) == b"GET / HTTP/1.1"
    assert connection.read_exact(4) == b"more"
    with pytest.raises(PeerGone):
        connection.read_exact(1)


def test_a_write_that_nobody_reads_ends_within_its_time_and_one_that_is_read_arrives(connected):
    connection, theirs = connected()
    data = bytes(range(256)) * 100_000
    reader = threading.Thread(target=lambda: received.append(read_all(theirs, len(data))))
    received = []
    reader.start()
    connection.send(data)  # more than the kernel holds
    reader.join(10)
    assert received == [data]
    connection, theirs = connected(write_s=0.2)
    started = time.monotonic()
    with pytest.raises(PeerGone):
        connection.send(data)
    assert 0.1 < time.monotonic() - started < 5


def read_all(sock, num_bytes):
    with sock.makefile("rb") as file:
        return file.read(num_bytes)


def test_what_is_read_after_the_answer_is_dropped_and_not_kept(connected):
    connection, theirs = connected()
    sender = threading.Thread(target=lambda: (theirs.sendall(bytes(8 << 20)), theirs.close()))
    sender.start()
    started = time.monotonic()
    connection.finish(10.0)
    assert time.monotonic() - started < 9  # it ends with its peer
    sender.join(10)
    assert connection.num_buffered < 1 << 20


def test_a_peer_that_stays_after_the_answer_is_left_in_time(connected):
    connection, theirs = connected()
    started = time.monotonic()
    connection.finish(0.1)
    assert 0.05 < time.monotonic() - started < 5
    assert theirs.recv(1) == b""  # it was told at once that nothing more comes


def test_a_kept_connection_ends_with_the_answer_that_is_out_when_the_server_stops(start_server):
    engine = FakeEngine(say_then_hang(b"some text"))
    server = start_server(engine, options={"timeout_s": "2"}, poll_s=0.01)
    with server.connect() as busy, server.connect() as kept:
        assert kept.ask("GET", "/health").status == 200
        wait_until(lambda: server.http_server.num_busy == 0)
        busy.send(request_bytes("POST", CHAT, chat_body()))
        wait_for(engine.submitted)
        kept.send(b"GET /health HTTP/1.1\r\n")
        wait_until(lambda: server.http_server.num_busy == 2)
        assert not server.http_server.drain(0.1)  # it waits no longer than that
        answer = busy.read()
        assert (answer.status, answer.headers["connection"]) == (504, "close")
        assert busy.at_end()
        last = kept.send(b"Host: test\r\n\r\n").read()  # it began before anyone could say no
        assert (last.status, last.headers["connection"]) == (200, "close")
        assert kept.at_end()
        assert server.http_server.drain(5)


def test_who_has_connected_when_the_server_stops_is_answered(start_server, monkeypatch):
    server = start_server()
    places, reached, go_on = server.http_server.places, threading.Event(), threading.Event()
    enter = places.enter

    def slowly(sock, peer):
        reached.set()
        assert go_on.wait(CLIENT_TIMEOUT_S)
        return enter(sock, peer)

    monkeypatch.setattr(places, "enter", slowly)
    with ExitStack() as stack:
        first = stack.enter_context(server.connect())
        assert reached.wait(CLIENT_TIMEOUT_S)
        others = [stack.enter_context(server.connect()) for _ in range(3)]  # nobody accepts them
        for client in (first, *others):
            client.send(request_bytes("GET", "/health"))
        stopping = threading.Thread(target=server.http_server.drain, args=(CLIENT_TIMEOUT_S,))
        stopping.start()
        wait_until(lambda: server.http_server.draining)
        go_on.set()
        for client in (first, *others):
            answer = client.read()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
        stopping.join(CLIENT_TIMEOUT_S)


def test_a_thread_that_dies_as_it_begins_costs_its_connection_alone(start_server, monkeypatch):
    server = start_server()
    with server.connect() as kept:
        assert kept.ask("GET", "/health").status == 200
        with monkeypatch.context() as patch:
            patch.setattr(listener, "_BEGIN_S", 0.2)
            patch.setattr(threading.Thread, "_bootstrap", lambda _: None)
            with server.connect() as client:
                assert client.read().status == 503
                assert client.at_end()
        assert kept.ask("GET", "/health").json()["part"] == "threads"
    server.app.heartbeat()
    with server.connect() as client:
        assert client.ask("GET", "/health").status == 200
    for thread in threading.enumerate():  # it is listed as one that begins
        if isinstance(thread, listener.ConnectionThread) and thread.ident is None:
            threading._limbo.pop(thread)
