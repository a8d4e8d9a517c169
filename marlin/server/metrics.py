"""What the server counts about itself.

Only counting: who asks and in which format is the app's affair.
"""

import resource
import sys
import threading
import time
from contextlib import contextmanager


class Metrics:
    """Counters of one process; every method may be called from any thread.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock=time.monotonic):
        self._clock = clock
        self._lock = threading.Lock()
        self._requests_total = 0
        self._requests_active = 0
        self._tokens_generated = 0
        self._busy_s = 0.0
        self._busy_since = 0.0

    @contextmanager
    def request(self):
        """Count a generation request, and hold it active for the length of a `with` block."""
        with self._lock:
            self._requests_total += 1
            if self._requests_active == 0:
                self._busy_since = self._clock()
            self._requests_active += 1
        try:
            yield
        finally:
            with self._lock:
                self._requests_active -= 1
                if self._requests_active == 0:
                    self._busy_s += self._clock() - self._busy_since

    def add_tokens(self, num_tokens):
        """Count generated tokens."""
        with self._lock:
            self._tokens_generated += num_tokens

    def snapshot(self):
        """The request and token counters, as /metrics names them.

        avg_tokens_per_second is over the time in which at least one request was active.
        """
        with self._lock:
            busy_s = self._busy_s
            if self._requests_active:
                busy_s += self._clock() - self._busy_since
            rate = self._tokens_generated / busy_s if busy_s > 0 else 0.0
            return {
                "requests_total": self._requests_total,
                "requests_active": self._requests_active,
                "tokens_generated_total": self._tokens_generated,
                "avg_tokens_per_second": round(rate, 2),
            }


def resident_bytes():
    """Resident memory of this process: its present size on Linux, its peak elsewhere."""
    if sys.platform == "linux":
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
