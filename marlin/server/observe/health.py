"""What /health tells: whether the engine still completes steps, here or in any worker."""

import math
import time


class Health:
    """The state of a server of one process.

    Args:
        model: engine.served_model.ServedModel, or None when no model is served.
        stuck_s: work that waits for a step for so long is stuck.
    """

    def __init__(self, model, stuck_s):
        self._model = model
        self._stuck_s = stuck_s

    def waited_s(self):
        """Seconds that the work in hand has waited for a step; inf when the engine has ended."""
        if self._model is None:
            return 0.0
        engine = self._model.engine
        return engine.stats().seconds_since_step if engine.alive else math.inf

    def heartbeat(self):
        """There is no other worker to tell."""

    def is_well(self):
        """Whether requests can be answered."""
        return self.waited_s() < self._stuck_s


class SharedHealth(Health):
    """The state of a server of several workers, told by any of them.

    Args:
        model, stuck_s: as Health's.
        row: this worker's observe.worker_table.WorkerRow.
        clock: seconds since a moment that all workers share.
    """

    def __init__(self, model, stuck_s, row, clock=time.monotonic):
        super().__init__(model, stuck_s)
        self._row = row
        self._clock = clock

    def heartbeat(self):
        """Tell the other workers how this one is."""
        self._row.heartbeat(self._clock(), self.waited_s())

    def is_well(self):
        """Whether any worker can answer requests."""
        self.heartbeat()
        return self._row.table.any_well(self._clock(), self._stuck_s)
