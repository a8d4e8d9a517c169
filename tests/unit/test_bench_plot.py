"""What bench draws: bars as long as their figures, and a picture that is well-formed."""

import xml.etree.ElementTree as ElementTree

import pytest

from marlin.commands.bench_plot import bar, svg

NAMESPACE = "{http://www.w3.org/2000/svg}"


def row(tokens, prefill, decode):
    return {
        "prompt_tokens": tokens,
        "prefill_tokens_per_s": prefill,
        "prefill_share_of_peak": 0.42,
        "decode_tokens_per_s": decode,
        "decode_share_of_bandwidth": 0.91,
    }


REPORT = {
    "model": "a <b> & c.gguf",
    "results": [
        {"threads": 2, "device": "cpu", "rows": [row(128, 1699.0, 267.0), row(512, 1541.0, 236.0)]},
        {"threads": 0, "device": "Apple M1", "rows": [row(128, 849.5, 133.5)]},
    ],
}


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0, "." * 10), (0.7, "#######..."), (1, "#" * 10), (1.3, "#" * 10), (-1, "." * 10)],
)
def test_a_bar_is_as_long_as_its_share_and_no_longer_than_all(share, shown):
    assert bar(share) == shown


def test_the_picture_has_a_bar_for_each_speed_as_long_as_it_is_fast():
    root = ElementTree.fromstring(svg(REPORT))
    widths = [float(one.get("width")) for one in root.iter(f"{NAMESPACE}rect") if one.get("x")]
    prefill, decode = widths[:3], widths[3:]
    assert prefill[2] == pytest.approx(prefill[0] / 2, abs=0.1)
    assert decode[2] == pytest.approx(decode[0] / 2, abs=0.1)
    assert prefill[1] == pytest.approx(prefill[0] * 1541 / 1699, abs=0.1)
    texts = [one.text for one in root.iter(f"{NAMESPACE}text")]
    assert texts[0] == "a <b> & c.gguf"
    assert "128 tokens, 2 threads" in texts and "128 tokens, Apple M1" in texts
    assert "1,699 (42%)" in texts and "267 (91%)" in texts


def test_everything_lies_within_the_picture():
    root = ElementTree.fromstring(svg(REPORT))
    width, height = float(root.get("width")), float(root.get("height"))
    for one in root.iter(f"{NAMESPACE}rect"):
        if one.get("x"):
            assert float(one.get("x")) + float(one.get("width")) < width
    assert max(float(one.get("y")) for one in root.iter(f"{NAMESPACE}text")) < height
