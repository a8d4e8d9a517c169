"""One client's socket: buffered reads and whole writes, each against a deadline.

Knows bytes and time, not HTTP. Reading through a buffer of our own (not a file object) is what
makes a deadline cover a whole head or body rather than one recv, and lets a wait for the engine
notice that the client left while bytes of its next request are already here.
"""

import math
import socket
import time

_RECV_BYTES = 64 * 1024  # one loopback burst; larger reads cost allocation and gain nothing
# Of a head, which rarely has more. What is read beyond it is held before anyone asked for a body.
_HEAD_RECV_BYTES = 8 * 1024


class PeerGone(Exception):
    """The client closed or reset the connection; nobody is left to answer."""


class ReadDeadline(Exception):
    """The client did not send in time what it had begun or promised."""


class LineTooLong(Exception):
    """No line end within the bytes allowed."""


class BareLineFeed(Exception):
    """A line feed without its carriage return in a request head."""


class Connection:
    """Owns a connected TCP or Unix socket until close().

    Args:
        sock: connected stream socket.
        write_s: what the client may take for one write.
        clock: monotonic seconds.

    Attributes:
        deadline: clock time by which the present reads must be done; set before each phase.
        look_s: how often a read looks whether another thread has brought the deadline forward.
        defers, unsent: whether send() leaves to flush() what it would wait with; what that is.
    """

    def __init__(self, sock, write_s, clock=time.monotonic):
        self._sock = sock
        self._write_s = write_s
        self._clock = clock
        self._buffer, self.unsent = bytearray(), b""
        self.deadline, self.defers = 0.0, False
        self.look_s = math.inf
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def set_deadline(self, seconds):
        """Reads from now on must be done within `seconds`."""
        self.deadline = self._clock() + seconds

    def expire(self):
        """The deadline is now; any thread."""
        self.deadline = 0.0

    @property
    def num_buffered(self):
        return len(self._buffer)

    def wait_for_data(self):
        """Wait for the first byte of a request.

        Raises:
            PeerGone: the client closed, or sent nothing until the deadline.
        """
        try:
            while not self._buffer:
                self._fill(_HEAD_RECV_BYTES)
        except ReadDeadline:
            raise PeerGone from None

    def read_head(self, max_bytes):
        """Read through the empty line that ends a request head.

        Returns:
            The head without its final CRLF pair. One empty line before it is skipped, as RFC 9112
            section 2.2 asks.

        Raises:
            LineTooLong, BareLineFeed, PeerGone, ReadDeadline.
        """
        while len(self._buffer) < 2:
            self._fill(_HEAD_RECV_BYTES)
        if self._buffer.startswith(b"\r\n"):
            del self._buffer[:2]
        checked = 0
        while True:
            end = self._buffer.find(b"\r\n\r\n", max(0, checked - 3))
            stop = len(self._buffer) if end < 0 else end
            self._refuse_bare_line_feed(checked, stop)
            if (stop if end >= 0 else stop - 3) > max_bytes:  # 3 bytes of its end may be there
                raise LineTooLong
            if end >= 0:
                return self._take(end + 4)[:-4]
            checked = len(self._buffer)
            self._fill(_HEAD_RECV_BYTES)

    def _refuse_bare_line_feed(self, start, stop):
        at = self._buffer.find(b"\n", start, stop)
        while at >= 0:
            if at == 0 or self._buffer[at - 1] != 0x0D:
                raise BareLineFeed
            at = self._buffer.find(b"\n", at + 1, stop)

    def read_line(self, max_bytes):
        """Read through the next line feed, CR and LF included.

        Raises:
            LineTooLong, PeerGone, ReadDeadline.
        """
        checked = 0
        while True:
            end = self._buffer.find(b"\n", checked, max_bytes)
            if end >= 0:
                return self._take(end + 1)
            checked = len(self._buffer)
            if checked >= max_bytes:
                raise LineTooLong
            self._fill()

    def read_exact(self, num_bytes):
        """Read exactly num_bytes. Raises PeerGone or ReadDeadline."""
        while len(self._buffer) < num_bytes:
            self._fill()
        return self._take(num_bytes)

    def _take(self, num_bytes):
        with memoryview(self._buffer) as view:
            data = bytes(view[:num_bytes])  # one copy: a body has megabytes
        del self._buffer[:num_bytes]
        return data

    def _fill(self, most_bytes=_RECV_BYTES):
        """Wait for what there is next, at most look_s."""
        remaining_s = self.deadline - self._clock()
        if remaining_s <= 0:
            raise ReadDeadline
        try:
            self._sock.settimeout(min(remaining_s, self.look_s))
            data = self._sock.recv(most_bytes)
        except TimeoutError:
            if remaining_s > self.look_s:
                return
            raise ReadDeadline from None
        except OSError:
            raise PeerGone from None
        if not data:
            raise PeerGone
        self._buffer += data

    def peer_gone(self, max_buffered):
        """Look, without waiting, whether the client closed or reset the connection.

        What it sends meanwhile (its next request) is buffered, up to max_buffered bytes; behind
        that many an end of stream cannot be seen, and the next write or read finds it. A client
        that only shut down its sending side counts as gone: no portable call tells the two apart.
        """
        while len(self._buffer) < max_buffered:
            try:
                self._sock.settimeout(0)
                data = self._sock.recv(max_buffered - len(self._buffer))
            except (BlockingIOError, InterruptedError):
                return False
            except OSError:
                return True
            if not data:
                return True
            self._buffer += data
        return False

    def send(self, data):
        """Write all of data, or where it defers what the kernel's buffer has room for.

        A send with a timeout is three system calls, and gives up the interpreter's lock at each; of
        a stream's many small writes nearly every one fits. PeerGone: the client left or reads too
        slowly.
        """
        try:
            if not self.unsent:
                if self._sock.gettimeout() != 0:
                    self._sock.settimeout(0)
                data = memoryview(data)[self._sock.send(data) :]
        except BlockingIOError:
            pass
        except OSError:
            raise PeerGone from None
        self.unsent = b"".join((self.unsent, data)) if self.unsent else data
        if not self.defers:
            self.flush()

    def flush(self):
        """Write what send() left, if it did; raises as it."""
        try:
            if self.unsent:
                self._sock.settimeout(self._write_s)
                self._sock.sendall(self.unsent)
        except OSError:
            raise PeerGone from None
        self.unsent = b""

    def finish(self, linger_s):
        """Stop sending, then read and drop for at most linger_s what the client still sends.

        Closing with unread bytes would reset the connection, and a reset may overtake the answer.
        """
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            return
        self.set_deadline(linger_s)
        try:
            while True:
                self._buffer.clear()
                self._fill()
        except (PeerGone, ReadDeadline):
            return

    def close(self):
        self._sock.close()
