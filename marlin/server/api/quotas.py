"""What each key has in hand: requests at once and tokens of the last minute, against its limits.

Counts of one process; knows neither HTTP nor how keys are told apart.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from marlin.errors import RateLimitError
from marlin.server.api.keys import Principal

_MINUTE_S = 60.0
_MAX_RETRY_S = 60


class Quotas:
    """Args:
    clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._lock = threading.Lock()
        self._in_hand: Counter[str] = Counter()
        self._used: dict[str, tuple[float, float]] = {}  # tokens, as of when; they wear off

    @contextmanager
    def request(self, principal: Principal, used: Callable[[], int]) -> Iterator[None]:
        """A request, for the length of a `with` block.

        Args:
            used: tokens of its prompt and answer, asked for at its end: what a minute may have is
                over when it has been had, and then nothing begins until enough has worn off.

        Raises:
            RateLimitError: it would be one too many, or comes too soon.
        """
        with self._lock:
            self._check(principal)
            self._in_hand[principal.name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_hand[principal.name] -= 1
                left = self._left_over(principal) + used()
                if principal.tokens_per_minute is not None:
                    self._used[principal.name] = left, self._clock()

    def _check(self, principal):
        most = principal.concurrent_requests
        if most is not None and self._in_hand[principal.name] >= most:
            raise RateLimitError(f"key {principal.name} may have {most} requests at once", 1)
        per_minute = principal.tokens_per_minute
        if per_minute is None:
            return
        over = self._left_over(principal) - per_minute
        if over >= 0:
            # Until one token is free again.
            wait_s = max(1, math.ceil((over + 1) * _MINUTE_S / per_minute))
            raise RateLimitError(
                f"key {principal.name} has had the {per_minute} tokens that it may have a minute",
                min(wait_s, _MAX_RETRY_S),
            )

    def _left_over(self, principal):
        """Tokens that count as had lately: they wear off at the rate that is allowed."""
        used, since = self._used.get(principal.name, (0.0, 0.0))
        if principal.tokens_per_minute is None:
            return 0.0
        worn = (self._clock() - since) * principal.tokens_per_minute / _MINUTE_S
        return max(0.0, used - worn)
