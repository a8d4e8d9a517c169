"""How many requests may generate at once, how many may wait their turn, and in which order.

Counts only; it neither reads requests nor runs them.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from marlin.engine.tickets import Tickets
from marlin.errors import OverloadedError
from marlin.turns import Turns

# The longest time after which a client is told to ask again. The official SDKs take up to 60.
MAX_RETRY_S = 30
# How much the last request counts in how long requests hold their slots.
_NEWEST_SHARE = 0.2


@dataclass(slots=True, eq=False)
class _Waiting:
    client: str
    may_enter: bool = False


class SlotGate:
    """Slots for generating, given by Turns.

    When all are taken, a client without any may have one more while another has several; the same
    holds for places. So at most twice as many are inside, whatever their clients.

    Args:
        num_slots: requests inside at once.
        num_waiting: further requests that may have a place(), the next one is refused; None is no
            bound.
        poll_s: how often a waiting request looks whether it should still wait.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        num_slots: int,
        num_waiting: int | None,
        poll_s: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._num_slots = num_slots
        self._num_places = math.inf if num_waiting is None else num_slots + num_waiting
        self._poll_s = poll_s
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._inside = Turns()
        self._places = Turns()
        self._tickets = Tickets()
        self._held_s = 0.0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @contextmanager
    def place(self, client: str = "") -> Iterator[None]:
        """Be one of those that have a slot or may wait for one, for the length of a `with` block.

        Who is refused and comes back when it was told to is let in before those that came later.

        Raises:
            OverloadedError: there are as many as may be.
        """
        with self._changed:
            self._take_place(client)
        try:
            yield
        finally:
            with self._changed:
                self._places.change(client, -1)

    def _take_place(self, client):
        if self._tickets or self._places.total >= self._num_places:
            self._check_turn(client)
        self._places.change(client, 1)

    def _check_turn(self, client):
        """Raise OverloadedError when what places there are go to others."""
        now, count = self._clock(), self._places.total
        ticket = self._tickets.arrival(client, now)
        num_kept, num_ahead = self._tickets.ahead(ticket, now)
        has_room = self._num_places - count > num_kept or count < self._num_slots
        if not has_room and not _may_pass(self._places.in_hand, client, 2 * self._num_places):
            retry_s = self._retry_s(num_ahead)
            self._tickets.turn_away(ticket, now + retry_s)
            num_inside = self._inside.total
            raise OverloadedError(
                f"{num_inside} requests are running and {count - num_inside} are waiting, "
                f"which is all this server takes; try again in {retry_s} s",
                retry_s,
            )
        self._tickets.drop(ticket)

    def _retry_s(self, num_ahead):
        """When there should be a place for one with so many before it, in whole seconds: so that
        somebody always waits when a slot becomes free, who then has been here for longer than
        whoever asks in that moment."""
        num_to_end = num_ahead + 1 - (self._num_places - self._num_slots)
        wanted = math.floor(num_to_end * self._held_s / self._num_slots)
        return min(max(1, wanted), MAX_RETRY_S)

    @contextmanager
    def slot(self, still_wanted: Callable[[], None], client: str = "") -> Iterator[None]:
        """Hold a slot for the length of a `with` block, waiting for one first.

        Args:
            still_wanted: called every poll_s while waiting; raises to give up.
        """
        self._enter(still_wanted, client)
        began = self._clock()
        try:
            yield
        finally:
            with self._changed:
                self._inside.change(client, -1)
                held_s = self._clock() - began
                share = _NEWEST_SHARE if self._held_s else 1.0
                self._held_s += share * (held_s - self._held_s)
                self._let_in()

    def _enter(self, still_wanted, client):
        with self._changed:
            if not self._waiting and self._inside.total < self._num_slots:
                self._inside.begin(client)
                return
            waiting = _Waiting(client)
            self._waiting.append(waiting)
            self._let_in()
            try:
                while not waiting.may_enter:
                    self._changed.wait(self._poll_s)
                    if not waiting.may_enter:
                        still_wanted()
            except BaseException:
                self._waiting.remove(waiting)
                raise

    def _let_in(self):
        """Give slots to those that are next, as long as there are any."""
        while self._waiting:
            waiting = self._inside.next(self._waiting)
            is_free, most = self._inside.total < self._num_slots, 2 * self._num_slots
            if not is_free and not _may_pass(self._inside.in_hand, waiting.client, most):
                return
            self._waiting.remove(waiting)
            self._inside.begin(waiting.client)
            waiting.may_enter = True
            self._changed.notify_all()


def _may_pass(counts, client, most):
    """Whether a client that has none may have one beyond the limit, since another has several."""
    return not counts[client] and max(counts.values()) > 1 and counts.total() < most
