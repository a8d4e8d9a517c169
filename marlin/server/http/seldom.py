"""Log lines that a client could cause by the thousand."""

import logging
import time

_log = logging.getLogger("marlin.server")


class Seldom:
    """Warnings of one kind, of which there may be thousands a second: one a pause is logged, and
    tells how many were not.

    Args:
        pause_s: between two of them.
    """

    def __init__(self, pause_s: float):
        self._pause_s = pause_s
        self._due = 0.0
        self._num_held_back = 0

    def warn(self, message: str, *arguments: object) -> None:
        now = time.monotonic()
        if now < self._due:
            self._num_held_back += 1
            return
        if self._num_held_back:
            message += f" (and {self._num_held_back} times since the last such line)"
        self._due, self._num_held_back = now + self._pause_s, 0
        _log.warning(message, *arguments)
