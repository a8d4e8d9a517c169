"""Memory for request bodies: taken before a body is read, given back when its request is over.

Counts bytes of all connections of a process together. Knows no connection and no JSON.
"""

import threading
import time

from marlin.errors import OverloadedError
from marlin.server.http import allocator

# A share of at least so many bytes is worth a walk over the allocator's free memory (some ms).
_TRIM_BYTES = 256 * 1024


class BodyBudget:
    """The bytes that request bodies may hold.

    Args:
        total_bytes: of all bodies together.
        wait_s: how long a share may wait for others to be given back.
    """

    def __init__(self, total_bytes: int, wait_s: float):
        self._total_bytes = total_bytes
        self._wait_s = wait_s
        self._changed = threading.Condition()
        self._used_bytes = 0

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    def take(self, num_bytes: int) -> None:
        """Raises OverloadedError when there was no room for wait_s."""
        end = time.monotonic() + self._wait_s
        with self._changed:
            while self._used_bytes + num_bytes > self._total_bytes:
                remaining_s = end - time.monotonic()
                if remaining_s <= 0:
                    raise OverloadedError(
                        f"{self._used_bytes} of the {self._total_bytes} bytes that this server has "
                        f"for request bodies are in use, and {num_bytes} more are needed; try again"
                    )
                self._changed.wait(remaining_s)
            self._used_bytes += num_bytes

    def change(self, num_bytes: int) -> None:
        """Take or, below 0, give back without asking; more than all may so be in use."""
        with self._changed:
            self._used_bytes += num_bytes
            if num_bytes < 0:
                self._changed.notify_all()


class Share:
    """What one request holds of a BodyBudget: nothing at first, set(0) gives all of it back."""

    def __init__(self, budget: BodyBudget):
        self._budget = budget
        self._num_bytes = 0

    def grow(self, num_bytes: int) -> None:
        """Hold so many bytes at least. Raises OverloadedError when there is no room for more."""
        if num_bytes > self._num_bytes:
            self._budget.take(num_bytes - self._num_bytes)
            self._num_bytes = num_bytes

    def wait_for_room(self) -> None:
        """Wait until no more than all is in use. Raises OverloadedError as above."""
        self._budget.take(0)

    def set(self, num_bytes: int) -> None:
        """Hold so many bytes from now on, which are there already or no more."""
        if num_bytes == self._num_bytes:
            return
        freed = self._num_bytes - num_bytes
        self._budget.change(-freed)
        self._num_bytes = num_bytes
        if freed >= _TRIM_BYTES:
            allocator.trim()
