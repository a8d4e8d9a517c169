"""What a handler writes: one response, in one piece, from what the application gives it."""

import math
import re
import socket
from types import SimpleNamespace

import pytest

from marlin.errors import FramingError
from marlin.server.http.budget import BodyBudget
from marlin.server.http.handler import Handler, Progress
from marlin.server.http.limits import Limits
from marlin.server.http.places import Places


@pytest.fixture
def answered():
    """answered(request, handle) -> what a client reads of it until the connection ends.

    `refused` are the errors of what was no readable request; `server` is what the last one ran on.
    """
    refused = []

    def refuse(handler, error):
        refused.append((error.status, error.message))
        handler.reply(error.status, b"", "text/plain")

    def run(request, handle, ends=True, draining=False, **limits):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            ours, address = listener.accept()
        with client, ours:
            client.sendall(request)
            if ends:
                client.shutdown(socket.SHUT_WR)
            application = SimpleNamespace(handle=handle, refuse=refuse)
            run.server = server = SimpleNamespace(
                application=application,
                limits=Limits(**{"linger_s": 0.1, **limits}),
                body_budget=BodyBudget(Limits().bodies_bytes, Limits().bodies_wait_s),
                draining=draining,
                places=Places(1, 0),
            )
            server.places.enter(ours, address[0])
            Handler(ours, address, server)
            ours.close()
            return b"".join(iter(lambda: client.recv(1 << 16), b""))

    run.refused = refused
    return run


GET = b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: mine\r\nConnection: close\r\n\r\n"


FOR_BROWSERS = b"X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n"


def test_a_response_is_its_status_its_fields_an_empty_line_and_its_content(answered):
    data = answered(GET, lambda handler: handler.reply(404, b"no", "text/plain", [("A", "b")]))
    # RFC 9110 section 5.6.7: a date is in this form, whatever the locale.
    data, num_dates = re.subn(
        rb"Date: [A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT\r\n", b"", data
    )
    assert num_dates == 1
    assert data == (
        b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\n"
        + FOR_BROWSERS
        + b"X-Request-ID: mine\r\n"
        b"Connection: close\r\nContent-Length: 2\r\nA: b\r\n\r\nno"
    )


def test_a_line_break_cannot_enter_a_response_head_and_nothing_of_that_head_is_sent(answered):
    def handle(handler):
        with pytest.raises(AssertionError, match="line break"):
            handler.reply(200, b"", "text/plain", [("X", "a\r\nSet-Cookie: b")])
        assert handler.progress is Progress.NOT_BEGUN
        handler.reply(500, b"", "text/plain")

    data = answered(GET, handle)
    assert data.startswith(b"HTTP/1.1 500 ") and data.count(b"HTTP/1.1") == 1
    assert b"X: a" not in data and b"Cookie" not in data


@pytest.mark.parametrize("content", [b"", b"x" * 1000])
def test_a_whole_response_and_each_part_of_a_stream_are_one_write(answered, content):
    writes = []

    def watched(act):
        def handle(handler):
            send = handler.connection.send
            handler.connection.send = lambda data: (writes.append(data), send(data))
            act(handler)

        return handle

    answered(GET, watched(lambda handler: handler.reply(200, content, "text/plain")))
    assert len(writes) == 1 and writes[0].endswith(b"\r\n\r\n" + content)

    def stream(handler):
        handler.stream("text/plain", b"one")
        handler.stream("text/plain", content, last=True)

    writes.clear()
    answered(GET, watched(stream))
    assert len(writes) == 2 and writes[0].endswith(b"\r\n\r\n3\r\none\r\n")
    assert writes[1].endswith(b"0\r\n\r\n")


def ok(handler):
    handler.reply(200, b"ok", "text/plain")


