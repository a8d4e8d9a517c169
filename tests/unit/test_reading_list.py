"""docs/reading.md: what a hostile client or file can reach is all there, and read in a day."""

import re

import pytest
import reading_list

ROW = re.compile(r"\| `(\S+)` \| (\d+) \|")


@pytest.fixture(scope="module")
def listed():
    """Paths in reading order."""
    return [path for _, _, paths in reading_list.parts()[0] for path in paths]


def test_every_source_is_listed_or_said_to_see_checked_values_only():
    assert reading_list.parts()[1] == []


def test_what_any_stranger_can_reach_stays_under_twelve_thousand_lines():
    every, *apart = reading_list.totals()
    assert every < 12_000
    assert [
        (part[0], size)
        for size, part in zip(apart, reading_list.APART, strict=True)
        if size >= part[3]
    ] == []
    assert reading_list.AGENTS[3] == 5_000


def test_the_page_lists_them_in_order_with_counts_that_are_nearly_right(listed):
    rows = ROW.findall(reading_list.PAGE.read_text())
    again = "run tests/support/reading_list.py"
    assert [path for path, _ in rows] == [str(path) for path in listed], again
    off = [path for path, count in rows if far(int(count), reading_list.num_lines(path))]
    assert off == [], again


def far(stated, actual):
    """A tenth, or a few lines of a short file: the page need not follow every edit."""
    return abs(stated - actual) > max(15, actual / 10)


def test_the_readme_promises_what_the_page_adds_up_to(checkout):
    readme = (checkout / "README.md").read_text()
    promised = re.search(r"([\d,]+) lines\]\(docs/reading.md\).* and\s+([\d,]+) more", readme)
    for stated, actual in zip(promised.groups(), reading_list.totals(), strict=False):
        assert abs(int(stated.replace(",", "")) - actual) < actual / 10


@pytest.mark.parametrize(
    "path", ["server/http/message.py", "text/template/statements.py", "weights/gguf.py"]
)
def test_the_readers_of_foreign_bytes_are_on_the_list(listed, path):
    assert f"marlin/{path}" in map(str, listed)
