"""The listening socket, one thread a connection, and the loop of requests on each.

Hands every well-formed request to an application as an Exchange and answers the malformed ones
itself. Built on socketserver, not on http.server: that one brings an HTTP client and TLS into the
process, looks up its own host name on the network, answers in HTML and reads headers without a
deadline.
"""

import errno
import logging
import os
import re
import socket
import socketserver
import threading
import time

from marlin.server.http import message as http
from marlin.server.http.connection import (
    BareLineFeed,
    Connection,
    LineTooLong,
    PeerGone,
    ReadDeadline,
)
from marlin.server.http.exchange import Exchange
from marlin.server.observe.logs import log_access

_log = logging.getLogger("marlin.server")
# What may be echoed into a header and a log line without further care.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Out of file descriptors: the pending connection keeps the socket readable, so accept would spin.
ACCEPT_PAUSE_S = 0.05


def open_listener(host, port, backlog):
    """Bind and listen; connections wait in the backlog until a server accepts.

    Args:
        host: numeric address or a name of this machine; one with a colon is IPv6.
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


class HttpServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Serves an application on a listening socket it is given, which it closes.

    Args:
        listener: listening socket, from open_listener or inherited.
        application: has handle(exchange), error_content(error) -> (bytes, content type) and
            count_malformed(status).
        limits: http.limits.Limits.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener, application, limits):
        self.address_family = listener.family
        super().__init__(listener.getsockname(), ConnectionHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.application = application
        self.limits = limits
        self._draining = threading.Event()
        self._count = threading.Condition()
        self._num_connections = 0
        self._num_busy = 0

    @property
    def draining(self):
        return self._draining.is_set()

    @property
    def num_busy(self):
        """Connections with a request in hand."""
        return self._num_busy

    def drain(self, grace_s):
        """Accept nothing more and wait for the requests in flight.

        Call it from another thread than serve_forever's.

        Returns:
            True when all of them finished within grace_s.
        """
        self._draining.set()
        self.shutdown()
        self.server_close()
        return self.wait_idle(grace_s)

    def wait_idle(self, seconds):
        """Wait until no connection has a request in hand; returns whether that came in time."""
        with self._count:
            return self._count.wait_for(lambda: self._num_busy == 0, seconds)

    def count_busy(self, change):
        """A connection begins (+1) or ends (-1) a request."""
        with self._count:
            self._num_busy += change
            self._count.notify_all()

    def get_request(self):
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                _log.warning("cannot accept a connection: %s", error.strerror)
                time.sleep(ACCEPT_PAUSE_S)
            raise

    def process_request(self, request, client_address):
        with self._count:
            full = self._num_connections >= self.limits.num_connections
            self._num_connections += not full
        if full:
            _log.warning("refused a connection: %d are open", self.limits.num_connections)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread could be started
            self._forget_connection()
            raise

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget_connection()

    def _forget_connection(self):
        with self._count:
            self._num_connections -= 1

    def handle_error(self, request, client_address):
        _log.exception("connection from %s failed", client_address[0])


class ConnectionHandler(socketserver.BaseRequestHandler):
    """The requests of one connection, one after another."""

    def handle(self):
        limits = self.server.limits
        connection = Connection(self.request)
        wait_s = limits.head_s  # a client connects in order to ask
        try:
            while not self.server.draining:
                connection.set_deadline(wait_s)
                if not connection.wait_for_data():
                    return
                self.server.count_busy(+1)
                try:
                    keep_open = self._serve_one(connection)
                finally:
                    self.server.count_busy(-1)
                if not keep_open:
                    break
                wait_s = limits.idle_s
            connection.finish(limits.linger_s)
        except PeerGone:
            return

    def _serve_one(self, connection):
        """Read and answer one request; returns whether another may follow."""
        limits = self.server.limits
        started = time.monotonic()
        connection.set_deadline(limits.head_s)
        try:
            head = http.parse_head(self._read_head(connection), limits)
        except http.HttpError as error:
            self._refuse(connection, error)
            return False
        exchange = Exchange(
            connection, head, _request_id(head), limits, lambda: self.server.draining
        )
        try:
            self.server.application.handle(exchange)
        finally:
            log_access(exchange, self._peer, time.monotonic() - started)
        return exchange.keep_open

    def _read_head(self, connection):
        limits = self.server.limits
        try:
            return connection.read_head(limits.head_bytes)
        except ReadDeadline:
            raise http.bad_request(
                f"request head did not arrive within {limits.head_s:g} s", 408
            ) from None
        except LineTooLong:
            raise http.bad_request(
                f"request head larger than {limits.head_bytes} bytes", 431
            ) from None
        except BareLineFeed:
            raise http.bad_request("lines of a request head end in CR LF") from None

    def _refuse(self, connection, error):
        self.server.application.count_malformed(error.status)
        content, content_type = self.server.application.error_content(error)
        fields = [
            ("Content-Type", content_type),
            ("Content-Length", str(len(content))),
            ("Connection", "close"),
        ]
        connection.send(
            http.response_head(error.status, fields, time.time()) + content,
            self.server.limits.write_s,
        )
        _log.info(
            "%s malformed request: %d %s",
            *(self._peer, error.status, error.message),
            extra={"fields": {"client": self._peer, "status": error.status}},
        )

    @property
    def _peer(self):
        return self.client_address[0]


def _request_id(head):
    given = head.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else "req-" + os.urandom(12).hex()
