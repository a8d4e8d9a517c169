"""Server-sent events on their way to one client, which is never left to wonder for long.

Knows no dialect and no model: events are bytes.
"""

import time
from collections.abc import Iterator

from marlin.engine.shared_reader import Turn
from marlin.server.api.encoding import SSE_TYPE
from marlin.server.http.handler import Handler

# A line that every reader of the format skips.
_COMMENT = b": waiting\n\n"


class EventStream:
    """The events of a request in hand.

    Args:
        keep_alive_s: a comment is due when nothing has been sent for so long.
    """

    def __init__(self, handler: Handler, keep_alive_s: float):
        self._handler = handler
        self._keep_alive_s = keep_alive_s
        self._sent = time.monotonic()

    def send(self, events: bytes, last: bool = False) -> None:
        """Send events, the head of the answer before the first, without waiting for the client:
        rest() or flush() comes next. last: none follow."""
        connection = self._handler.connection
        connection.defers = True
        try:
            self._handler.stream(SSE_TYPE, events, last)
        finally:
            connection.defers = False
        self._sent = time.monotonic()

    def flush(self) -> None:
        """Wait until the client has taken what was sent."""
        self._handler.connection.flush()

    def rest(self) -> Iterator[Turn]:
        """The same as a part of an answer's turns."""
        if self._handler.connection.unsent:
            yield Turn.ALONE
            self.flush()

    def keep_alive(self) -> None:
        """Send a comment if one is due."""
        if time.monotonic() - self._sent >= self._keep_alive_s:
            self.send(_COMMENT)
