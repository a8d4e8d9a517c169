"""Every fault of the table, in each of its modes: wrong is 0, silent is 0, and lost is only what a
killed process had in hand.

The faults are in faults_*.py; a part of them runs always, all with -m chaos. -m soak has those that
a server in lock-down must bear for half an hour, or CHAOS_SOAK_S. The table comes at the end of the
run.
"""

import os

import faults_clients  # noqa: F401  (each file adds its rows)
import faults_locked
import faults_signals  # noqa: F401
import faults_system  # noqa: F401
import pytest
from arena import FAULTS, Arena

CASES = [
    pytest.param(
        *(fault, mode),
        id=f"{fault.area}: {fault.name} ({mode})",
        marks=pytest.mark.chaos(quick=mode in fault.quick),
    )
    for fault in FAULTS
    for mode in fault.modes
]


SOAK_S = float(os.environ.get("CHAOS_SOAK_S", "1800"))
needs_proc = pytest.mark.skipif(
    not os.path.exists("/proc/self/environ"), reason="processes are read from /proc"
)


@pytest.fixture
def run(demo_model_path, reference, tmp_path, record_property):
    """run(name, mode, act, may_lose): act in an Arena, counted in a row of this name."""

    def run(name, mode, act, may_lose):
        with Arena(mode, demo_model_path, reference, tmp_path) as arena:
            try:
                act(arena)
            finally:
                columns = ("injected", "right", "refused", "lost", "wrong", "silent")
                row = {column: arena.tally[column] for column in columns}
                notes = [f"{count} x {note}"[:200] for note, count in arena.tally.notes.items()]
                record_property("chaos", {"fault": f"{name} ({mode})", **row, "notes": notes})
            arena.check(may_lose)

    return run


@needs_proc
@pytest.mark.parametrize(("fault", "mode"), CASES)
def test_no_answer_is_wrong_and_no_failure_silent(fault, mode, run):
    run(f"{fault.area}: {fault.name}", mode, fault.act, fault.may_lose)


@needs_proc
@pytest.mark.soak
def test_a_server_in_lock_down_bears_half_an_hour_of_everything(run):
    def act(arena):
        faults_locked.soak(arena, SOAK_S)

    run("soak", "workers, batching", act, may_lose=True)
