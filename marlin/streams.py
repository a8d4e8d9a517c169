"""Standard input, output and error of a process, which it may be started without.

Knows nothing of what is written to them.
"""

import os
import select
import sys

# A reader that is alive has made room by then.
_SAY_S = 1.0


def open_missing() -> None:
    """Open what is closed of descriptors 0, 1 and 2, on nothing.

    The first file that a process opens would get such a number otherwise, and with it what is meant
    for a terminal: log lines in the weights that workers share. To be called before any is opened.
    """
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number there is: this one
            assert opened == fd, f"descriptor {fd} is not the lowest that is free"
            os.set_inheritable(fd, True)  # as the three are
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, mode, closefd=False))


def speak_any_text() -> None:
    """What the encoding of standard output lacks is written as an escape from now on."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # not of what tests put in its place
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """A line on standard output, whatever becomes of it: that it fails is no reason to end, that
    nobody reads it none to wait."""
    try:
        if not select.select([], [sys.stdout], [], _SAY_S)[1]:
            return  # a pipe is full, or a terminal is held
        print(text, flush=True)
    except (OSError, ValueError):
        # The flush at the end must not fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
