"""One thread that goes on with all answers under way, so that a step wakes one thread and not many.

An answer is a generator that yields where it would wait. Whose answer it is waits in run(), and
does itself what may take long, so that no answer keeps another from its tokens. Knows no text and
no connection.
"""

import enum
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from marlin.engine.request import Request


class Turn(enum.Enum):
    """What an answer yields."""

    WAIT = enum.auto()  # to go on when an event has come, or about poll_s are over
    ALONE = enum.auto()  # to go on in its own thread: what follows takes long or waits for a client


class _Task:
    """An answer under way.

    Attributes:
        turns: its generator.
        returned: what the thread of all gives back: a Turn, an exception, or None at its end.
        is_shared: whether that thread goes on with it.
        is_due: it was put where that thread looks, and has not been taken since.
        num_sweep: the sweep within which it last had a turn.
    """

    __slots__ = ("is_due", "is_shared", "num_sweep", "returned", "turns")

    def __init__(self, turns):
        self.turns = turns
        self.returned = queue.SimpleQueue()
        self.is_shared = self.is_due = False
        self.num_sweep = -1


class SharedReader:
    """The thread, which is there from now on.

    Args:
        poll_s: how often an answer goes on without an event, to look at its client and its time.
        clock: monotonic seconds.
    """

    def __init__(self, poll_s: float, clock: Callable[[], float] = time.monotonic):
        self._poll_s = poll_s
        self._clock = clock
        self._due: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._shared: dict[_Task, None] = {}  # of the thread alone
        self._num_sweep = 0
        self._thread = threading.Thread(target=self._work, name="reader", daemon=True)
        self._thread.start()

    def failing(self) -> str | None:
        """What is wrong with it, or None."""
        return None if self._thread.is_alive() else "the thread that reads answers has ended"

    def run(self, turns: Iterator[Turn], requests: Sequence[Request]) -> None:
        """Bring an answer to its end; raises what it raises.

        Args:
            turns: the answer.
            requests: whose events it reads.
        """
        task = _Task(turns)

        def wake():
            if not task.is_due:
                task.is_due = True
                self._due.put(task)

        for request in requests:
            request.events.listener = wake
        try:
            self._run(task)
        finally:  # an answer is freed at its end, by no collector
            for request in requests:
                request.events.listener = None

    def _run(self, task):
        turn = next(task.turns, None)
        while turn is not None:
            if turn is Turn.WAIT and self._take(task):
                turn = task.returned.get()
                if isinstance(turn, BaseException):
                    try:
                        raise turn
                    finally:
                        del turn  # its traceback has this frame
            else:
                if turn is Turn.WAIT:
                    time.sleep(self._poll_s)
                turn = next(task.turns, None)

    def _take(self, task):
        """Share an answer, unless nobody is there to go on with it."""
        with self._lock:
            if self._closed:
                return False
            task.is_shared = task.is_due = True
            self._due.put(task)
            return True

    def close(self) -> None:
        """End the thread, in two seconds at most; answers under way go on in their own."""
        with self._lock:
            self._closed = True
            self._due.put(None)
        self._thread.join(2.0)

    def _work(self):
        sweep_at = self._clock() + self._poll_s
        while True:
            wait_s = max(0.0, sweep_at - self._clock()) if self._shared else None
            with suppress(queue.Empty, MemoryError):
                task = self._due.get(timeout=wait_s)
                if task is None:
                    break
                task.is_due = False  # what comes from now on is another turn
                if task.is_shared:
                    self._go_on(task)
                del task
            if self._clock() >= sweep_at:
                with suppress(MemoryError):
                    self._sweep()
                sweep_at = self._clock() + self._poll_s
        for task in list(self._shared):
            self._give_back(task, Turn.ALONE)

    def _sweep(self):
        """A turn for each that has had none since the last sweep."""
        for task in [task for task in self._shared if task.num_sweep != self._num_sweep]:
            self._go_on(task)
        self._num_sweep += 1

    def _go_on(self, task):
        task.num_sweep = self._num_sweep
        try:
            turn = next(task.turns, None)
            if turn is Turn.WAIT:
                self._shared[task] = None
                return
            self._give_back(task, turn)
        except BaseException as error:  # noqa: BLE001  (its own thread gets it, a panic as well)
            self._give_back(task, error)

    def _give_back(self, task, turn):
        self._shared.pop(task, None)
        task.is_shared = False
        task.returned.put(turn)
