"""Content negotiation: which of three types an Accept header field prefers."""

import pytest

from marlin.server.observe.accept import preferred

JSON = "application/json"
TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
OFFERS = (JSON, TEXT, OPENMETRICS)

PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0;q=0.9,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_OLD = (
    "application/openmetrics-text; version=0.0.1; q=0.75,text/plain;version=0.0.4;q=0.5"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROTOBUF_FIRST = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;"
    "q=0.7,text/plain;version=0.0.4;q=0.3"
)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "offer"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/json", JSON),
        ("application/*", JSON),
        (BROWSER, JSON),
        (PROMETHEUS_2, OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
        (PROMETHEUS_OLD, TEXT),
        (PROTOBUF_FIRST, TEXT),
        ("text/plain", TEXT),
        ("text/*", TEXT),
        ("TEXT/PLAIN; Version=0.0.4", TEXT),
        ('text/plain; version="0.0.4"', TEXT),
        ("text/plain;version=0.0.4;q=0.2, application/json;q=0.1", TEXT),
        ("text/plain;version=0.0.4;q=0.1, application/json;q=0.2", JSON),
        ("text/plain, application/json", JSON),
        ("application/json;q=0, */*", TEXT),
        ("*/*, application/json;q=0.5", TEXT),
        ("text/plain;version=9.9", JSON),
        ("image/png", JSON),
        ("*/*;q=0", JSON),
        ("application/openmetrics-text", OPENMETRICS),
        ("text/plain;q=1.000", TEXT),
    ],
)
def test_the_offer_of_the_highest_quality_wins(accept, offer):
    assert preferred(accept, OFFERS) == offer


@pytest.mark.parametrize(
    "accept",
    [
        "text/plain;q=2",
        "text/plain;q=-1",
        "text/plain;q=nan",
        "text/plain;q=0.1234",
        "text",
        "/",
        "*/plain",
        "text/plain;q=",
        ";;;",
        ",,,",
    ],
)
def test_a_malformed_range_counts_for_nothing(accept):
    assert preferred(accept, OFFERS) == JSON


def test_ranges_after_the_first_thirty_two_are_not_read():
    assert preferred("image/png," * 31 + "text/plain", OFFERS) == TEXT
    assert preferred("image/png," * 32 + "text/plain", OFFERS) == JSON