def post(content, *fields, method="POST", version="1.1"):
    lines = [f"{method} / HTTP/{version}", "Host: a", *fields, f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


@pytest.mark.parametrize(
    ("request_bytes", "limits", "status", "message"),
    [
        (b"GET / HT", {"head_s": 0.05}, 408, "request head did not arrive within 0.05 s"),
        (b"GET / HTTP/1.1\r\n" + b"a" * 99, {"head_bytes": 50}, 431,
         "request head larger than 50 bytes"),
        (b"GET / HTTP/1.1\nHost: a\n\n", {}, 400, "lines of a request head end in CR LF"),
        (b"GET\r\n\r\n", {}, 400, "malformed request line"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_with_its_reason(
    answered, request_bytes, limits, status, message
):
    data = answered(request_bytes, ok, ends=False, **limits)
    assert answered.refused == [(status, message)]
    assert data.startswith(b"HTTP/1.1 %d " % status) and b"Connection: close\r\n" in data
    assert b"X-Request-ID" not in data


def failing_body(caught):
    def handle(handler):
        with pytest.raises(FramingError) as error:
            handler.read_body()
        caught.append((error.value.status, error.value.message))
        handler.reply(error.value.status, b"", "text/plain")

    return handle


@pytest.mark.parametrize(
    ("request_bytes", "limits", "status", "message"),
    [
        (post(b"ab")[:-1], {"body_s": 0.05}, 408, "request body did not arrive within 0.05 s"),
        (post(b"a" * 11), {"body_bytes": 10}, 413, "request body larger than 10 bytes"),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 99,
            *({"chunk_line_bytes": 50}, 400, "chunk line too long"),
        ),
    ],
)
def test_a_body_that_is_refused_says_why_and_ends_the_connection(
    answered, request_bytes, limits, status, message
):
    caught = []
    data = answered(request_bytes, failing_body(caught), ends=False, **limits)
    assert caught == [(status, message)]
    assert b"Connection: close\r\n" in data
    assert answered.server.body_budget.used_bytes == 0


@pytest.mark.parametrize(("size", "holds"), [(10, 0), (11, 11)])
def test_a_body_above_the_small_ones_holds_its_room_until_its_answer_is_out(answered, size, holds):
    seen = []

    def handle(handler):
        share, places = handler.body_share, handler.server.places
        seen.append((handler.request in places._receiving, handler.request in places._answering))
        assert handler.read_body() == b"a" * size
        assert handler.read_body() == b""  # once
        seen.append((handler.request in places._receiving, handler.request in places._answering))
        seen.append((share.num_bytes, handler.server.body_budget.used_bytes, share.client))
        assert handler.connection.look_s == math.inf
        ok(handler)

    answered(post(b"a" * size, "Connection: close"), handle, small_body_bytes=10)
    client = "127.0.0.1" if holds else ""
    assert seen == [(True, False), (False, True), (holds, holds, client)]
    assert answered.server.body_budget.used_bytes == 0
    assert answered.server.places.num_busy == 0


def test_a_request_without_a_body_is_received_with_its_head(answered):
    seen = []

    def handle(handler):
        seen.append(handler.request in handler.server.places._answering)
        assert handler.read_body() == b""
        ok(handler)

    answered(GET, handle)
    assert seen == [True]


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [("a" * 128, True), ("a" * 129, False), ("A.z_0:-", True), ("a b", False), ("", False)],
)
def test_a_request_keeps_the_id_that_it_came_with_if_that_can_be_echoed(answered, given, is_kept):
    ids = []

    def handle(handler):
        ids.append(handler.request_id)
        ok(handler)

    request = f"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: {given}\r\n\r\n".encode()
    data = answered(request + request, handle)
    if is_kept:
        assert ids == [given, given]
    else:
        assert re.fullmatch("req-[0-9a-f]{24}", ids[0]) and ids[0] != ids[1]
    assert data.count(f"X-Request-ID: {ids[0]}\r\n".encode()) == (2 if is_kept else 1)


def without_date(data):
    return re.sub(rb"Date: [^\r]*\r\n", b"", data)


def streamed(handler):
    handler.stream("text/event-stream", b"one")
    assert handler.progress is Progress.STREAMING and handler.status == 200
    handler.stream("text/event-stream", b"")
    handler.stream("text/event-stream", b"two", last=True)
    assert handler.progress is Progress.WHOLE


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Content-Type-Options: nosniff\r\n"
    b"Cache-Control: no-store\r\nX-Request-ID: mine\r\n%bX-Accel-Buffering: no\r\n%b\r\n"
)


def test_a_stream_is_chunks_in_http_1_1_and_ends_with_its_connection_in_1_0(answered):
    request = b"GET / HTTP/1.%d\r\nHost: a\r\nX-Request-ID: mine\r\nConnection: keep-alive\r\n\r\n"
    data = without_date(answered(request % 1, streamed))
    head = STREAM_HEAD % (b"", b"Transfer-Encoding: chunked\r\n")
    assert data == head + b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    data = without_date(answered(request % 0 + request % 0, streamed))
    assert data == STREAM_HEAD % (b"Connection: close\r\n", b"") + b"onetwo"


def test_a_whole_answer_keeps_a_1_0_connection_that_asked_for_it(answered):
    request = b"GET / HTTP/1.0\r\nX-Request-ID: mine\r\nConnection: keep-alive\r\n\r\n"
    answer = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
        + FOR_BROWSERS
        + b"X-Request-ID: mine\r\n"
        b"Connection: keep-alive\r\nContent-Length: 2\r\n\r\nok"
    )
    assert without_date(answered(request * 2, ok)) == answer * 2


