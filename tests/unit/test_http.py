"""The HTTP grammar alone: heads parsed, lengths settled, nothing ambiguous let through."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marlin.errors import FramingError
from marlin.server.http import message as http
from marlin.server.http.limits import Limits

LIMITS = Limits()


def head(*lines):
    return http.parse_head("\r\n".join(lines).encode("latin-1"), LIMITS)


class Bytes:
    """A reader over bytes that are all there."""

    def __init__(self, data):
        self.data = data

    def read_exact(self, num_bytes):
        taken, self.data = self.data[:num_bytes], self.data[num_bytes:]
        if len(taken) < num_bytes:
            raise EOFError
        return taken

    def read_line(self, max_bytes):
        end = self.data.find(b"\n", 0, max_bytes)
        if end < 0:
            raise EOFError
        return self.read_exact(end + 1)


def test_a_head_is_split_into_method_path_and_fields():
    parsed = head("GET /v1/models?x=1#y HTTP/1.1", "Host: h", "X-Two: \t a b ", "x-two:c", "Empty:")
    assert (parsed.method, parsed.path, parsed.minor) == ("GET", "/v1/models", 1)
    assert parsed.headers == {"host": "h", "x-two": "a b, c", "empty": ""}
    assert (parsed.content_length, parsed.has_body, parsed.keep_alive) == (0, False, True)


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        ("1.1", None, True),
        ("1.1", "close", False),
        ("1.1", "keep-alive, Close", False),
        ("1.1", "closed", True),
        ("1.0", None, False),
        ("1.0", "Keep-Alive", True),
        ("1.0", "keep-alive,close", False),
        ("1.1", "keep-alive,\tclose", False),
        ("1.1", "clo se", True),
        ("1.7", None, True),
    ],
)
def test_keep_alive_follows_version_and_connection(version, connection, kept):
    fields = [] if connection is None else [f"Connection: {connection}"]
    assert head(f"GET / HTTP/{version}", "Host: h", *fields).keep_alive is kept


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("*", "*"),
        ("//x/y", "//x/y"),
        ("http://h", "/"),
        ("HTTPS://h:1/a?b", "/a"),
        ("/a%2Fb", "/a%2Fb"),
    ],
)
def test_targets_become_paths(target, path):
    assert head(f"GET {target} HTTP/1.1", "Host: h").path == path


def test_a_chunked_body_has_no_declared_length():
    parsed = head("POST / HTTP/1.1", "Host: h", "Transfer-Encoding: chunked")
    assert parsed.content_length is None and parsed.has_body


def test_chunks_carry_their_size_in_hexadecimal():
    assert http.chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"


@pytest.mark.parametrize("split", [1, 2, 7, 1000])
def test_a_chunked_body_is_the_same_however_it_was_cut(split):
    body = bytes(range(256)) * 3
    pieces = [body[i : i + split] for i in range(0, len(body), split)]
    wire = b"".join(http.chunk(piece) for piece in pieces) + http.LAST_CHUNK + b"NEXT"
    reader = Bytes(wire)
    parsed = head("POST / HTTP/1.1", "Host: h", "Transfer-Encoding: chunked")
    admitted = []
    assert http.read_body(reader, parsed, LIMITS, admitted.append) == body
    assert reader.data == b"NEXT"
    assert admitted == sorted(admitted) and admitted[-1:] == ([len(body)] if body else [])


def _anything(_num_bytes):
    """An admission of every body."""


def test_body_limits_hold_at_the_byte():
    limits = dataclasses.replace(LIMITS, body_bytes=10)
    exact = head("POST / HTTP/1.1", "Host: h", "Content-Length: 10")
    assert http.read_body(Bytes(b"x" * 10), exact, limits, _anything) == b"x" * 10
    with pytest.raises(FramingError) as caught:
        http.read_body(Bytes(b""), exact._replace(content_length=11), limits, _anything)
    assert caught.value.status == 413 and caught.value.close


LINE = st.sampled_from(
    [b"GET / HTTP/1.1", b"POST /v1/completions HTTP/1.0", b"Host: h", b"Content-Length: 3"]
    + [b"Transfer-Encoding: chunked", b"Connection: close", b"X: \xff", b"Expect: 100-continue"]
)


@given(st.lists(LINE | st.binary(max_size=40), max_size=8) | st.binary(max_size=200))
@settings(max_examples=500)
def test_no_bytes_whatever_get_past_the_head_parser_as_anything_but_an_http_error(lines):
    data = lines if isinstance(lines, bytes) else b"\r\n".join(lines)
    try:
        parsed = http.parse_head(data, LIMITS)
    except FramingError as error:
        assert 400 <= error.status < 600 and error.close
        return
    assert parsed.path == "*" or parsed.path.startswith("/")
    assert parsed.content_length is None or parsed.content_length >= 0
    for name, value in parsed.headers.items():
        assert name == name.lower() and not set(value) & set("\r\n\0")


CHUNK_PARTS = st.sampled_from([b"3\r\nabc\r\n", b"0\r\n", b"\r\n", b"A: b\r\n", b"f"])


@given(st.binary(max_size=100) | st.lists(CHUNK_PARTS))
@settings(max_examples=500)
def test_no_bytes_whatever_get_past_the_chunk_reader_as_anything_but_a_known_error(wire):
    wire = wire if isinstance(wire, bytes) else b"".join(wire)
    parsed = head("POST / HTTP/1.1", "Host: h", "Transfer-Encoding: chunked")
    try:
        assert len(http.read_body(Bytes(wire), parsed, LIMITS, _anything)) < len(wire)
    except FramingError as error:
        assert error.close
    except EOFError:
        pass
