"""What no signal and no limit can do to a process from outside, done from within each of its
Python processes: an engine that hangs, a clock that jumps.

Python imports this module at its start when the folder is on PYTHONPATH. Each fault begins when the
file exists that its variable names.
"""

import os
import time


def _when_file(name):
    return os.path.exists(os.environ.get(name, "\0"))


def _hang_engine():
    """In the process whose id the file holds, or in any when it is empty."""
    from marlin.engine.runner import Runner

    step = Runner.step

    def step_or_hang(self, chunks):
        while _when_file("ENGINE_HANGS") and _is_meant(os.environ["ENGINE_HANGS"]):
            time.sleep(0.05)
        return step(self, chunks)

    Runner.step = step_or_hang


def _is_meant(path):
    with open(path, encoding="ascii") as file:
        return file.read() in ("", str(os.getpid()))


def _step_clock():
    """The time of day is off by as many seconds as the file says."""
    now = time.time

    def moved():
        path = os.environ["CLOCK_STEPS"]
        if not os.path.exists(path):
            return now()
        with open(path, encoding="ascii") as file:
            return now() + float(file.read() or 0)

    time.time = moved


if "ENGINE_HANGS" in os.environ:
    _hang_engine()
if "CLOCK_STEPS" in os.environ:
    _step_clock()
