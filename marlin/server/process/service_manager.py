"""What systemd is told on the socket that it names: that the server serves, and that it lives.

Source: sd_notify(3): datagrams of NAME=VALUE to the Unix socket in NOTIFY_SOCKET. It is opened
before the process is locked down, which refuses every later connect and sendto but no send.
"""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress


class ServiceManager:
    """Tells systemd, or nobody when it did not start this process.

    Attributes:
        interval_s: how often alive() is to be called at least; None when nobody waits for it.
    """

    def __init__(self, environ: Mapping[str, str]):
        self._socket = None
        self.interval_s: float | None = None
        self._told = 0.0
        address = environ.get("NOTIFY_SOCKET", "")
        if address[:1] not in ("/", "@"):
            return
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            opened.connect("\0" + address[1:] if address[0] == "@" else address)
        except OSError:  # nobody is there
            opened.close()
            return
        opened.setblocking(False)
        self._socket = opened
        span, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        if span.isdigit() and pid in ("", str(os.getpid())):
            self.interval_s = int(span) / 1e6 / 3

    def ready(self) -> None:
        """The server answers requests from now on."""
        self._tell(b"READY=1")

    def alive(self) -> None:
        """A sign of life, if it is time for one."""
        now = time.monotonic()
        if self.interval_s is not None and now - self._told >= self.interval_s / 2:
            self._told = now
            self._tell(b"WATCHDOG=1")

    def _tell(self, what):
        if self._socket is not None:
            with suppress(OSError):  # a full or closed socket: systemd misses the next one, too
                self._socket.send(what)
