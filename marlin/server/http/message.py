"""HTTP/1.1 as this server reads it: request heads and the framing of bodies.

Pure functions over bytes, and one over a reader of bytes; no sockets, no routes, no JSON. What
RFC 9112 leaves to the recipient is decided for strictness: whatever two parsers could read
differently is a 400 and the end of the connection.
"""

import re
from typing import NamedTuple

from marlin.errors import FramingError

# A head is read as latin-1: a character a byte.
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rf"({_TOKEN}) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
# Field values: visible bytes, space, tab and the opaque high half (RFC 9110 section 5.5); no
# control bytes.
_FIELD = re.compile(rf"({_TOKEN}):([\t\x20-\x7e\x80-\xff]*)")
# int() would also take "+5", "1_0", spaces and full-width digits.
_CONTENT_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[\t ]*(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_TRAILER = re.compile(_FIELD.pattern + r"\r\n")
_ABSOLUTE_FORM = re.compile(r"https?://[^/?#]*", re.IGNORECASE)
# Fields whose repetition changes where a message ends, whom it is for or who sent it.
_SINGLE_FIELDS = frozenset(
    ("host", "content-length", "transfer-encoding", "authorization", "content-type", "expect")
)


class RequestHead(NamedTuple):
    """A parsed request head.

    Attributes:
        method: as sent; methods are case-sensitive.
        path: target without query, still percent-encoded, always starting with "/" (or "*").
        headers: lower-case name to value (latin-1) without surrounding blanks; repeated fields are
            joined by ", ".
        query: what the target has behind a question mark; no endpoint but one reads it.
        minor: 0 for HTTP/1.0, 1 for HTTP/1.1 and later 1.x.
        content_length: declared body length, 0 when there is none, None when chunked.
        keep_alive: the client wants the connection kept.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]
    minor: int
    content_length: int | None
    keep_alive: bool

    @property
    def has_body(self):
        return self.content_length != 0

    @property
    def expects_continue(self):
        return self.minor >= 1 and self.headers.get("expect", "").lower() == "100-continue"


def parse_head(data, limits):
    """Parse a request head.

    Args:
        data: the bytes before the empty line, without its CRLFs.
        limits: http.limits.Limits.

    Returns:
        RequestHead.

    Raises:
        FramingError: 400, 411, 414, 431, 501 or 505.
    """
    lines = data.decode("latin-1").split("\r\n")
    if len(lines[0]) > limits.request_line_bytes:
        raise FramingError(f"request line longer than {limits.request_line_bytes} bytes", 414)
    if len(lines) - 1 > limits.num_header_fields:
        raise FramingError(f"more than {limits.num_header_fields} header fields", 431)
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None:
        raise FramingError("malformed request line")
    method, target, major, minor = match.groups()
    if major != "1":
        raise FramingError(f"HTTP/{major}.{minor} is not spoken here, HTTP/1.1 is", 505)
    minor = min(int(minor), 1)
    headers = _parse_fields(lines[1:])
    if minor == 1 and "host" not in headers:
        raise FramingError("missing Host header field")
    path, query = _parse_target(target)
    return RequestHead(
        method=method,
        path=path,
        query=query,
        headers=headers,
        minor=minor,
        content_length=_content_length(method, headers, minor),
        keep_alive=_keep_alive(headers, minor),
    )


def _parse_fields(lines):
    headers = {}
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise FramingError("malformed header field")
        name, value = match[1].lower(), match[2].strip(" \t")
        if name not in headers:
            headers[name] = value
        elif name in _SINGLE_FIELDS:
            raise FramingError(f"repeated {name} header field")
        else:
            headers[name] += ", " + value
    return headers


def _parse_target(target):
    if not target.startswith("/") and target != "*":
        absolute = _ABSOLUTE_FORM.match(target)  # RFC 9112 section 3.2.2: a server must accept it
        if absolute is None:
            raise FramingError("malformed request target")
        target = target[absolute.end() :]
        target = target if target.startswith("/") else "/" + target
    path, _, query = target.partition("#")[0].partition("?")
    return path, query


def _content_length(method, headers, minor):
    """Body length by RFC 9112 section 6.3, or None for chunked; everything ambiguous is refused."""
    length = headers.get("content-length")
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if length is not None:
            raise FramingError("both Content-Length and Transfer-Encoding")
        if minor == 0:
            raise FramingError("Transfer-Encoding in an HTTP/1.0 request")
        if coding.lower() != "chunked":
            raise FramingError("the only transfer coding spoken here is chunked", 501)
        return None
    if length is None:
        if method in ("POST", "PUT", "PATCH"):
            raise FramingError(f"{method} needs Content-Length or Transfer-Encoding: chunked", 411)
        return 0
    if _CONTENT_LENGTH.fullmatch(length) is None:
        raise FramingError("Content-Length is not a decimal number of bytes")
    return int(length)


def _keep_alive(headers, minor):
    if "connection" not in headers:
        return minor == 1
    options = [option.strip(" \t") for option in headers["connection"].lower().split(",")]
    return "close" not in options and (minor == 1 or "keep-alive" in options)


def too_large(limits):
    return FramingError(f"request body larger than {limits.body_bytes} bytes", 413)


def read_body(reader, head, limits, admit):
    """Read a request's body to its end.

    Args:
        reader: has read_exact(n) and read_line(max_bytes), both raising on a deadline or a closed
            peer.
        head: its RequestHead.
        limits: http.limits.Limits.
        admit: called with the number of bytes of the body, before so many are read; with chunks,
            more than once.

    Returns:
        bytes, unchunked.

    Raises:
        FramingError: 413 past `limits.body_bytes`, 400 for malformed chunks; and what admit
            raises.
    """
    if head.content_length is None:
        return _read_chunks(reader, limits, admit)
    if head.content_length > limits.body_bytes:
        raise too_large(limits)
    admit(head.content_length)
    return reader.read_exact(head.content_length)


def _read_chunks(reader, limits, admit):
    body = bytearray()
    framing_budget = 64 * 1024
    while True:
        line = reader.read_line(limits.chunk_line_bytes)
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise FramingError("malformed chunk size")
        size = int(match[1], 16)
        framing_budget += limits.chunk_overhead * size - len(line) - 2
        if len(body) + size > limits.body_bytes or framing_budget < 0:
            raise too_large(limits)
        if size == 0:
            break
        admit(len(body) + size)
        body += reader.read_exact(size)
        if reader.read_exact(2) != b"\r\n":
            raise FramingError("chunk is longer than its size says")
    for _ in range(limits.num_trailer_fields + 1):
        line = reader.read_line(limits.chunk_line_bytes)
        if line == b"\r\n":
            return bytes(body)
        if _TRAILER.fullmatch(line.decode("latin-1")) is None:
            raise FramingError("malformed trailer field")
    raise FramingError(f"more than {limits.num_trailer_fields} trailer fields", 431)


def chunk(data):
    """data as one chunk of the chunked transfer coding; an empty one would end the body."""
    assert data, "an empty chunk ends the body"
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
