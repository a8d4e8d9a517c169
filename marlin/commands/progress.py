"""What a person at a terminal sees of work that takes a while. Where there is no terminal, nothing
moves: a line now and then at most.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

# Work that takes less is over before anybody wonders.
PATIENCE_S = 1.0
TICK_S = 0.5
# Seconds between progress lines where there is no terminal to redraw.
PLAIN_PROGRESS_S = 10.0
BAR_COLUMNS = 30
_CLEAR = "\r\x1b[K"
# What a terminal would take for orders: a model's text may hold any.
_ORDERS = {code: 0xFFFD for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def spoken(text: str) -> str:
    """A model's text as a terminal may be given it: without the characters that steer one."""
    return text.translate(_ORDERS)


class Progress:
    """Shows how far work is that is counted: a bar on a terminal, a line now and then elsewhere.

    Args:
        stream: text file to write to.
        done: what was done to what is counted: "quantized".
        clock: returns seconds; only differences count.
    """

    def __init__(self, stream: TextIO, done: str, clock: Callable[[], float] = time.monotonic):
        self._stream = stream
        self._done = done
        self._clock = clock
        self._start = clock()
        self._shown = self._start

    def __call__(self, done, total):
        now = self._clock()
        share = done / total
        if self._stream.isatty():
            filled = int(BAR_COLUMNS * share)
            bar = "#" * filled + "." * (BAR_COLUMNS - filled)
            end = "\n" if done == total else ""
            self._stream.write(f"\r[{bar}] {share:4.0%} {now - self._start:5.0f} s{end}")
        elif done == total or now - self._shown >= PLAIN_PROGRESS_S:
            self._stream.write(f"{self._done} {share:.0%} after {now - self._start:.0f} s\n")
            self._shown = now
        self._stream.flush()


@contextmanager
def waiting(
    stream: TextIO,
    what: str,
    share: Callable[[], float] | None = None,
    patience_s: float = PATIENCE_S,
) -> Iterator[Callable[[], None]]:
    """On a terminal, a line that says what is waited for, and for how long; gone at the end.

    Args:
        what: "loading tiny.gguf".
        share: how much of it is done, 0 to 1, where that is known.

    Yields:
        A function that ends the line before the block does.
    """
    if not stream.isatty():
        yield lambda: None
        return
    ended = threading.Event()
    start = time.monotonic()

    def show():
        pause_s = patience_s
        while not ended.wait(pause_s):
            pause_s = TICK_S
            percent = f" {share():.0%}" if share else ""
            stream.write(f"{_CLEAR}{what}:{percent} {time.monotonic() - start:.0f} s")
            stream.flush()

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()

    def end():
        if not ended.is_set():
            ended.set()
            thread.join()
            if time.monotonic() - start >= patience_s:
                stream.write(_CLEAR)
                stream.flush()

    try:
        yield end
    finally:
        end()
