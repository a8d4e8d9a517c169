"""Run as a program: inject every fault, or those whose names hold one of the words given, and print
a table of what came of each. CHAOS_ENDURANCE_S sets how long the long one is.

Exits with pytest's code; what it says goes to standard error, the table to standard output.
"""

import contextlib
import sys
from pathlib import Path

import pytest

COLUMNS = ("injected", "right", "refused", "lost", "wrong", "silent")


class Rows:
    """A pytest plugin that collects what each fault came to."""

    def __init__(self):
        self.rows = {}

    def pytest_runtest_logreport(self, report):
        told = dict(report.user_properties)
        if report.when == "call" and "chaos" in told:
            self.rows[told["chaos"]["fault"]] = told["chaos"]

    def table(self):
        """Lines of Markdown, a row for each fault over all of its modes, and their sum."""
        sums = {}
        for name, row in self.rows.items():
            fault, _, mode = name.rpartition(" (")
            modes, counts = sums.setdefault(fault, ([], dict.fromkeys(COLUMNS, 0)))
            modes.append(mode.rstrip(")"))
            for column in COLUMNS:
                counts[column] += row[column]
        total = {column: sum(counts[column] for _, counts in sums.values()) for column in COLUMNS}
        yield " | ".join(["| fault", "modes", *COLUMNS]) + " |"
        yield "|---|---|" + "---:|" * len(COLUMNS)
        for fault, (modes, counts) in [*sums.items(), ("**all**", ([], total))]:
            yield " | ".join([f"| {fault}", "; ".join(modes), *map(str, counts.values())]) + " |"


def main(words):
    rows = Rows()
    chosen = ["-k", " or ".join(words)] if words else []
    folder = str(Path(__file__).parent)
    with contextlib.redirect_stdout(sys.stderr):
        code = pytest.main([folder, "-q", "-m", "chaos", *chosen], plugins=[rows])
    print("\n".join(rows.table()))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
