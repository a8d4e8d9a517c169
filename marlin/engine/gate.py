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
        num_waiting: further requests that may wait for a slot, the next one is refused; None is no
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

    @property
    def num_waiting(self):
        return len(self._waiting)

    @contextmanager
    def slot(self, still_wanted):
        """Hold a slot for the length of a `with` block, waiting for one first.

        Args:
            still_wanted: called every poll_s while waiting; raises to give up.

        Raises:
            OverloadedError: the queue is full.
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
            if self._max_waiting is not None and len(self._waiting) >= self._max_waiting:
                raise OverloadedError(
                    f"{self._num_inside} requests are running and {len(self._waiting)} are "
                    "waiting, which is all this server takes; try again"
                )
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or self._num_inside >= self._num_slots:
                    self._changed.wait(self._poll_s)
                    still_wanted()
                self._num_inside += 1
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
