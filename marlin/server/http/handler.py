"""One client's connection: its requests one after another, each body in, each response out.

The life cycle and names of http.server's BaseHTTPRequestHandler, with a parser, deadlines and
errors of our own: a head is read against one deadline and parsed strictly, a head and its content
leave in one write. The connection's framing stays true whatever happens above: a body that nobody
read is read and dropped or ends the connection, HTTP/1.0 gets no chunks, HEAD gets no content.
Knows no routes, no JSON and no log.
"""

import enum
import functools
import ipaddress
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Protocol

from marlin.errors import FramingError, MarlinError, OverloadedError
from marlin.server.http import message
from marlin.server.http.budget import Share
from marlin.server.http.connection import (
    BareLineFeed,
    Connection,
    LineTooLong,
    PeerGone,
    ReadDeadline,
)
from marlin.turns import is_uid

if TYPE_CHECKING:
    from marlin.server.http.listener import HttpServer

Fields = Sequence[tuple[str, str]]
# What is sent is what it says it is, and is kept by nobody on the way.
_FOR_BROWSERS = (("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"))
# How often a large body's reader looks whether it has to go.
_LOOK_S = 0.25
# What may be echoed into a header and a log line without further care.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@functools.lru_cache(maxsize=1)  # formatting it takes as long as the rest of a head
def _http_date(second: int) -> str:
    """IMF-fixdate of RFC 9110 section 5.6.7, in any locale. second: since the epoch."""
    return formatdate(second, usegmt=True)


def client_of(address: str) -> str:
    """Who a peer is where clients share something: a user of this machine, an IPv4 address, or the
    /64 network of an IPv6 one, which a single host may have all addresses of."""
    if is_uid(address):
        return address
    peer = ipaddress.ip_address(address)
    if peer.version == 4:
        return address
    if peer.ipv4_mapped is not None:
        return str(peer.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(peer) >> 64 << 64))


class Application(Protocol):
    """What a server serves. handle() and refuse() may raise PeerGone, which ends the connection."""

    def handle(self, handler: "Handler") -> None:
        """Answer the request in hand."""

    def refuse(self, handler: "Handler", error: MarlinError) -> None:
        """Answer what was not a readable request."""

    def missed(self, what: str) -> None:
        """The system had no "threads" for a connection, or no "memory" for what came on one."""


class Witness(Protocol):
    """What records an answer.

    Attributes:
        parameters: digest of what was asked for beside the texts, once that is known.
    """

    parameters: str | None

    def saw(self, content: bytes) -> None:
        """A next part of it goes out."""

    def end(self, **facts: Any) -> None:
        """It is over; facts: what became of it."""


class Progress(enum.Enum):
    """How far the answer to the request in hand has come."""

    NOT_BEGUN = enum.auto()
    STREAMING = enum.auto()  # its status is out: what goes wrong now is an event of the stream
    WHOLE = enum.auto()


