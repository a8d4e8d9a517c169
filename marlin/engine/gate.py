"""How many requests may generate at once, how many may wait their turn, and in which order.

Counts only; it neither reads requests nor runs them.
"""

import threading
from collections import deque
from contextlib import contextmanager

from marlin.errors import OverloadedError


class SlotGate:
    """Slots for generating, first come first served.

    Args:
        num_slots: requests inside at once.
        num_waiting: further requests that may have a place(), the next one is refused; None is no
            bound.
        poll_s: how often a waiting request looks whether it should still wait.
    """

    def __init__(self, num_slots: int, num_waiting: int | None, poll_s: float):
        self._num_slots = num_slots
        self._max_waiting = num_waiting
        self._poll_s = poll_s
        self._changed = threading.Condition()
        self._waiting = deque()
        self._num_inside = 0
        self._num_places = 0

    @property
    def num_waiting(self):
        return len(self._waiting)

    @contextmanager
    def place(self):
        """Be one of those that have a slot or may wait for one, for the length of a `with` block.

        Raises:
            OverloadedError: there are as many as may be.
        """
        with self._changed:
            self._take_place()
        try:
            yield
        finally:
            with self._changed:
                self._num_places -= 1

    def _take_place(self):
        most = None if self._max_waiting is None else self._num_slots + self._max_waiting
        if most is not None and self._num_places >= most:
            raise OverloadedError(
                f"{self._num_inside} requests are running and "
                f"{self._num_places - self._num_inside} are waiting, which is all this server "
                "takes; try again"
            )
        self._num_places += 1

    @contextmanager
    def slot(self, still_wanted):
        """Hold a slot for the length of a `with` block, waiting for one first.

        Args:
            still_wanted: called every poll_s while waiting; raises to give up.
        """
        self._enter(still_wanted)
        try:
            yield
        finally:
            with self._changed:
                self._num_inside -= 1
                self._changed.notify_all()

    def _enter(self, still_wanted):
        ticket = object()
        with self._changed:
            if self._num_inside < self._num_slots and not self._waiting:
                self._num_inside += 1
                return
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or self._num_inside >= self._num_slots:
                    self._changed.wait(self._poll_s)
                    still_wanted()
                self._num_inside += 1
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
