"""Slow clients, silent clients and clients that vanish: each is let go in time, and frees what it
held."""

import socket
import struct
import threading
import time

import pytest
from clients import chat_body, completion_body, request_bytes
from fakes import ByteTokenizer, FakeEngine, say_then_hang

from marlin.server.http.connection import Connection
from marlin.server.http.listener import ConnectionThread

CHAT = "/v1/chat/completions"


def wait_for(semaphore):
    assert semaphore.acquire(timeout=10), "it never happened"


def test_a_head_that_stalls_is_408(start_server):
    server = start_server(head_s=0.1)
    with server.connect() as client:
        answer = client.send(b"GET /health HT").read()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert client.at_end()


def test_a_head_that_drips_is_408_although_bytes_keep_coming(start_server):
    server = start_server(head_s=0.3)
    with server.connect() as client:
        client.send(b"GET /health HTTP/1.1\r\n")
        client.sock.settimeout(0.02)
        started = time.monotonic()
        while True:
            assert time.monotonic() - started < 5, "the deadline moves with every byte"
            try:
                client.send(b"X")
                if client.sock.recv(12) == b"HTTP/1.1 408":
                    break
            except TimeoutError:
                continue


def test_a_body_that_stalls_is_408_and_holds_no_slot(start_server):
    server = start_server(options={"max_concurrent_requests": "1"}, body_s=0.5)
    with server.connect() as slow, server.connect() as quick:
        slow.send(request_bytes("POST", CHAT, chat_body())[:-1])
        assert quick.ask("POST", CHAT, chat_body()).status == 200
        assert slow.read().status == 408
        assert slow.at_end()


def test_a_silent_connection_is_closed_without_an_answer(start_server):
    server = start_server(head_s=0.1)
    with server.connect() as client:
        assert client.at_end()


def test_an_idle_kept_connection_is_closed_without_an_answer(start_server):
    server = start_server(idle_s=0.1)
    with server.connect() as client:
        assert client.ask("GET", "/health").status == 200
        assert client.at_end()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_during_prefill_frees_the_engine(start_server, stream):
    server = start_server(FakeEngine(say_then_hang()), poll_s=0.02)
    with server.connect() as client:
        client.send(request_bytes("POST", CHAT, chat_body(stream=stream)))
        wait_for(server.engine.submitted)
    wait_for(server.engine.aborted)
    server.wait_until_idle()


def test_a_client_that_leaves_in_mid_stream_frees_the_engine(start_server):
    server = start_server(FakeEngine(say_then_hang(b"some text")), poll_s=0.02)
    with server.connect() as client:
        client.send(request_bytes("POST", CHAT, chat_body(stream=True)))
        client.read_stream_head()
    wait_for(server.engine.aborted)
    server.wait_until_idle()


def test_a_reset_counts_as_leaving(start_server):
    server = start_server(FakeEngine(say_then_hang()), poll_s=0.02)
    with server.connect() as client:
        client.send(request_bytes("POST", CHAT, chat_body()))
        wait_for(server.engine.submitted)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_for(server.engine.aborted)


def test_a_client_that_leaves_behind_a_pipelined_request_is_noticed(start_server):
    server = start_server(FakeEngine(say_then_hang()), poll_s=0.02)
    with server.connect() as client:
        ahead = request_bytes("GET", "/health")
        client.send(request_bytes("POST", CHAT, chat_body()) + ahead)
        wait_for(server.engine.submitted)
        client.send(ahead)
    wait_for(server.engine.aborted)


def test_a_request_sent_ahead_during_generation_is_answered_after_it(start_server):
    server = start_server(FakeEngine(say_then_hang()), options={"timeout_s": "0.3"}, poll_s=0.02)
    with server.connect() as client:
        client.send(request_bytes("POST", CHAT, chat_body()))
        wait_for(server.engine.submitted)
        client.send(request_bytes("GET", "/health"))
        assert client.read().status == 504
        assert client.read().json()["status"] == "ok"