class Handler(BaseHTTPRequestHandler):
    """What the application works with; its attributes are of the request in hand.

    Attributes:
        head: http.message.RequestHead; command and path are its method and path. All are None of
            what was not a readable request.
        request_id: sent back as X-Request-ID.
        started: when its first byte was there, monotonic seconds.
        progress: Progress of its answer.
        body_share: http.budget.Share, what the body holds of the memory for all of them; given back
            after the request.
        status: the status sent, None before.
        answer_fields: (name, value) pairs of headers for whatever answers the request.
        witness: hears of all that is answered, once there is one.
        give_back: called before an answer's last bytes: whoever has them may ask again at once.
        known_as: whose the request is, once that is known better than by its address.
        principal: api.keys.Principal of the key that came with it; None for none.
        failing: an error to the last bytes of a stream that has begun, where its owner has some.
        is_extra: all places are taken, and this one is for a request that takes no time.
        close_connection: no request may follow on this connection.
    """

    protocol_version = "HTTP/1.1"
    server: "HttpServer"

    def setup(self):
        self.limits = self.server.limits
        self.connection = Connection(self.request, self.limits.write_s)
        self.is_extra = self.server.places.is_extra(self.request)
        self._wait_s, self._has_asked = self.limits.head_s, False  # whoever connects is to ask

    def handle(self):
        try:
            super().handle()
            self.connection.finish(self.limits.linger_s)
        except PeerGone:
            return

    @functools.cached_property
    def _peer(self):
        return client_of(self.client_address[0])

    @property
    def client(self) -> str:
        """Whose the request in hand is, where clients share something: whoever has been told apart,
        or else the peer."""
        return self.known_as or self._peer

    def finish(self):
        """Nothing is left to write: every answer went out in one piece."""

    def handle_one_request(self):
        if self.server.draining and self._has_asked:
            self.close_connection = True
            return
        self.connection.set_deadline(self._wait_s)
        self.connection.wait_for_data()
        self._wait_s, self._has_asked = self.limits.idle_s, True
        self.server.places.begin(self.request)
        self.body_share = Share(self.server.body_budget, self.connection.expire)
        try:
            self._begin()
            if self.parse_request():
                self.server.application.handle(self)
        finally:
            self.body_share.set(0)
            self.server.places.end(self.request)

    def _begin(self):
        self.started = time.monotonic()
        self.head: Any = None
        self.command: Any = None
        self.path: Any = None
        self.request_id = self.status = None
        self.progress, self.answer_fields = Progress.NOT_BEGUN, []
        self.known_as = self.principal = None
        self.failing: Callable[[MarlinError], bytes | None] | None = None
        self.give_back: Callable[[], None] = lambda: None
        self.witness: Witness | None = None
        self._chunked = self._body_unread = False

    def parse_request(self):
        """Read the next head; returns whether it could be. If not, that has been answered."""
        self.close_connection = True
        try:
            head = message.parse_head(self._read_head(), self.limits)
        except FramingError as error:
            self.server.application.refuse(self, error)
            return False
        self.head, self.command, self.path = head, head.method, head.path
        self.headers = head.headers
        given = head.headers.get("x-request-id", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else "req-" + os.urandom(12).hex()
        self.close_connection = self.is_extra or not head.keep_alive
        self._body_unread = head.has_body
        if not head.has_body:
            self.server.places.received(self.request)
        return True

    def _read_head(self):
        limits = self.limits
        self.connection.set_deadline(limits.head_s)
        try:
            return self.connection.read_head(limits.head_bytes)
        except ReadDeadline:
            problem, status = f"request head did not arrive within {limits.head_s:g} s", 408
        except LineTooLong:
            problem, status = f"request head larger than {limits.head_bytes} bytes", 431
        except BareLineFeed:
            problem, status = "lines of a request head end in CR LF", 400
        raise FramingError(problem, status)

    def read_body(self) -> bytes:
        """The request body, read within `limits.body_s` once there is room for it.

        Raises:
            FramingError: 400, 408 or 413.
            OverloadedError: the bodies of other requests take all the room there is, or one of them
                needs this one's, which took longer than `limits.body_grace_s`.
            PeerGone: the client closed in the middle.
        """
        if not self._body_unread:
            return b""
        length = self.head.content_length
        if length is not None and length > self.limits.body_bytes:
            raise message.too_large(self.limits)
        self._admit_body(length or 0)
        if self.head.expects_continue and not self.connection.num_buffered:
            self.connection.send(message.CONTINUE)
        return self._receive_body(self.limits.body_s)

    def _admit_body(self, num_bytes):
        if num_bytes > self.limits.small_body_bytes:
            self.body_share.grow(num_bytes, self.client)
            self.connection.look_s = _LOOK_S

    def _receive_body(self, seconds):
        self.connection.set_deadline(seconds)
        try:
            body = message.read_body(self.connection, self.head, self.limits, self._admit_body)
        except ReadDeadline:
            if self.body_share.is_late:
                problem = "another request needs the room of this one's body, which came slowly"
                raise OverloadedError(f"{problem}; try again") from None
            problem = f"request body did not arrive within {self.limits.body_s:g} s"
            raise FramingError(problem, 408) from None
        except LineTooLong:
            raise FramingError("chunk line too long") from None
        finally:
            if self.body_share.num_bytes:
                self.body_share.received()
                self.connection.look_s = math.inf
        self._body_unread = False
        self.server.places.received(self.request)
        return body

    def reply(
        self, status: int, content: bytes, content_type: str | None, headers: Fields = ()
    ) -> None:
        """Send a whole response. content_type: None of a 204, which has no content; headers:
        further fields."""
        self._settle_unread_body()
        fields = self._common_fields(content_type)
        if content_type is not None:
            fields.append(("Content-Length", str(len(content))))
        self.give_back()
        content = b"" if self.command == "HEAD" else content
        if self.witness is not None:
            self.witness.saw(content)
        self._send(status, [*fields, *headers], content, Progress.WHOLE)

    def stream(self, content_type: str, data: bytes, last: bool = False) -> None:
        """Send data as the next part of a 200 of unknown length, in one write.

        The first call sends the head before it; the call with `last` ends the body after it.
        """
        if self.witness is not None:
            self.witness.saw(data)
        first = self.progress is Progress.NOT_BEGUN
        if first:
            self._settle_unread_body()
            self._chunked = self.head.minor >= 1
        if self._chunked:
            data = (message.chunk(data) if data else b"") + (message.LAST_CHUNK if last else b"")
        progress = Progress.WHOLE if last else Progress.STREAMING
        if last:
            self.give_back()
        if first:
            self._send(200, self._stream_fields(content_type), data, progress)
        else:
            self.progress = progress
            self.connection.send(data)

    def _stream_fields(self, content_type):
        if not self._chunked:
            self.close_connection = True  # only the end of the connection ends such a body
        fields = self._common_fields(content_type)
        # Proxies (nginx reads it) must not hold back a stream.
        fields.append(("X-Accel-Buffering", "no"))
        return [*fields, ("Transfer-Encoding", "chunked")] if self._chunked else fields

    def check_peer(self) -> None:
        """Raise PeerGone if the client has left. Does not wait."""
        if self.connection.peer_gone(self.limits.pipelined_bytes):
            raise PeerGone

    def _common_fields(self, content_type):
        self.close_connection |= self.server.draining
        fields = [] if content_type is None else [("Content-Type", content_type)]
        fields += [*_FOR_BROWSERS, *self.answer_fields]
        if self.request_id is not None:
            fields.append(("X-Request-ID", self.request_id))
        if self.close_connection:
            fields.append(("Connection", "close"))
        elif self.head.minor == 0:
            fields.append(("Connection", "keep-alive"))
        return fields

    def _settle_unread_body(self):
        """Left alone, an unread body is the next request: drop it if that is cheap, else close."""
        if not self._body_unread:
            return
        length = self.head.content_length
        small = length is not None and length <= self.limits.unread_body_bytes
        # A client that waits for 100 Continue may or may not send its body after another answer.
        if not small or self.head.expects_continue or self.close_connection:
            self.close_connection = True
            return
        try:
            self._receive_body(self.limits.linger_s)
        except (FramingError, PeerGone):
            self.close_connection = True

    def _send(self, status, fields, content, progress):
        """A response in one write. Values of fields are the server's own or passed parse_head's
        grammar: none holds a line break."""
        phrase, _ = self.responses[status]
        fields = [("Date", _http_date(int(time.time()))), *fields]
        lines = "".join([f"{name}: {value}\r\n" for name, value in fields])
        ends = lines.count("\r\n"), lines.count("\r"), lines.count("\n")
        assert ends == 3 * (len(fields),), "line break in a header"
        head = f"{self.protocol_version} {status} {phrase}\r\n{lines}\r\n"
        self.status, self.progress = status, progress
        self.connection.send(head.encode("latin-1") + content)

    def log_message(self, format, *args):
        """Nothing: the application logs, with what a log line may hold."""
