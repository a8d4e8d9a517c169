"""One request and its answer on a connection: the body in, a whole or a streamed response out.

Keeps the connection's framing true whatever happens above it: a body that nobody read is read and
dropped or ends the connection, HTTP/1.0 gets no chunks, HEAD gets no content. Knows no routes and
no JSON.
"""

import time

from marlin.server.http import message as http
from marlin.server.http.connection import LineTooLong, PeerGone, ReadDeadline


class Exchange:
    """What a handler works with.

    Args:
        connection: http.connection.Connection, positioned after the request head.
        head: http.message.RequestHead.
        request_id: sent back as X-Request-ID.
        limits: http.limits.Limits.
        draining: callable, True once the server is stopping; answers then end their connection.
        wall_clock: seconds since the epoch, for Date.

    Attributes:
        status: status sent, None before.
        keep_open: whether another request may follow on this connection.
        stream_open: a streamed body has begun and not ended; a status can no longer be sent.
        outcome: what became of the request when `status` does not tell, e.g. the status of an error
            in a stream; else None.
        record: observe.metrics.RequestRecord of a generation request, else None.
    """

    def __init__(
        self, connection, head, request_id, limits, draining=lambda: False, wall_clock=time.time
    ):
        self.head = head
        self.request_id = request_id
        self.status = None
        self.keep_open = head.keep_alive
        self.stream_open = False
        self.outcome = None
        self.record = None
        self._connection = connection
        self._limits = limits
        self._draining = draining
        self._wall_clock = wall_clock
        self._body_pending = head.has_body
        self._chunked = False

    def log_fields(self):
        """`extra` for the log lines of this request."""
        return {"fields": {"request_id": self.request_id}}

    def read_body(self):
        """The request body, read within `limits.body_s`; bytes.

        Raises:
            HttpError: 400, 408 or 413, all of which end the connection.
            PeerGone: the client closed in the middle.
        """
        if not self._body_pending:
            return b""
        length = self.head.content_length
        if length is not None and length > self._limits.body_bytes:
            raise http.too_large(self._limits)
        if self.head.expects_continue and not self._connection.num_buffered:
            self._send(b"HTTP/1.1 100 Continue\r\n\r\n")
        return self._receive_body(self._limits.body_s)

    def _receive_body(self, seconds):
        self._connection.set_deadline(seconds)
        try:
            body = http.read_body(self._connection, self.head, self._limits)
        except ReadDeadline:
            message = f"request body did not arrive within {self._limits.body_s:g} s"
            raise http.bad_request(message, 408) from None
        except LineTooLong:
            raise http.bad_request("chunk line too long") from None
        self._body_pending = False
        return body

    def reply(self, status, content, content_type, headers=()):
        """Send a whole response. content: bytes; headers: further (name, value) pairs."""
        self._settle_unread_body()
        fields = [
            *self._common_fields(content_type),
            ("Content-Length", str(len(content))),
            *headers,
        ]
        data = http.response_head(status, fields, self._wall_clock())
        self.status = status
        self._send(data if self.head.method == "HEAD" else data + content)

    def stream(self, content_type, data, last=False):
        """Send data as the next part of a 200 of unknown length, in one write.

        The first call sends the head before it; the call with `last` ends the body after it.
        """
        first = self.status is None
        if first:
            self._settle_unread_body()
            self._chunked = self.head.minor >= 1
        if self._chunked:
            data = (http.chunk(data) if data else b"") + (http.LAST_CHUNK if last else b"")
        if first:
            data = self._stream_head(content_type) + data
        self.stream_open = not last
        self._send(data)

    def _stream_head(self, content_type):
        if not self._chunked:
            self.keep_open = False  # only the end of the connection ends such a body
        fields = self._common_fields(content_type)
        # Proxies (nginx reads X-Accel-Buffering) must neither store nor hold back a stream.
        fields += [("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no")]
        if self._chunked:
            fields.append(("Transfer-Encoding", "chunked"))
        self.status = 200
        return http.response_head(200, fields, self._wall_clock())

    def check_peer(self):
        """Raise PeerGone if the client has left. Does not wait."""
        if self._connection.peer_gone(self._limits.pipelined_bytes):
            raise PeerGone

    def _common_fields(self, content_type):
        if self._draining():
            self.keep_open = False
        fields = [("Content-Type", content_type), ("X-Request-ID", self.request_id)]
        if not self.keep_open:
            fields.append(("Connection", "close"))
        elif self.head.minor == 0:
            fields.append(("Connection", "keep-alive"))
        return fields

    def _settle_unread_body(self):
        """Left alone, an unread body is the next request: drop it if that is cheap, else close."""
        if not self._body_pending:
            return
        length = self.head.content_length
        small = length is not None and length <= self._limits.unread_body_bytes
        # A client that waits for 100 Continue may or may not send its body after another answer.
        if not small or self.head.expects_continue or not self.keep_open:
            self.keep_open = False
            return
        try:
            self._receive_body(self._limits.linger_s)
        except (http.HttpError, PeerGone):
            self.keep_open = False

    def _send(self, data):
        self._connection.send(data, self._limits.write_s)
