"""Every fault of the table, in each of its modes: wrong is 0, silent is 0, and lost is only what a
killed process had in hand.

The faults are in faults_*.py; a part of them runs always, all with -m chaos. The table comes at the
end of the run.
"""

import os

import faults_clients  # noqa: F401  (each file adds its rows)
import faults_locked  # noqa: F401
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


@pytest.mark.skipif(
    not os.path.exists("/proc/self/environ"), reason="processes are read from /proc"
)
@pytest.mark.parametrize(("fault", "mode"), CASES)
def test_no_answer_is_wrong_and_no_failure_silent(
    fault, mode, demo_model_path, reference, tmp_path, record_property
):
    with Arena(mode, demo_model_path, reference, tmp_path) as arena:
        try:
            fault.act(arena)
        finally:
            row = {
                name: arena.tally[name]
                for name in ("injected", "right", "refused", "lost", "wrong", "silent")
            }
            notes = [f"{count} x {note}"[:200] for note, count in arena.tally.notes.items()]
            record_property(
                "chaos", {"fault": f"{fault.area}: {fault.name} ({mode})", **row, "notes": notes}
            )
        arena.check(fault.may_lose)
