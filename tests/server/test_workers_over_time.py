"""`serve --workers N` while time passes: at rest, after many replacements, and at the end of
patience."""

import os
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from test_workers import pair, processor_s, start  # noqa: F401  (fixtures)
from worker_processes import running, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descriptors(pid):
    """What each descriptor of a process is, but for numbers that differ from pipe to pipe."""
    found = Counter()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found[os.readlink(fd).partition("[")[0]] += 1
    return found


def test_nobody_works_while_there_is_nothing_to_do(pair):  # noqa: F811
    processes = [pair.popen.pid, *pair.pids()]
    before = [processor_s(pid) for pid in processes]
    time.sleep(0.7)
    used = [processor_s(pid) - was for pid, was in zip(processes, before, strict=True)]
    assert max(used) < 0.2, used


def test_a_worker_that_was_replaced_leaves_nothing_behind(pair):  # noqa: F811
    supervisor = pair.popen.pid
    until(lambda: pair.logged("serves"), "their first words")
    before = descriptors(supervisor)
    for num_served in (3, 4, 5):
        os.kill(pair.pids()[-1], signal.SIGKILL)
        pair.wait_for_workers(num_served)
    # Before, some that a start needs may have been open still.
    until(lambda: not descriptors(supervisor) - before, f"the descriptors {before} and no others")
    assert len(children(supervisor)) == 2


def test_a_worker_that_does_not_end_in_time_is_killed_and_the_others_are_not(start):  # noqa: F811
    workers = start("gated", "--workers", "2", DRAIN_S="0.2", STOP_S="0.4")
    stopped, other = workers.wait_for_workers(2)
    os.kill(stopped, signal.SIGSTOP)
    began = time.monotonic()
    workers.popen.send_signal(signal.SIGTERM)
    assert workers.wait() == 0
    assert time.monotonic() - began > 0.5
    assert not running(stopped) and not running(other)
    assert len(workers.logged("did not end in time and is killed")) == 1
    assert not workers.logged("replaced in")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_model_loads_ends_it_all(start, signum):  # noqa: F811
    workers = start("never-loaded", "--workers", "2", announces=False)
    (loading,) = until(lambda: children(workers.popen.pid), "a process that loads")
    until(lambda: workers.logged("loading for ever"), "its beginning")
    workers.popen.send_signal(signum)
    assert workers.wait() == 0
    assert not running(loading)


def test_a_model_whose_loading_is_killed_is_one_line_and_exit_code_1(start):  # noqa: F811
    workers = start("never-loaded", "--workers", "2", announces=False)
    until(lambda: workers.logged("loading for ever"), "its beginning")
    os.kill(children(workers.popen.pid)[0], signal.SIGKILL)
    assert workers.wait() == 1
    assert workers.logged("loading the model was ended by signal 9")


def test_who_loads_the_model_ends_with_its_supervisor(start):  # noqa: F811
    workers = start("never-loaded", "--workers", "2", announces=False)
    until(lambda: workers.logged("loading for ever"), "its beginning")
    (loading,) = children(workers.popen.pid)
    workers.popen.kill()
    until(lambda: not running(loading), "its end")
