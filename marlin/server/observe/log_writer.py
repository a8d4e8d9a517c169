"""Log lines on their way out: a bounded queue and one thread that writes, so that nobody who logs
waits for whoever reads.

What does not fit, or cannot be written, is counted and told of once lines get through again. Knows
no format.
"""

import logging
import os
import threading
import time
from collections import deque
from typing import TextIO

# Some seconds of the busiest server; with paths cut, a few megabytes.
NUM_LINES = 10_000
# How long the end of the process waits for what is queued.
FLUSH_S = 1.0
_FULL_S = 0.05  # before a full pipe is tried again


class LogWriter(logging.Handler):
    """A handler whose emit() never waits for its stream.

    Args:
        stream: with a descriptor, a copy of which is written to: whatever becomes of the stream,
            the number is no other file's. The stream's own buffer and its lock, which the
            interpreter takes at its end, are left alone.
    """

    def __init__(self, stream: TextIO, num_lines: int = NUM_LINES):
        super().__init__()
        self._fd = os.dup(stream.fileno())
        self._num_lines = num_lines
        self._lines: deque[str] = deque()
        self._changed = threading.Condition()
        self._num_dropped = self._num_lost = 0  # since a line told of them, since take_lost()
        self._is_writing = self._is_closed = False
        self._thread = threading.Thread(target=self._write_until_closed, name="log", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def take_lost(self) -> int:
        """How many lines were lost since the last call."""
        with self._changed:
            num_lost, self._num_lost = self._num_lost, 0
        return num_lost

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  (as every handler: logging must not end what logs)
            self.handleError(record)
            return
        with self._changed:
            if len(self._lines) >= self._num_lines:
                self._num_dropped += 1
                self._num_lost += 1
            else:
                self._lines.append(line)
                self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all is written, FLUSH_S at most."""
        end = time.monotonic() + FLUSH_S
        with self._changed:
            while self._lines or self._is_writing:
                if not self._changed.wait(end - time.monotonic()):
                    return

    def close(self) -> None:
        """Let the thread end once it has written what is queued; waits for nothing."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        super().close()

    def _write_until_closed(self):
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines or self._is_closed)
                if not self._lines:
                    break
                lines, num_dropped = list(self._lines), self._num_dropped
                self._lines.clear()
                self._num_dropped, self._is_writing = 0, True
            if num_dropped:
                lines.append(self._told(num_dropped))
            text = "\n".join([*lines, ""])
            if not self._write(text.encode("utf-8", "backslashreplace")):
                num_lines = len(lines) - (num_dropped > 0)
                with self._changed:
                    self._num_dropped += num_dropped + num_lines
                    self._num_lost += num_lines
        os.close(self._fd)

    def _told(self, num_dropped):
        message = "%d log lines were lost: whoever reads them was too slow, or they failed"
        facts = ("marlin.server", logging.WARNING, "", 0, message, (num_dropped,), None)
        return self.format(logging.LogRecord(*facts))

    def _write(self, data):
        """Whether it could be."""
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # whoever shares the pipe made it so, and it is full
                time.sleep(_FULL_S)
            except OSError:
                return False
        return True
