"""The places for connections, and who goes when there are none left.

A connection is idle until the first byte of a request, then receives it, then answers it. For a new
one an idle one goes, the longest idle of the peer that has most of them, so that nobody can hold
all places by connecting; without any, one whose request is still on its way, chosen alike. A
connection that is being answered never goes, and of the new one's own peer none whose request may
arrive at any moment: it would be lost without a word, while the new one can be told. Knows sockets
and peers, not what they send.
"""

import math
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto


class Place(Enum):
    """What a new connection gets."""

    OWN = auto()
    EXTRA = auto()  # for one short request
    NONE = auto()


class Places:
    """The connections of one server. Any thread.

    Args:
        num_places: connections at once.
        num_extra: more of them while all places are being answered.
        arrival_s: for how long after connecting, and after its first byte, a request is expected.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        num_places: int,
        num_extra: int,
        arrival_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._num_places = num_places
        self._num_extra = num_extra
        self._arrival_s = arrival_s
        self._clock = clock
        self._changed = threading.Condition()
        self._peers: dict[socket.socket, str] = {}  # of all but the extra ones
        self._extra: set[socket.socket] = set()
        # Since when, in this order; a connection is in one of them.
        self._idle: dict[socket.socket, float] = {}
        self._receiving: dict[socket.socket, float] = {}
        self._answering: set[socket.socket] = set()
        self._expected: dict[socket.socket, float] = {}  # until when

    @property
    def num_busy(self) -> int:
        """Connections with a request in hand."""
        return len(self._receiving) + len(self._answering)

    def enter(self, sock: socket.socket, peer: str) -> Place:
        """A new connection."""
        with self._changed:
            now = self._clock()
            if len(self._peers) >= self._num_places and not self._shed(peer, now):
                if len(self._extra) >= self._num_extra:
                    return Place.NONE
                self._extra.add(sock)
            else:
                self._peers[sock] = peer
            self._idle[sock] = now
            self._expected[sock] = now + self._arrival_s
            return Place.EXTRA if sock in self._extra else Place.OWN

    def is_extra(self, sock: socket.socket) -> bool:
        return sock in self._extra

    def begin(self, sock: socket.socket) -> None:
        """A request's first byte is there."""
        with self._changed:
            if self._idle.pop(sock, None) is not None:
                self._receiving[sock] = now = self._clock()
                self._expected[sock] = now + self._arrival_s

    def received(self, sock: socket.socket) -> None:
        """The request is there as a whole, or what is there of it is being answered."""
        with self._changed:
            if self._receiving.pop(sock, None) is not None:
                self._answering.add(sock)

    def end(self, sock: socket.socket) -> None:
        """The request is over."""
        with self._changed:
            if self._forget(sock):
                self._idle[sock] = self._clock()
            self._changed.notify_all()

    def leave(self, sock: socket.socket) -> None:
        """The connection is closed."""
        with self._changed:
            self._forget(sock)
            self._peers.pop(sock, None)
            self._extra.discard(sock)
            self._changed.notify_all()

    def wait_until_none_is_busy(self, seconds: float, or_expected: bool = False) -> bool:
        """Whether that came in time; or_expected: new ones are waited for while their request is
        expected, and no longer."""
        end = time.monotonic() + seconds
        with self._changed:
            while True:
                now = self._clock()
                new = [self._expected.get(sock, now) - now for sock in self._idle if or_expected]
                new = [wait_s for wait_s in new if wait_s > 0]
                left_s = end - time.monotonic()
                if not (self.num_busy or new) or left_s <= 0:
                    return self.num_busy == 0
                self._changed.wait(min([left_s, *new]))

    def _forget(self, sock):
        """Whether it was there: one that had to go is not, although its thread still ends."""
        since = [self._idle.pop(sock, None), self._receiving.pop(sock, None)]
        answered = sock in self._answering
        self._answering.discard(sock)
        self._expected.pop(sock, None)
        return answered or since != [None, None]

    def _shed(self, peer, now):
        """Have one go for a new one of this peer; returns whether one could."""
        own_only = False  # its own idle ones are the most, and each is expected
        for group in (self._idle, self._receiving):
            held: dict[str, list[socket.socket]] = {}
            for sock in group:
                if sock in self._peers:
                    held.setdefault(self._peers[sock], []).append(sock)
            if not held:
                continue
            most = peer if own_only else max(held, key=lambda other: len(held[other]))
            may_go = [
                sock
                for sock in held.get(most, ())
                if most != peer or self._expected.get(sock, -math.inf) <= now
            ]
            if may_go:
                self._send_away(min(may_go, key=group.__getitem__))
                return True
            own_only = True
        return False

    def _send_away(self, sock):
        self._forget(sock)
        del self._peers[sock]
        with suppress(OSError):  # the peer was faster
            sock.shutdown(socket.SHUT_RDWR)  # its thread reads the end, and closes it
