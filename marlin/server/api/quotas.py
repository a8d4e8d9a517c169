"""What each key has in hand, and tokens of the last minute, against its limits: in all of a
server's processes together.

Each counts in its own cells, which the others read (observe/worker_table.py); knows neither HTTP
nor how keys are told apart.
"""

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from marlin.errors import RateLimitError
from marlin.server.api.keys import Principal
from marlin.server.observe.metrics import FAMILIES, Metrics, RequestRecord

_MINUTE_S = 60.0
_MAX_RETRY_S = 60
_IN_HAND, _TOKENS = "key_requests_in_hand", "key_tokens_total"
_LEVEL, _LEVEL_AT, _WHOSE = "key_tokens_of_minute", "key_tokens_of_minute_at", "key_of_minute"


class _Level(NamedTuple):
    """Tokens that count as had lately, as of when; tokens: that had ever been counted by then under
    the number that the key had."""

    value: float
    at: float
    tokens: float
    number: int


def _whose(name):
    """A number that a cell holds exactly, of a key's name: whoever edits a key file may give its
    number to another."""
    return float(int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big"))


class Quotas:
    """The limits of keys. Any thread.

    Args:
        metrics: of this process.
        rows: the cells of all processes' metrics, this one's among them.
        clock: seconds since a moment that all processes share.
    """

    def __init__(
        self,
        metrics: Metrics,
        rows: Sequence[Sequence[float]],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._metrics, self._rows, self._clock = metrics, rows, clock
        self._lock = threading.Lock()
        self._levels: dict[str, _Level] = {}

    def look(self, principals: Iterable[Principal]) -> None:
        """Take note of what other processes have counted; several times a second."""
        with self._lock:
            for principal in principals:
                if principal.tokens_per_minute is not None:
                    self._level(principal)

    @contextmanager
    def use(
        self, principal: Principal, is_post: bool, record: RequestRecord
    ) -> Iterator[Callable[[], None]]:
        """A request, for the length of a `with` block. What a minute may have is over when it has
        been had, and then nothing begins until enough has worn off.

        Yields what gives its place among the key's requests in hand back before the block ends.

        Args:
            is_post: others take nothing that is limited.
            record: tells its tokens, at its end.

        Raises:
            RateLimitError: it would be one too many, or comes too soon.
        """
        held = []
        if is_post:
            with self._lock:
                held = self._begin(principal)

        def give_back():
            while held:
                self._metrics.hold_for_key(held.pop(), -1)

        try:
            yield give_back
        finally:
            if not principal.shares:
                used = record.num_prompt_tokens + record.num_output_tokens
                self._metrics.used_by_key(principal.number, used)
            give_back()

    def _begin(self, principal):
        """The numbers of keys that have one more in hand now."""
        self._check_minute(principal)
        if principal.shares:
            return []
        # Counted first: of two processes that begin one at once, one sees the other's at least.
        self._metrics.hold_for_key(principal.number, 1)
        most = principal.concurrent_requests
        if most is not None and self._sum(_IN_HAND, principal) > most:
            self._metrics.hold_for_key(principal.number, -1)
            raise RateLimitError(f"key {principal.name} may have {most} requests at once", 1)
        return [principal.number]

    def _check_minute(self, principal):
        per_minute = principal.tokens_per_minute
        if per_minute is None:
            return
        over = self._level(principal) - per_minute
        if over >= 0:
            # Until one token is free again.
            wait_s = max(1, math.ceil((over + 1) * _MINUTE_S / per_minute))
            raise RateLimitError(
                f"key {principal.name} has had the {per_minute} tokens that it may have a minute",
                min(wait_s, _MAX_RETRY_S),
            )

    def _level(self, principal):
        """Tokens that count as had lately: they wear off at the rate that is allowed."""
        now, tokens = self._clock(), self._sum(_TOKENS, principal)
        before = self._levels.get(principal.name)
        if before is None:  # a process that has just begun goes on from what others know
            known = self._published(principal)
            value, at = max(known, key=lambda each: self._worn(each, now), default=(0.0, now))
            before = _Level(value, at, tokens, principal.number)
        elif before.number != principal.number:
            before = before._replace(tokens=tokens)
        rate = principal.tokens_per_minute / _MINUTE_S
        value = max(0.0, before.value - (now - before.at) * rate) + tokens - before.tokens
        self._levels[principal.name] = _Level(value, now, tokens, principal.number)
        self._metrics.publish_level(principal.number, value, now, _whose(principal.name))
        return value

    @staticmethod
    def _worn(known, now):
        """Whose knowledge counts: who knew it last, and of those at once whoever knew of more."""
        value, at = known
        return at if at <= now else -math.inf, value

    def _published(self, principal):
        number, its = principal.number, _whose(principal.name)
        value, at, whose = (FAMILIES[name].start + number for name in (_LEVEL, _LEVEL_AT, _WHOSE))
        return [(row[value], row[at]) for row in self._rows if row[whose] == its]

    def _sum(self, family, principal):
        cell = FAMILIES[family].start + principal.number
        return sum(row[cell] for row in self._rows)
