"""The reference run that every fault's answers are compared with, and the table at the end."""

import pytest

_COLUMNS = ("injected", "right", "refused", "lost", "wrong", "silent")


@pytest.fixture(scope="module")
def reference(demo_model_path):
    """The right answers: a sequential server's that nothing happens to."""
    from judge import Reference
    from victim import Victim

    victim = Victim(demo_model_path)
    try:
        victim.wait_until_well()
        yield Reference(victim.port)
    finally:
        victim.close()


def pytest_terminal_summary(terminalreporter):
    """A row for each fault that was injected."""
    reports = [report for kind in terminalreporter.stats.values() for report in kind]
    rows = [
        dict(report.user_properties)["chaos"]
        for report in reports
        if "chaos" in dict(getattr(report, "user_properties", ())) and report.when == "call"
    ]
    if not rows:
        return
    terminalreporter.section("faults")
    total = {"fault": "all of them", **{name: sum(row[name] for row in rows) for name in _COLUMNS}}
    width = max(len(row["fault"]) for row in [*rows, total])
    terminalreporter.line(" | ".join([f"{'fault':{width}}", *_COLUMNS]))
    for row in [*rows, total]:
        cells = [f"{row[name]:{len(name)}}" for name in _COLUMNS]
        terminalreporter.line(" | ".join([f"{row['fault']:{width}}", *cells]))
        for note in row.get("notes", ()):
            terminalreporter.line(f"    {note}")
