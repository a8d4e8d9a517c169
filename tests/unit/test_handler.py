"""What a handler writes: one response, in one piece, from what the application gives it."""

import re
import socket
from types import SimpleNamespace

import pytest

from marlin.server.http.budget import BodyBudget
from marlin.server.http.handler import Handler, Progress
from marlin.server.http.limits import Limits
from marlin.server.http.places import Places


@pytest.fixture
def answered():
    """answered(request, handle) -> what a client reads of it until the connection ends."""

    def run(request, handle):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            ours, address = listener.accept()
        with client, ours:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            application = SimpleNamespace(handle=handle, refuse=None)
            server = SimpleNamespace(
                application=application,
                limits=Limits(linger_s=0.1),
                body_budget=BodyBudget(Limits().bodies_bytes, Limits().bodies_wait_s),
                draining=False,
                places=Places(1, 0),
            )
            Handler(ours, address, server)
            ours.close()
            return b"".join(iter(lambda: client.recv(1 << 16), b""))

    return run


GET = b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: mine\r\nConnection: close\r\n\r\n"


def test_a_response_is_its_status_its_fields_an_empty_line_and_its_content(answered):
    data = answered(GET, lambda handler: handler.reply(404, b"no", "text/plain", [("A", "b")]))
    # RFC 9110 section 5.6.7: a date is in this form, whatever the locale.
    data, num_dates = re.subn(
        rb"Date: [A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT\r\n", b"", data
    )
    assert num_dates == 1
    assert data == (
        b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nX-Request-ID: mine\r\n"
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
