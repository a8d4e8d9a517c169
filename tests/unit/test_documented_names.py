"""docs/serving.md against the tables of names: what is accepted without effect is listed."""

import re

import pytest

from marlin.server.api import names


@pytest.fixture(scope="module")
def without_effect(checkout):
    """(where, name) of each row of the page's table, and the names of each place."""
    text = (checkout / "docs" / "serving.md").read_text()
    table = text.partition("\n#### Accepted without effect\n")[2].partition("\n#")[0]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|", table, re.MULTILINE)[1:]
    return {where.strip(): set(re.findall(r"`(\w+)`", cell)) for where, cell in rows}


@pytest.mark.parametrize(
    ("where", "accepted"),
    [
        ("both endpoints", names.COMPLETION.accepted),
        ("chat alone", set(names.CHAT.accepted) - set(names.COMPLETION.accepted)),
        ("`reasoning`", names.REASONING.accepted),
        ("a message", names.MESSAGE.accepted),
        ("a call's `function`", names.CALLED.accepted),
        ("a text part", names.CONTENT_PART.accepted),
    ],
)
def test_what_is_accepted_without_effect_is_documented(without_effect, where, accepted):
    assert without_effect[where] == set(accepted)