def test_a_client_that_leaves_the_queue_frees_its_place(start_server):
    engine = FakeEngine(say_then_hang())
    server = start_server(engine, options={"max_concurrent_requests": "1"}, poll_s=0.02)
    with server.connect() as first:
        first.send(request_bytes("POST", CHAT, chat_body()))
        wait_for(engine.submitted)
        with server.connect() as second:
            second.send(request_bytes("POST", CHAT, chat_body()))
            wait_until(lambda: server.metrics()["requests_active"] == 2)
        wait_until(lambda: server.metrics()["requests_active"] == 1)
        assert len(engine.requests) == 1


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never became true"


class WideTokenizer(ByteTokenizer):
    def token_bytes(self, token_id):
        return b"x" * 65536  # fills the socket's buffers, 10 MB at most, with few tokens


def test_a_reader_that_stops_reading_is_dropped(start_server):
    flood = say_then_hang(b"x" * 1_000)
    server = start_server(FakeEngine(flood), WideTokenizer(), write_s=0.2, poll_s=0.02)
    with server.connect() as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = completion_body(stream=True, max_tokens=60_000)
        client.send(request_bytes("POST", "/v1/completions", body))
        wait_for(server.engine.aborted)
        server.wait_until_idle()


def test_a_reader_that_stops_reading_keeps_no_other_stream_waiting(start_server, monkeypatch):
    flushing = threading.Semaphore(0)
    flush = Connection.flush

    def counted(connection):
        if connection.unsent:
            flushing.release()
        flush(connection)

    monkeypatch.setattr(Connection, "flush", counted)
    script = say_then_hang(b"x" * 1_000)
    engine = FakeEngine(lambda request: script(request) if request.seed else iter((b"hello",)))
    server = start_server(engine, WideTokenizer(), options={"max_concurrent_requests": "2"})
    with server.connect() as stuck, server.connect() as other:
        stuck.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = completion_body(stream=True, max_tokens=60_000, seed=1)
        stuck.send(request_bytes("POST", "/v1/completions", body))
        wait_for(flushing)
        body = completion_body(stream=True, max_tokens=60_000, seed=0)
        answer = other.ask("POST", "/v1/completions", body)
        texts = [event["choices"][0]["text"] for event in answer.events()[:-1]]
        assert len("".join(texts)) == 5 * 65536
        assert len(server.engine.requests) == 2 and not server.engine.requests[0].aborted


def test_an_answer_that_takes_too_long_is_504(start_server):
    server = start_server(
        FakeEngine(say_then_hang(b"some text")), options={"timeout_s": "0.2"}, poll_s=0.02
    )
    with server.connect() as client:
        answer = client.ask("POST", CHAT, chat_body())
        assert (answer.status, answer.error["type"]) == (504, "timeout_error")
        assert "0.2 s" in answer.error["message"]
        wait_for(server.engine.aborted)
        assert client.ask("GET", "/health").status == 200


def test_a_stream_that_takes_too_long_ends_with_an_error_event(start_server):
    server = start_server(
        FakeEngine(say_then_hang(b"some text")), options={"timeout_s": "0.2"}, poll_s=0.02
    )
    with server.connect() as client:
        answer = client.ask("POST", CHAT, chat_body(stream=True))
        *_chunks, error, done = answer.events()
        assert (error["error"]["code"], done) == ("timeout", "[DONE]")
        assert client.ask("GET", "/health").status == 200


def test_a_stream_that_never_began_times_out_with_a_status(start_server):
    server = start_server(FakeEngine(say_then_hang()), options={"timeout_s": "0.1"}, poll_s=0.02)
    with server.connect() as client:
        assert client.ask("POST", CHAT, chat_body(stream=True)).status == 504