def test_an_answer_to_head_has_the_length_of_its_content_and_none(answered):
    data = answered(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", ok)
    assert b"Content-Length: 2\r\n" in data and data.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(("size", "answers"), [(10, 2), (11, 1)])
def test_a_body_that_nobody_read_is_dropped_up_to_a_size(answered, size, answers):
    request = post(b"a" * size)
    data = answered(request * 2, ok, unread_body_bytes=10)
    assert data.count(b"HTTP/1.1 200 OK") == answers
    assert data.count(b"Connection: close") == answers % 2


def test_a_body_of_no_known_length_or_not_sent_yet_is_not_dropped(answered):
    chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    for request in (chunked, post(b"ab", "Expect: 100-continue")):
        data = answered(request * 2, ok)
        assert data.count(b"HTTP/1.1 ") == 1 and b"Connection: close" in data


def test_who_expects_it_is_told_to_continue_unless_the_body_is_there(answered):
    def handle(handler):
        handler.read_body()
        ok(handler)

    data = answered(post(b"ab", "Expect: 100-continue"), handle)
    assert not data.startswith(b"HTTP/1.1 100")
    data = answered(post(b"ab", "Expect: 100-continue")[:-2], handle)
    assert data == b"HTTP/1.1 100 Continue\r\n\r\n"
    data = answered(post(b"ab")[:-2], handle)
    assert data == b""


def test_an_extra_place_is_for_one_request(answered, monkeypatch):
    def handle(handler):
        assert handler.is_extra is False
        ok(handler)

    answered(GET, handle)
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    monkeypatch.setattr(Places, "is_extra", lambda _places, _sock: True)
    data = answered(request * 2, ok)
    assert data.count(b"HTTP/1.1 200 OK") == 1 and b"Connection: close" in data


def test_a_server_that_drains_answers_what_it_has_and_takes_no_more(answered):
    def handle(handler):
        handler.server.draining = True
        ok(handler)

    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    data = answered(request * 2, handle)
    assert data.count(b"HTTP/1.1 200 OK") == 1 and b"Connection: close" in data


def test_a_connection_that_was_taken_before_a_server_drains_gets_one_answer(answered):
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    data = answered(request * 2, ok, draining=True)
    assert data.count(b"HTTP/1.1 200 OK") == 1 and b"Connection: close" in data


def test_further_fields_stand_in_every_answer_of_their_request_alone(answered):
    def handle(handler):
        if handler.path == "/a":
            handler.answer_fields.append(("A", "b"))
        ok(handler)

    first, second = (b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % path for path in (b"a", b"b"))
    data = answered(first + second, handle)
    assert data.count(b"A: b\r\n") == 1 and data.count(b"200 OK") == 2
