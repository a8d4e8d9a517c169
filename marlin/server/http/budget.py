"""Memory for request bodies: taken before a body is read, given back when its request is over.

Counts bytes of all connections of a process together, and whose they are: room is given by Turns, a
client that has some leaves what one body needs to those that have none, and a body that takes long
to come goes when another needs its room. Knows no connection and no JSON.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from marlin.errors import OverloadedError
from marlin.server.http import allocator
from marlin.turns import Turns

# A share of at least so many bytes is worth a walk over the allocator's free memory (some ms).
_TRIM_BYTES = 256 * 1024
# How often who waits looks for a body that has had its time.
_LOOK_S = 0.1


class BodyBudget:
    """The bytes that request bodies may hold.

    Args:
        total_bytes: of all bodies together.
        wait_s: how long a share may wait for others to be given back.
        reserve_bytes: of them, for clients that hold none.
        grace_s: how long a body may take to come when another waits for its room.
    """

    def __init__(
        self,
        total_bytes: int,
        wait_s: float,
        reserve_bytes: int = 0,
        grace_s: float = math.inf,
    ):
        self._total_bytes = total_bytes
        self._wait_s = wait_s
        self._reserve_bytes = reserve_bytes
        self._grace_s = grace_s
        self._changed = threading.Condition()
        self._held = Turns()
        self._waiting: list[_Waiting] = []
        self._receiving: dict[Share, float] = {}  # since when

    @property
    def used_bytes(self) -> int:
        return self._held.total

    def take(self, share: "Share", num_bytes: int) -> None:
        """So much more for a share whose body is on its way.

        Raises:
            OverloadedError: there was no room for wait_s.
        """
        end = time.monotonic() + self._wait_s
        waiting = _Waiting(share.client, share, num_bytes)
        with self._changed:
            self._waiting.append(waiting)
            self._let_in()
            try:
                while waiting in self._waiting:
                    self._send_away_for(waiting)
                    self._wait(end, num_bytes)
            except BaseException:  # however it ends, nobody waits behind who left
                self._waiting.remove(waiting)
                raise
            self._receiving.setdefault(share, time.monotonic())

    def received(self, share: "Share") -> None:
        """A share's body is there, or will not come."""
        with self._changed:
            self._receiving.pop(share, None)

    def wait_for_room(self) -> None:
        """Wait until no more than all is in use. Raises OverloadedError as take()."""
        end = time.monotonic() + self._wait_s
        with self._changed:
            while self._held.total > self._total_bytes:
                self._wait(end, 0)

    def change(self, client: str, num_bytes: int) -> None:
        """Take or, below 0, give back without asking; more than all may so be in use."""
        with self._changed:
            self._held.change(client, num_bytes)
            if num_bytes < 0:
                self._let_in()
                self._changed.notify_all()

    def _wait(self, end, num_bytes):
        remaining_s = end - time.monotonic()
        if remaining_s <= 0:
            raise OverloadedError(
                f"{self._held.total} of the {self._total_bytes} bytes that this server has for "
                f"request bodies are in use, and {num_bytes} more are needed; try again"
            )
        self._changed.wait(min(remaining_s, _LOOK_S))

    def _let_in(self):
        """Give room to those it is enough for, unless they have more than one before them."""
        most = math.inf
        for waiting in self._held.in_order(self._waiting):
            if self._held.in_hand[waiting.client] > most:
                return
            if self._held.total + waiting.num_bytes <= self._most(waiting):
                self._waiting.remove(waiting)
                self._held.begin(waiting.client, waiting.num_bytes)
                self._changed.notify_all()
            else:
                most = self._held.in_hand[waiting.client]

    def _most(self, waiting):
        """Bytes of which it may have the last."""
        in_others = self._held.in_hand[waiting.client] > waiting.share.num_bytes
        return self._total_bytes - (self._reserve_bytes if in_others else 0)

    def _send_away_for(self, waiting):
        """Have one body go that had its time, of whoever holds most, if that is more than this one
        has, or its own."""
        in_hand, now = self._held.in_hand, time.monotonic()
        leaving = sum(share.num_bytes for share in self._receiving if share.is_late)
        if in_hand.total() - leaving + waiting.num_bytes <= self._most(waiting):
            return
        late = [
            share
            for share, since in self._receiving.items()
            if now - since >= self._grace_s
            and not share.is_late
            and (share.client == waiting.client or in_hand[share.client] > in_hand[waiting.client])
        ]
        if late:  # in the order in which they came
            max(late, key=lambda share: in_hand[share.client]).send_away()


class Share:
    """What one request holds of a BodyBudget: nothing at first, set(0) gives all of it back.

    Args:
        stop: called, by any thread, when its body shall not be waited for any more.

    Attributes:
        client: whose it is.
        num_bytes: that it holds.
        is_late: it was told to stop.
    """

    def __init__(self, budget: BodyBudget, stop: Callable[[], None] = lambda: None):
        self._budget = budget
        self._stop = stop
        self.client = ""
        self.num_bytes = 0
        self.is_late = False

    def grow(self, num_bytes: int, client: str = "") -> None:
        """Hold so many bytes at least. Raises OverloadedError when there is no room for more."""
        if num_bytes > self.num_bytes:
            self.client = client
            self._budget.take(self, num_bytes - self.num_bytes)
            self.num_bytes = num_bytes

    def send_away(self) -> None:
        self.is_late = True
        self._stop()

    def received(self) -> None:
        """Nothing more of the body is waited for."""
        self._budget.received(self)

    def wait_for_room(self) -> None:
        """Wait until no more than all is in use. Raises OverloadedError as above."""
        self._budget.wait_for_room()

    def set(self, num_bytes: int) -> None:
        """Hold so many bytes from now on, which are there already or no more."""
        if num_bytes == self.num_bytes:
            return
        freed = self.num_bytes - num_bytes
        self.num_bytes = num_bytes
        if not num_bytes:
            self.received()
        self._budget.change(self.client, -freed)
        if freed >= _TRIM_BYTES:
            allocator.trim()


@dataclass(slots=True, eq=False)
class _Waiting:
    client: str
    share: Share
    num_bytes: int
