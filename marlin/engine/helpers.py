"""Threads for work that nothing stops and that may take for ever, so that nobody need wait for it.

Made before they are needed. What such a thread is at when nobody waits any more goes on; while all
of them are at such work, further work waits, as long as it is wanted. Knows no work.
"""

import queue
import threading
from collections.abc import Callable
from typing import Any


class _Job:
    """Work, and what has become of it."""

    def __init__(self, work):
        self._work = work
        self.done = threading.Event()
        self.is_wanted = True
        self._value = self._error = None

    def do(self):
        try:
            self._value = self._work()
        except BaseException as error:  # noqa: BLE001  (whoever waits gets it, a panic as well)
            self._error = error
        self.done.set()

    def result(self):
        if self._error is not None:
            raise self._error
        return self._value


class Helpers:
    """Such threads.

    Args:
        num_threads: how many.
        poll_s: how often who waits looks whether to go on.
    """

    def __init__(self, num_threads: int, poll_s: float):
        self._poll_s = poll_s
        self._num_threads = num_threads
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        for _ in range(num_threads):
            threading.Thread(target=self._work, name="helper", daemon=True).start()

    def run(self, work: Callable[[], Any], still_wanted: Callable[[], None]) -> Any:
        """What work() returns or raises, on another thread; or what still_wanted() raises."""
        job = _Job(work)
        self._jobs.put(job)
        try:
            while not job.done.wait(self._poll_s):
                still_wanted()
        finally:
            job.is_wanted = False
        return job.result()

    def close(self) -> None:
        """The threads end, each after what it is at; run() is called no more."""
        for _ in range(self._num_threads):
            self._jobs.put(None)

    def _work(self):
        while (job := self._jobs.get()) is not None:
            if job.is_wanted:
                job.do()
            del job
