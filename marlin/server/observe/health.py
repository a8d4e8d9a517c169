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
    """

    def __init__(self, model, stuck_s, row=None, clock=time.monotonic):
        self._model = model
        self._stuck_s = stuck_s
        self._row = row
        self._clock = clock

    def waited_s(self):
        """Seconds that the work in hand has waited for a step; inf when the engine has ended."""
        if self._model is None:
            return 0.0
        engine = self._model.engine
        return engine.stats().seconds_since_step if engine.alive else math.inf

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
