"""What a family's reader asks its scanner for: literals, values and text up to a mark."""

import pytest

from marlin.text.tool_calls.scanner import Scanner, drop


def reading(scan, reader, *pieces, is_cut=False):
    """What a reader returns that is given a text in pieces."""
    steps = reader(scan)
    try:
        next(steps)
        for piece in pieces:
            scan.feed(piece)
            next(steps)
        scan.end(is_cut)
        while True:
            next(steps)
    except StopIteration as stop:
        return stop.value


@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        (("  ab",), "ab"),
        ((" ", "a", "b"), "ab"),
        (("a",), None),
        (("ac",), "a?c"),
        (("xab",), None),
    ],
)
def test_a_literal_is_taken_with_the_blanks_before_it_or_nothing_is(pieces, found):
    scan = Scanner({})
    taken = reading(scan, lambda scan: scan.take("ab", "ac"), *pieces)
    assert taken == {"ab": "ab", "a?c": "ac", None: None}[found]
    rest = reading(scan, lambda scan: scan.text("!"))
    assert rest is None


def test_a_value_ends_where_json_does():
    for text, value, is_whole in (
        ("12,", "12", True), ("12}", "12", True), ("12]", "12", True), ("12 ", "12", True),
        ("12\n", "12", True), ("12", "12", False), ("tr<", "tr", False), ("<", "", False),
        ('"a<"', '"a<"', True), ('"a\\"b" ', '"a\\"b"', True), ('{"a": [1, "}"]} x', None, True),
        ("[[1], 2]]", "[[1], 2]", True), ("{", "{", False), ('"a', '"a', False),
        ('"\t\x01"', '"\\t\\u0001"', True), (",", "", False), ("}", "", False),
    ):  # fmt: skip
        written, scan = [], Scanner({})
        whole = reading(scan, lambda scan, sink=written.append: scan.value(sink), *text)
        expected = '{"a": [1, "}"]}' if value is None else value
        assert ("".join(written), bool(whole)) == (expected, is_whole), text


def test_text_up_to_a_mark_may_keep_the_mark():
    scan = Scanner({})
    assert reading(scan, lambda scan: scan.text("<b>", keep=True), "a<b>c") == "a"
    scan = Scanner({})
    scan.feed("a<b>c")
    written = []
    assert reading(scan, lambda scan: scan.until(("<b>",), written.append)) == "<b>"
    assert reading(scan, lambda scan: scan.until((), written.append)) is None
    assert written == ["a", "c"]
    assert drop("x") is None
