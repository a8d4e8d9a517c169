"""The listening socket, and one thread a connection.

http.server's ThreadingHTTPServer on a socket that it is given, so that it looks up no name; what
happens on a connection is http/handler.py.
"""

import errno
import logging
import math
import socket
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from http.server import ThreadingHTTPServer
from typing import Any

from marlin.server.http.budget import BodyBudget
from marlin.server.http.doors import Doors, user_of, waiting_at
from marlin.server.http.handler import Application, Handler
from marlin.server.http.limits import Limits
from marlin.server.http.places import Place, Places
from marlin.server.http.seldom import Seldom

_log = logging.getLogger("marlin.server")
# To a connection that nobody can serve: there is no thread for anything that takes time.
_NO_PLACE = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: 0\r\n\r\n"
)
# Out of file descriptors: the pending connection keeps the socket readable, so accept would spin.
ACCEPT_PAUSE_S = 0.05
# A thread begins within a millisecond; this long after all of a machine's others.
_BEGIN_S = 3.0
# Refused connections that are not closed yet, of the descriptors that are no connection's.
MAX_REFUSED = 64


def open_listener(host, port, backlog):
    """Bind and listen; connections wait in the backlog until a server accepts.

    Args:
        host: numeric address; one with a colon is IPv6.
        port: 0 picks a free one.

    Raises:
        OSError: the address cannot be bound.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # Without it a restart fails for a minute while old connections time out.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


class _Beginning(threading.Event):
    """What Thread.start() would wait for until ever, of a thread that lacks memory as it begins."""

    def wait(self, timeout=None):
        return super().wait(_BEGIN_S if timeout is None else timeout)


class ConnectionThread(threading.Thread):
    """Its start() raises RuntimeError, too, when it has not begun in time; then it never does."""

    def __init__(self, serve, *arguments):
        super().__init__(target=serve, args=arguments, daemon=True)
        self._started, self._is_given_up = _Beginning(), False

    def start(self):
        super().start()
        self._is_given_up = not self._started.is_set()
        if self._is_given_up:
            raise RuntimeError("can't start new thread: it did not begin")

    def run(self):
        if not self._is_given_up:
            super().run()


class HttpServer(ThreadingHTTPServer):
    """Serves an application on a listening socket, or Doors, that it is given and closes."""

    block_on_close = False

    def __init__(self, listener: socket.socket | Doors, application: Application, limits: Limits):
        self.address_family = listener.family
        super().__init__(listener.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket: Any = listener
        self.application = application
        self.limits = limits
        total = max(limits.bodies_bytes, limits.body_bytes)
        self.body_budget = BodyBudget(
            *(total, limits.bodies_wait_s),
            reserve_bytes=min(limits.body_bytes, total // 2),
            grace_s=limits.body_grace_s,
        )
        self.places = Places(limits.num_connections, limits.num_extra_connections, limits.arrival_s)
        self._looked = math.inf  # for connections, last; it has not begun
        self._draining = threading.Event()
        self._refusals = Seldom(limits.log_pause_s)
        self._refused: deque[tuple[float, socket.socket]] = deque()  # when to close each

    @property
    def draining(self):
        return self._draining.is_set()

    @property
    def num_busy(self):
        """Connections with a request in hand."""
        return self.places.num_busy

    def drain(self, grace_s):
        """Accept nothing more and wait for the requests in flight; returns whether all of them
        finished within grace_s. Not for serve_forever's own thread."""
        self.close_door()
        return self.wait_idle(grace_s)

    def close_door(self):
        """Accept nothing more; as drain(), which waits for those inside."""
        was_open = not self.draining
        self._draining.set()
        if was_open and not self.hangs():  # else that would not return
            self.shutdown()
            self.let_in_who_waits()
        self.server_close()

    def let_in_who_waits(self):
        """Serve who has connected: once the socket is closed, they are reset without an answer."""
        for _ in waiting_at(self.socket, self.limits.backlog):
            self.handle_request()

    def hangs(self):
        """Why nobody is let in, or None: whoever starts a thread may wait for it for ever."""
        silent_s = time.monotonic() - self._looked
        return f"nobody was let in for {silent_s:.0f} s" if silent_s > self.limits.slow_s else None

    def wait_idle(self, seconds):
        """Wait until no connection has a request in hand; returns whether that came in time."""
        return self.places.wait_until_none_is_busy(seconds, or_expected=True)

    def serve_forever(self, poll_interval=0.5):
        """Until drain(), through moments without memory, too."""
        while not self.draining:
            self._looked = time.monotonic()
            try:
                # Looked at several times within what hangs() takes for too long.
                super().serve_forever(min(poll_interval, self.limits.slow_s / 4))
            except MemoryError:
                self.application.missed("memory")
                time.sleep(ACCEPT_PAUSE_S)

    def get_request(self):
        try:
            request, address = super().get_request()
            return request, (user_of(request), 0) if request.family == socket.AF_UNIX else address
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._refusals.warn("cannot accept a connection: %s", error.strerror)
                self._close_refused(math.inf)
                time.sleep(ACCEPT_PAUSE_S)
            raise

    def process_request(self, request, client_address):
        if self.places.enter(request, client_address[0]) is Place.NONE:
            self._refuse(request, f"{self.limits.num_connections} are being answered")
            return
        try:
            ConnectionThread(self.process_request_thread, request, client_address).start()
        except (RuntimeError, MemoryError):
            self.places.leave(request)
            self.application.missed("threads")
            self._refuse(request, "no thread can be started for it")

    def _refuse(self, request, why):
        self._refusals.warn("refused a connection: %s", why)
        request.setblocking(False)
        with suppress(OSError):
            request.send(_NO_PLACE)
            request.shutdown(socket.SHUT_WR)
        self._refused.append((time.monotonic() + self.limits.linger_s, request))
        self.service_actions()

    def service_actions(self):
        """Close what was refused once its client has had time to read that: what it still sends
        would reset a closed connection, and the answer would be lost with it."""
        self._looked = time.monotonic()
        self._close_refused(time.monotonic())

    def _close_refused(self, now):
        while self._refused and (self._refused[0][0] <= now or len(self._refused) > MAX_REFUSED):
            self._refused.popleft()[1].close()

    def server_close(self):
        self._close_refused(math.inf)
        super().server_close()

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.leave(request)

    def handle_error(self, request, client_address):
        if isinstance(sys.exc_info()[1], MemoryError):
            self.application.missed("memory")
        _log.exception("connection from %s failed", client_address[0])