def test_past_slots_and_queue_a_request_is_503_with_retry_after(start_server):
    engine = FakeEngine(say_then_hang())
    server = start_server(engine, options={"max_concurrent_requests": "1"}, poll_s=0.02)
    with server.connect() as first, server.connect() as second, server.connect() as third:
        first.send(request_bytes("POST", CHAT, chat_body()))
        wait_for(engine.submitted)
        second.send(request_bytes("POST", CHAT, chat_body()))
        wait_until(lambda: server.metrics()["requests_active"] == 2)
        answer = third.ask("POST", CHAT, chat_body())
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.error["type"] == "server_overloaded"
        assert third.ask("GET", "/health").status == 200
        first.close()
        wait_for(engine.submitted)  # the queued one moves up
        assert len(engine.requests) == 2


def test_a_queued_request_times_out_with_504(start_server):
    engine = FakeEngine(say_then_hang())
    server = start_server(
        engine, options={"max_concurrent_requests": "1", "timeout_s": "0.5"}, poll_s=0.02
    )
    with server.connect() as first, server.connect() as second:
        first.send(request_bytes("POST", CHAT, chat_body()))
        wait_for(engine.submitted)
        assert second.ask("POST", CHAT, chat_body()).status == 504


def test_five_hundred_idle_connections_leave_room_for_a_busy_one(start_server):
    server = start_server()
    idle = [server.connect() for _ in range(500)]
    try:
        with server.connect() as client:
            assert client.ask("POST", CHAT, chat_body()).status == 200
    finally:
        for client in idle:
            client.close()


def test_for_a_new_connection_past_the_limit_the_longest_idle_one_goes(start_server):
    server = start_server(num_connections=2)
    with server.connect() as first, server.connect() as second:
        for client in (first, second, first):
            assert client.ask("GET", "/health").status == 200
            assert server.http_server.wait_idle(10)  # an answer is here before its request is over
        with server.connect() as third:
            assert third.ask("GET", "/health").status == 200
            assert second.at_end()
            assert first.ask("GET", "/health").status == 200


@pytest.fixture
def all_in_use(start_server):
    """A server of two connections, both with a request in hand, and of one for short requests."""
    limits = {"num_connections": 2, "num_extra_connections": 1, "poll_s": 0.02}
    server = start_server(FakeEngine(say_then_hang()), **limits)
    with server.connect() as first, server.connect() as second:
        for client in (first, second):
            client.send(request_bytes("POST", CHAT, chat_body()))
            wait_for(server.engine.submitted)
        yield server
    wait_for(server.engine.aborted)


def test_while_all_connections_are_answered_another_may_ask_for_health_once(all_in_use):
    with all_in_use.connect() as probe:
        answer = probe.ask("GET", "/health")
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert probe.at_end()


def test_while_all_connections_are_answered_another_gets_503_for_what_takes_time(all_in_use):
    with all_in_use.connect() as other:
        answer = other.ask("POST", CHAT, chat_body())
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["message"] == "all connections are in use; try again"
        assert other.at_end()


def test_a_connection_beyond_the_extra_ones_is_503_before_it_asks(all_in_use):
    with all_in_use.connect() as probe, all_in_use.connect() as refused:
        answer = refused.read()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert refused.at_end()
        assert probe.ask("GET", "/health").status == 200


def test_a_connection_that_no_thread_can_be_started_for_is_503(start_server, monkeypatch, caplog):
    server = start_server()

    def no_thread(*_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(ConnectionThread, "start", no_thread)
        for _ in range(3):
            with server.connect() as client:
                assert client.read().status == 503
        with server.connect() as client:  # is heard out, so that its answer is not lost to a reset
            assert client.sock.recv(1, socket.MSG_PEEK)
            for _ in range(3):
                client.send(b"POST ")
                time.sleep(0.02)
            assert client.read().status == 503
    assert [record.getMessage() for record in caplog.records] == [
        "refused a connection: no thread can be started for it"
    ]
    with server.connect() as client:
        assert client.ask("GET", "/health").json()["part"] == "threads"
        assert client.ask("GET", "/v1/models").status == 200
