"""What a process that serves must never do, refused by the interpreter: reach out to anyone, start
a process, load native code that is not the project's.

http.server brings an HTTP client into the process and so may any package; here it does not matter
what is there, since none of it can be used. The refusals are an audit hook (PEP 578), which cannot
be taken out again: serve and its workers install it before they listen, importing the package does
not. It stops Python code, not native code, which is why what native code is loaded is its affair.
It is a promise kept against mistakes and what packages do, not a sandbox for code that fights it.
"""

import ctypes  # noqa: F401  (the first import opens the process itself as a library)
import logging
import os
import sys
from collections.abc import Iterable

from marlin.errors import LockdownError

_log = logging.getLogger("marlin.server")
# Audit event to the place in its arguments of what is worth a log line, or None. The table of
# events is in the documentation of the Python library.
_REACHING_OUT = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
    "socket.gethostbyaddr": 0,
    "socket.getnameinfo": 0,
}
_STARTING = {
    "subprocess.Popen": 0,
    "os.exec": 0,
    "os.fork": None,
    "os.forkpty": None,
    "os.posix_spawn": 0,
    "os.spawn": 1,
    "os.system": 0,
}
_LOADING = {"ctypes.dlopen": 0, "import": 0}
# What subprocess and multiprocessing start processes with. The latter's way raises no event of its
# own, but neither can be imported without it.
_STARTER = "_posixsubprocess"


def lock_down(libraries: Iterable[str | os.PathLike], program: str | None = None) -> None:
    """Refuse all of it from now on, until the process ends.

    Args:
        libraries: the files that may still be loaded as native libraries.
        program: what subprocess.Popen may still start; None is nothing.

    What is refused raises LockdownError where it was tried, and is logged.
    """
    shown = {**_REACHING_OUT, **_STARTING, **_LOADING}
    files = {os.fspath(path) for path in libraries}

    def is_allowed(event, what):
        if event == "import":
            return what != _STARTER or program is not None
        if event == "subprocess.Popen":
            return program is not None and what == program
        return event == "ctypes.dlopen" and isinstance(what, str) and what in files

    def refuse(event, arguments):
        if event not in shown:
            return
        place = shown[event]
        what = None if place is None else arguments[place]
        if not is_allowed(event, what):
            _log.critical("refused: %s %r", event, what)
            raise LockdownError(f"a serving process does no {event}")

    sys.addaudithook(refuse)


def forbid_writing(paths: Iterable[str | os.PathLike]) -> None:
    """Refuse to open any file for writing from now on, until the process ends.

    Args:
        paths: of files that may be; /dev/null may, too. What is open stays so.
    """
    allowed = {os.fspath(path) for path in paths} | {os.devnull}

    def refuse(event, arguments):
        if event != "open":
            return
        path, _, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        if not writes or isinstance(path, int) or path in allowed:
            return
        _log.critical("refused: opening %r for writing", path)
        raise LockdownError("a serving process in lock-down writes nothing but its audit log")

    sys.addaudithook(refuse)
