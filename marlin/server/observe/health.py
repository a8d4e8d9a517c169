"""What /health tells: whether the engine still completes steps, here or in any worker."""

import math
import time


class Health:
    """The state of a server, told by its one process or by any of its workers.

    Args:
        model: engine.served_model.ServedModel, or None when no model is served.
        stuck_s: work that waits for a step for so long is stuck.
        row: this worker's observe.worker_table.WorkerRow; None of the only process.
        clock: seconds since a moment that all workers share.
        slow_s: work that waits for so long is better done by another worker.
    """

    def __init__(self, model, stuck_s, row=None, clock=time.monotonic, slow_s=5.0):
        self._model = model
        self._stuck_s = stuck_s
        self._slow_s = slow_s
        self._row = row
        self._clock = clock

    def waited_s(self):
        """Seconds that the work in hand has waited for a step; inf when the engine has ended."""
        if self._model is None:
            return 0.0
        engine = self._model.engine
        return engine.stats().seconds_since_step if engine.alive else math.inf

    def gives_way(self):
        """Whether this process's engine takes long for its step and another worker's does not."""
        if self._row is None or self.waited_s() < self._slow_s:
            return False
        return any(
            row is not self._row and row.is_well(self._clock(), self._slow_s)
            for row in self._row.table.rows
        )

    def heartbeat(self):
        """Tell the other workers, if there are any, how this one is."""
        if self._row is not None:
            self._row.heartbeat(self._clock(), self.waited_s())

    def is_well(self):
        """Whether requests can be answered, here or by any worker."""
        if self._row is None:
            return self.waited_s() < self._stuck_s
        self.heartbeat()
        return self._row.table.any_well(self._clock(), self._stuck_s)
