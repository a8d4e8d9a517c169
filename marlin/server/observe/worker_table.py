"""A table in shared memory in which each worker process keeps its numbers for the others to read.

Every worker writes to its own row only, one float64 at a time, so nobody waits for anybody and a
worker that is killed leaves nothing half written. What the numbers mean is observe/metrics.py's and
observe/health.py's affair.
"""

import math
import mmap
import os

from marlin.server.observe.metrics import NUM_CELLS, clear_gauges, read_snapshot

# After the metrics' cells: when the worker last gave a sign of life (time.monotonic(), which all
# processes of a machine share; 0 when it is down), and how long its engine had then waited for a
# step.
_BEAT, _WAITED = NUM_CELLS, NUM_CELLS + 1
# A multiple of 8 cells, a cache line: workers do not slow one another down.
_ROW_CELLS = -(-(NUM_CELLS + 2) // 8) * 8


class WorkerTable:
    """The rows of all workers.

    Args:
        fd: descriptor of a file, open for reading and writing; create() makes one.
        num_workers: workers.
    """

    def __init__(self, fd, num_workers):
        cells = memoryview(mmap.mmap(fd, num_workers * _ROW_CELLS * 8)).cast("d")
        self.rows = [
            WorkerRow(self, cells[index * _ROW_CELLS : (index + 1) * _ROW_CELLS])
            for index in range(num_workers)
        ]

    @classmethod
    def create(cls, fd, num_workers):
        """The table of a new, empty file."""
        os.ftruncate(fd, num_workers * _ROW_CELLS * 8)
        return cls(fd, num_workers)

    def snapshots(self, now):
        """One array of cells for each row, as observe.metrics.total() takes them."""
        return [read_snapshot(row.metrics, now) for row in self.rows]

    def any_well(self, now, stuck_s):
        """Whether a worker is up, gave a sign of life within stuck_s, and is not stuck."""
        return any(row.is_well(now, stuck_s) for row in self.rows)


class WorkerRow:
    """One worker's row of a WorkerTable.

    Attributes:
        table: the whole.
        metrics: memoryview of float64 [NUM_CELLS], for observe.metrics.Metrics. Whoever takes the
            row next goes on counting there: totals never go down.
    """

    def __init__(self, table, cells):
        self.table = table
        self.metrics = cells[:NUM_CELLS]
        self._cells = cells

    def heartbeat(self, now, waited_s):
        """A sign of life.

        Args:
            now: time.monotonic().
            waited_s: how long the engine's work has waited for a step; inf if it has ended.
        """
        self._cells[_WAITED] = waited_s
        self._cells[_BEAT] = now

    def is_well(self, now, stuck_s):
        """As WorkerTable.any_well, of one."""
        beat = self._cells[_BEAT]
        return beat > 0 and now - beat < stuck_s and self._cells[_WAITED] < stuck_s

    def silent_s(self, now, born, start_s):
        """How long nothing has been heard of its worker, or its engine has completed no step.

        Args:
            now: time.monotonic().
            born: when its process was started, which is its first sign of life.
            start_s: seconds that it may then take until the next.
        """
        beat, waited_s = self._cells[_BEAT], self._cells[_WAITED]
        if beat == 0:
            return max(0.0, now - born - start_s)
        # An engine that has ended waits for nothing; its process has to go on beating until it,
        # too, has ended.
        return max(now - beat, 0.0 if math.isinf(waited_s) else waited_s)

    def vacate(self, now):
        """Its worker is gone: what it was busy with ends, what it counted stays."""
        self._cells[_BEAT] = 0.0
        settled = read_snapshot(self.metrics, now)
        clear_gauges(settled)
        self.metrics[:] = memoryview(settled)
