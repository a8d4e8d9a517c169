"""A board in shared memory on which each worker process keeps its numbers for the others to read.

Every worker writes to its own seat only, one float64 at a time, so nobody waits for anybody and a
worker that is killed leaves nothing half written. What the numbers mean is observe/metrics.py's and
observe/health.py's affair.
"""

import mmap
import os

from marlin.server.observe.metrics import NUM_CELLS, clear_gauges, read_snapshot

# After the metrics' cells: when the worker last gave a sign of life (time.monotonic(), which all
# processes of a machine share; 0 when it is down), and how long its engine had then waited for a
# step.
_BEAT, _WAITED = NUM_CELLS, NUM_CELLS + 1
# A multiple of 8 cells, a cache line: workers do not slow one another down.
_SEAT_CELLS = -(-(NUM_CELLS + 2) // 8) * 8


class Board:
    """The seats of all workers.

    Args:
        fd: descriptor of a file, open for reading and writing; create() makes one.
        num_seats: workers.
    """

    def __init__(self, fd, num_seats):
        cells = memoryview(mmap.mmap(fd, num_seats * _SEAT_CELLS * 8)).cast("d")
        self.seats = [
            Seat(self, cells[index * _SEAT_CELLS : (index + 1) * _SEAT_CELLS])
            for index in range(num_seats)
        ]

    @classmethod
    def create(cls, fd, num_seats):
        """The board of a new, empty file."""
        os.ftruncate(fd, num_seats * _SEAT_CELLS * 8)
        return cls(fd, num_seats)

    def snapshots(self, now):
        """One array of cells for each seat, as observe.metrics.total() takes them."""
        return [read_snapshot(seat.metrics, now) for seat in self.seats]

    def any_well(self, now, stuck_s):
        """Whether a worker is up, gave a sign of life within stuck_s, and is not stuck."""
        return any(seat.is_well(now, stuck_s) for seat in self.seats)


class Seat:
    """One worker's part of a Board.

    Attributes:
        board: the whole.
        metrics: memoryview of float64 [NUM_CELLS], for observe.metrics.Metrics. Whoever takes the
            seat next goes on counting there: totals never go down.
    """

    def __init__(self, board, cells):
        self.board = board
        self.metrics = cells[:NUM_CELLS]
        self._cells = cells

    def beat(self, now, waited_s):
        """A sign of life.

        Args:
            now: time.monotonic().
            waited_s: how long the engine's work has waited for a step; inf if it has ended.
        """
        self._cells[_WAITED] = waited_s
        self._cells[_BEAT] = now

    def is_well(self, now, stuck_s):
        """As Board.any_well, of one."""
        beat = self._cells[_BEAT]
        return beat > 0 and now - beat < stuck_s and self._cells[_WAITED] < stuck_s

    def vacate(self, now):
        """Its worker is gone: what it was busy with ends, what it counted stays."""
        self._cells[_BEAT] = 0.0
        settled = read_snapshot(self.metrics, now)
        clear_gauges(settled)
        self.metrics[:] = memoryview(settled)
