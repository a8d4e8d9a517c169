"""The sockets that one server accepts from, when there is a Unix socket beside or instead of TCP.

Knows sockets, and no address.
"""

import selectors
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

from marlin.server.http.unix_socket import peer_of


class Doors:
    """Several listening sockets as one, which HttpServer and select() take for a socket.

    Args:
        listeners: that nobody else in this process accepts from; closed with this.
    """

    def __init__(self, listeners: list[socket.socket]):
        self._listeners = listeners
        self._turns = deque(listeners)
        self._ready = selectors.DefaultSelector()
        self.family = listeners[0].family
        for listener in listeners:
            listener.setblocking(False)
            self._ready.register(listener, selectors.EVENT_READ)

    def fileno(self):
        """A descriptor that can be read from when somebody waits at any of them."""
        return self._ready.fileno()

    def filenos(self):
        return [listener.fileno() for listener in self._listeners]

    def accept(self):
        """As a socket's; they take turns. Raises BlockingIOError when nobody waits."""
        waiting = [key.fileobj for key, _ in self._ready.select(0)]
        for listener in [each for each in self._turns if each in waiting]:
            self._turns.remove(listener)
            self._turns.append(listener)
            with suppress(BlockingIOError):
                return listener.accept()
        raise BlockingIOError

    def getsockname(self):
        return self._listeners[0].getsockname()

    def gettimeout(self):
        return 0.0

    def setblocking(self, _flag):
        """None of them blocks."""

    def close(self):
        self._ready.close()
        for listener in self._listeners:
            listener.close()


def filenos(listener: socket.socket | Doors) -> list[int]:
    """Descriptors of the sockets that it is, of which inherited() makes it in another process."""
    return listener.filenos() if isinstance(listener, Doors) else [listener.fileno()]


def inherited(fds: list[int]) -> socket.socket | Doors:
    """The inverse of filenos()."""
    listeners = [socket.socket(fileno=fd) for fd in fds]
    return listeners[0] if len(listeners) == 1 else Doors(listeners)


def waiting_at(listener: socket.socket | Doors, most: int) -> Iterator[None]:
    """Once for each who has connected and waits for accept(), at most so many."""
    with selectors.DefaultSelector() as waiting:
        waiting.register(listener, selectors.EVENT_READ)
        for _ in range(most):
            if not waiting.select(0):
                return
            yield


def user_of(request: socket.socket) -> str:
    """The client that has connected. Raises OSError, and closes it: the system does not say."""
    try:
        return peer_of(request)
    except OSError:
        request.close()
        raise
