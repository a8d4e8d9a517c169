"""HTTP at its bounds: what each refusal says, the most that is read and one byte more."""

import dataclasses

import pytest
from test_http import Bytes, head

from marlin.errors import FramingError
from marlin.server.http import message as http
from marlin.server.http.handler import _http_date, client_of
from marlin.server.http.limits import Limits

SMALL = Limits(
    request_line_bytes=30,
    num_header_fields=3,
    body_bytes=100,
    chunk_line_bytes=20,
    num_trailer_fields=2,
)
GET = "GET / HTTP/1.1"


def refusal(*lines, limits=SMALL):
    with pytest.raises(FramingError) as caught:
        http.parse_head("\r\n".join(lines).encode("latin-1"), limits)
    assert caught.value.close
    return caught.value.status, caught.value.message


LENGTH = "Content-Length is not a decimal number of bytes"


@pytest.mark.parametrize(
    ("lines", "status", "message"),
    [
        (("GET /" + "a" * 17 + " HTTP/1.1", "Host: h"), 414, "request line longer than 30 bytes"),
        ((GET, "Host: h", "A: b", "C: d", "E: f"), 431, "more than 3 header fields"),
        (("GET", "Host: h"), 400, "malformed request line"),
        (("GET / HTTP/2.0", "Host: h"), 505, "HTTP/2.0 is not spoken here, HTTP/1.1 is"),
        (("GET / HTTP/0.9",), 505, "HTTP/0.9 is not spoken here, HTTP/1.1 is"),
        ((GET,), 400, "missing Host header field"),
        ((GET, "Host"), 400, "malformed header field"),
        ((GET, "Host: h", "host: h"), 400, "repeated host header field"),
        ((GET, "Host: h", "Expect: a", "Expect: a"), 400, "repeated expect header field"),
        (("GET a HTTP/1.1", "Host: h"), 400, "malformed request target"),
        (("GET ftp://h/ HTTP/1.1", "Host: h"), 400, "malformed request target"),
        (
            ("POST / HTTP/1.1", "Host: h", "Content-Length: 1", "Transfer-Encoding: chunked"),
            *(400, "both Content-Length and Transfer-Encoding"),
        ),
        (
            ("POST / HTTP/1.0", "Transfer-Encoding: chunked"),
            *(400, "Transfer-Encoding in an HTTP/1.0 request"),
        ),
        (
            ("POST / HTTP/1.1", "Host: h", "Transfer-Encoding: gzip"),
            *(501, "the only transfer coding spoken here is chunked"),
        ),
        *(
            (
                (f"{method} / HTTP/1.1", "Host: h"),
                *(411, f"{method} needs Content-Length or Transfer-Encoding: chunked"),
            )
            for method in ("POST", "PUT", "PATCH")
        ),
        ((GET, "Host: h", "Content-Length: " + "1" * 19), 400, LENGTH),
        ((GET, "Host: h", "Content-Length:"), 400, LENGTH),
    ],
)
def test_a_head_that_is_refused_says_why(lines, status, message):
    assert refusal(*lines) == (status, message)


@pytest.mark.parametrize(
    "name", ["Host", "Content-Length", "Transfer-Encoding", "Authorization", "Content-Type"]
)
def test_a_field_that_decides_something_stands_once(name):
    status, message = refusal(GET, f"{name}: 1", f"{name}: 1")
    assert (status, message) == (400, f"repeated {name.lower()} header field")


def test_the_most_of_a_head_is_read():
    longest = "GET /" + "a" * 16 + " HTTP/1.1"
    data = "\r\n".join([longest, "Host: h", "A: b", "C: d"]).encode()
    assert http.parse_head(data, SMALL).path == "/" + "a" * 16
    assert head(GET, "Host: h", "Content-Length: " + "9" * 18).content_length == 10**18 - 1
    assert head("DELETE / HTTP/1.1", "Host: h").content_length == 0
    assert head("POST / HTTP/1.1", "Host: h", "Content-Length: 0").has_body is False


