"""What /health tells: whether every part that answers depend on works, here or in any worker.

Those are the engine, which has to complete steps, the tokenizer, which a hostile file may hold for
hours, and what else can be asked: a few parts that are looked at, the answers themselves, which may
not be internal errors alone, and what the system had none of. Where log lines go is none of them:
nothing waits for whoever reads those, and a metric counts what is lost.
"""

import math
import threading
import time


class Failures:
    """Whether answers have become internal errors alone.

    Args:
        num_failures, seconds: so many in a row without a success, over so long, are no coincidence.
            Both: a client that knows what makes one fail can ask for that as fast as it likes.
        clock: monotonic seconds.
    """

    def __init__(self, num_failures, seconds, clock=time.monotonic):
        self._num_failures = num_failures
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._num = 0  # since the last success
        self._since = 0.0  # the first of them

    def answered(self, status):
        """A generation request has been answered; other statuses than these say nothing here."""
        with self._lock:
            if status == 200:
                self._num = 0
            elif status == 500:
                self._since = self._since if self._num else self._clock()
                self._num += 1

    def check(self):
        """As a part of Health."""
        with self._lock:
            is_few = self._num < self._num_failures
            if is_few or self._clock() - self._since < self._seconds:
                return None
            return f"the last {self._num} answers were internal errors"


THREADS, MEMORY = "threads", "memory"


class Shortages:
    """What the system had none of when it was needed, although it may have some again.

    Args:
        seconds: for so long after memory was missing it counts as scarce: whoever is told so asks
            elsewhere meanwhile.
        clock: monotonic seconds.
    """

    def __init__(self, seconds, clock=time.monotonic):
        self._seconds = seconds
        self._clock = clock
        self._missed = {}  # when, of each

    def missed(self, what):
        """There was no THREADS or no MEMORY for a connection or a request."""
        self._missed[what] = self._clock()

    def check(self):
        """Which of them is scarce, or None."""
        for what, when in tuple(self._missed.items()):
            if what == THREADS or self._clock() - when < self._seconds:
                return what
        return None

    def threads(self):
        """As a part of Health: once there was none, one has to be started to prove that there are.
        Without any the process can answer nobody new."""
        if THREADS in self._missed:
            threading.Thread(target=int, daemon=True).start()
            self._missed.pop(THREADS, None)


class Health:
    """The state of a server, told by its one process or by any of its workers.

    Args:
        model: engine.served_model.ServedModel, or None when no model is served.
        stuck_s: work that waits for a step for so long is stuck.
        row: this worker's observe.worker_table.WorkerRow; None of the only process.
        clock: seconds since a moment that all workers share.
        slow_s: work that waits for so long is better done by another worker.
        parts: callables that return what is wrong with a part, or None; or raise.
        shortages: Shortages, which may pass; None for none.
        outside: as parts, of what a new process would find as it is, such as a full disk.
    """

    def __init__(
        self,
        model,
        stuck_s,
        row=None,
        clock=time.monotonic,
        slow_s=5.0,
        parts=(),
        shortages=None,
        outside=(),
    ):
        self._model = model
        self._stuck_s = stuck_s
        self._slow_s = slow_s
        self._row = row
        self._clock = clock
        self._parts = parts
        self._shortages = shortages
        self._outside = outside
        self._wrong = self._wrong_outside = None
        self._wrong_since = 0.0
        self._looked = clock()

    def add(self, part):
        """One more of the parts."""
        self._parts = (*self._parts, part)

    def look(self):
        """Look at every part; several times a second."""
        wrong = next(filter(None, map(_wrong_with, self._parts)), None)
        self._looked = self._clock()
        if self._wrong is None:
            self._wrong_since = self._looked
        self._wrong = wrong
        self._wrong_outside = next(filter(None, map(_wrong_with, self._outside)), None)

    def failing(self, seconds):
        """What has been wrong with a part of the process for so long; None when nothing has."""
        has_lasted = self._clock() - self._wrong_since >= seconds
        return self._wrong if has_lasted else None

    @property
    def scarce(self):
        """What there was none of a moment ago: THREADS, MEMORY or None."""
        return None if self._shortages is None else self._shortages.check()

    @property
    def _works(self):
        return self._wrong is None and self._wrong_outside is None and self.scarce is None

    def waited_s(self):
        """Seconds that the work in hand has waited for a step, or a part of a text to be tokenized;
        inf when the engine has ended."""
        if self._model is None:
            return 0.0
        engine = self._model.engine
        if not engine.alive:
            return math.inf
        return max(engine.stats().seconds_since_step, self._model.tokenizing_s())

    def gives_way(self):
        """Whether this process is unwell, or its engine slow, and another's is neither."""
        if self._row is None or (self._works and self.waited_s() < self._slow_s):
            return False
        return any(
            row is not self._row and row.is_well(self._clock(), self._slow_s)
            for row in self._row.table.rows
        )

    def heartbeat(self):
        """Tell the other workers, if there are any, how this one is."""
        if self._row is not None:
            waited_s = self.waited_s() if self._works else math.inf
            self._row.heartbeat(self._clock(), waited_s)

    def is_well(self):
        """Whether requests can be answered, here or by any worker."""
        if self._row is None:
            is_looked_after = self._clock() - self._looked < self._stuck_s
            return self._works and is_looked_after and self.waited_s() < self._stuck_s
        self.heartbeat()
        return self._row.table.any_well(self._clock(), self._stuck_s)


def _wrong_with(part):
    try:
        return part()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001  (a panic of the tokenizers library is one)
        return f"{type(error).__name__}: {error}"
