"""A process that hangs is ended, by itself or by its supervisor, so that another can serve.

Knows how long something has been silent; what it is that is silent is told by others.
"""

import faulthandler
import logging
import math
import os
import threading
import time
from contextlib import suppress
from functools import partial

_log = logging.getLogger("marlin.server")
# What one look counts at most: a process that was stopped itself, or had no processor, has not seen
# others hang meanwhile.
_LOOK_S = 2.0
# For a last word, which may have nobody who reads it: the log waits a second for its reader.
_LAST_WORD_S = 2.0


class Patience:
    """How long something has hung, in time in which this process ran.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: float):
        self._looked = now
        self._hung_s = 0.0

    def look(self, silent_s: float, now: float) -> float:
        """Seconds that it has hung, of those silent_s that it seems to have."""
        self._hung_s = min(silent_s, self._hung_s + min(now - self._looked, _LOOK_S))
        self._looked = now
        return self._hung_s


def beat(
    app,
    limits,
    tell=lambda: None,
    finish=lambda: None,
    give_up=lambda: None,
    exit_process=os._exit,
):
    """Give signs of life until the process ends. End it with status 1 when its engine hangs, and
    after what is in hand when a part of it fails for good.

    Args:
        app: api.app.App.
        limits: http.limits.Limits.
        tell: callable; a service manager's sign of life.
        finish: callable; begins the end of a process that can still answer.
        give_up: callable; tells whoever waits for an engine that hangs.
        exit_process: callable(status).
    """
    patience, is_ending = Patience(time.monotonic()), False
    while True:
        time.sleep(limits.heartbeat_s)
        try:
            if _hangs(app, patience, limits.hung_s):
                _in_time(give_up, limits.linger_s + limits.abort_s)
                _in_time(partial(_say_last_word, limits.hung_s), _LAST_WORD_S)
                exit_process(1)
                return
            tell()
            app.heartbeat()
            if not is_ending and (what := app.failing(limits.failing_s)):
                _log.critical("this process cannot answer, and ends: %s", what)
                finish()
                is_ending = True
        except OSError as error:  # such as no descriptor left to read how much memory is used
            _log.warning("this process's sign of life is late: %s", error.strerror)
        except MemoryError:
            app.missed("memory")


def _hangs(app, patience, hung_s):
    waited_s = app.waited_s()
    if math.isinf(waited_s):  # it has ended, and the process is about to
        waited_s = 0.0
    return patience.look(waited_s, time.monotonic()) >= hung_s


def _in_time(act, seconds):
    """act(), for so long; not without a thread for it."""
    acting = threading.Thread(target=act, daemon=True)
    with suppress(RuntimeError, MemoryError):  # no thread can be started
        acting.start()
        acting.join(seconds)


def start_beating(app, limits, *arguments, **named):
    """beat() on a thread of its own."""
    arguments = app, limits, *arguments
    threading.Thread(target=beat, args=arguments, kwargs=named, name="beat", daemon=True).start()


def _say_last_word(hung_s):
    _log.critical(
        "the engine or the tokenizer has done nothing for %g s, and this process ends", hung_s
    )
    logging.shutdown()
    faulthandler.dump_traceback(file=2, all_threads=True)
