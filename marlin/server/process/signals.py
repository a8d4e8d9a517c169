"""Signals that end a server, as something its main thread can wait on."""

import os
import select
import signal
import time


class StopSignals:
    """SIGTERM and SIGINT, and `others`, as bytes in a pipe for the main thread to wait on.

    The interpreter's own C handler writes them (signal.set_wakeup_fd), so that a signal is seen
    whichever thread it lands on, and also in the instant before the wait begins.
    """

    def __init__(self, others=()):
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer)
        for signum in (signal.SIGTERM, signal.SIGINT, *others):
            signal.signal(signum, lambda _signum, _frame: None)

    def fileno(self):
        """Readable when wait() would not have to."""
        return self._reader

    def wait(self):
        """Wait for the next signal, or for finish(); returns the signal's number, or 0."""
        return os.read(self._reader, 1)[0]

    def wait_for(self, seconds):
        """Wait so long for a signal; returns its number, or 0 without one."""
        end = time.monotonic() + seconds
        while (left_s := end - time.monotonic()) > 0:
            if select.select([self], [], [], left_s)[0] and (signum := self.wait()):
                return signum
        return 0

    def finish(self):
        """Let wait() return 0. Any thread."""
        os.write(self._writer, b"\0")