@pytest.mark.parametrize(
    ("version", "expect", "expects"),
    [
        ("1.1", "100-continue", True),
        ("1.1", "100-Continue", True),
        ("1.0", "100-continue", False),
        ("1.1", "x", False),
        ("1.1", "", False),
    ],
)
def test_who_expects_to_be_told_to_continue_has_said_so(version, expect, expects):
    assert head(f"GET / HTTP/{version}", "Host: h", f"Expect: {expect}").expects_continue is expects
    assert head(GET, "Host: h").expects_continue is False


CHUNKED = ("POST / HTTP/1.1", "Host: h", "Transfer-Encoding: chunked")


def read_chunks(wire, limits=SMALL, admit=lambda _bytes: None):
    return http.read_body(Bytes(wire), head(*CHUNKED), limits, admit)


@pytest.mark.parametrize(
    ("wire", "status", "message"),
    [
        (b"x\r\n", 400, "malformed chunk size"),
        (b"1" * 9 + b"\r\n", 400, "malformed chunk size"),
        (b"2\r\nabc\r\n", 400, "chunk is longer than its size says"),
        (b"65\r\n", 413, "request body larger than 100 bytes"),
        (b"3c\r\n" + b"x" * 60 + b"\r\n29\r\n", 413, "request body larger than 100 bytes"),
        (b"0\r\nx\r\n", 400, "malformed trailer field"),
        (b"0\r\nA: b\n", 400, "malformed trailer field"),
        (b"0\r\n" + b"A: b\r\n" * 3, 431, "more than 2 trailer fields"),
    ],
)
def test_a_chunked_body_that_is_refused_says_why(wire, status, message):
    with pytest.raises(FramingError) as caught:
        read_chunks(wire)
    assert (caught.value.status, caught.value.message) == (status, message)


def test_the_most_of_a_chunked_body_is_read():
    assert read_chunks(b"64\r\n" + b"x" * 100 + b"\r\n0\r\n\r\n") == b"x" * 100
    assert read_chunks(b"0\r\nA: b\r\nC: d\r\n\r\n") == b""
    assert read_chunks(b"00000001\t ;e=f\r\nx\r\n0\r\n\r\n") == b"x"
    admitted = []
    read_chunks(b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n", admit=admitted.append)
    assert admitted == [2, 5]


def test_framing_may_take_64_kib_and_8_bytes_for_each_of_the_body():
    """A line of 1,002 bytes and the end of its chunk are 1,004 bytes, of which 8 are earned."""
    limits = dataclasses.replace(SMALL, chunk_line_bytes=1024)
    chunk = b"1;" + b"e" * 998 + b"\r\nx\r\n"
    assert len(chunk) == 1005
    most = 64 * 1024 // (1004 - 8)
    last = b"0\r\n\r\n"
    assert read_chunks(chunk * most + last, limits) == b"x" * most
    with pytest.raises(FramingError, match="larger than 100 bytes"):
        read_chunks(chunk * (most + 1) + last, limits)


def test_a_body_of_known_length_is_admitted_before_it_is_read():
    admitted = []
    parsed = head("POST / HTTP/1.1", "Host: h", "Content-Length: 3")
    assert http.read_body(Bytes(b"abcd"), parsed, SMALL, admitted.append) == b"abc"
    assert admitted == [3]


def test_an_empty_chunk_is_none():
    with pytest.raises(AssertionError, match="an empty chunk ends the body"):
        http.chunk(b"")


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::", "2001:db8:1:2::"),
        ("2001:db8:1:3::1", "2001:db8:1:3::"),
        ("::1", "::"),
    ],
)
def test_a_client_is_an_ipv4_address_or_a_64_bit_network(address, client):
    assert client_of(address) == client


def test_a_date_is_written_in_one_way():
    assert _http_date(784111777) == "Sun, 06 Nov 1994 08:49:37 GMT"  # RFC 9110 section 5.6.7
