"""The metrics that the documentation and the dashboard name are those that exist."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from marlin.server.observe import prometheus
from marlin.server.observe.metrics import FAMILIES, Metrics

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text(encoding="utf-8"))
NAME = re.compile(r"metal_marlin_\w+")


@pytest.fixture(scope="module")
def exposed():
    """{metric name: type}, and the names of all samples."""
    metrics = Metrics()
    metrics.answered(0, 200)
    labels = {"model": "tiny"}, {"version": "1", "python": "3"}
    kinds, names = {}, set()
    text = prometheus.render([metrics.snapshot()], ["/health"], *labels).decode()
    for family in text_string_to_metric_families(text):
        suffix = "_total" if family.type == "counter" else ""
        kinds[family.name + suffix] = family.type
        names |= {sample.name for sample in family.samples}
    return kinds, names


def documented():
    rows = re.findall(r"^\| `(metal_marlin_\w+)` \| (\w+) \|", DOCUMENT, re.MULTILINE)
    assert len(rows) == len(dict(rows)), "a metric has two rows"
    return dict(rows)


def test_the_table_has_every_metric_with_its_type_and_no_other(exposed):
    assert documented() == exposed[0]


def test_the_document_names_no_metric_that_does_not_exist(exposed):
    assert set(NAME.findall(DOCUMENT)) <= exposed[1] | set(exposed[0])


def expressions():
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_every_metric_of_the_dashboard_exists(exposed):
    queries = [variable.get("definition", "") for variable in DASHBOARD["templating"]["list"]]
    named = set(NAME.findall(" ".join(expressions() + queries)))
    assert len(named) > 10 and named <= exposed[1]


def test_dashboard_expressions_close_what_they_open_and_use_counters_by_their_rate():
    counters = {family.name for family in FAMILIES.values() if family.kind == "counter"}
    for expression in expressions():
        for left, right in ("()", "{}", "[]"):
            assert expression.count(left) == expression.count(right), expression
        assert expression.count('"') % 2 == 0, expression
        for name in NAME.findall(expression):
            if name in counters or name.endswith("_bucket"):
                assert f"rate({name}{{" in expression, expression


def test_dashboard_panels_have_ids_places_and_a_data_source_that_can_be_chosen():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        assert panel["title"] and panel["description"] and panel["targets"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} overlaps another panel"
        taken |= cells


@pytest.mark.parametrize(
    "option", ["--enable-metrics", "--log-format", "--enable-batching", "--speculative"]
)
def test_the_options_are_documented(option):
    assert f"| `{option}` |" in DOCUMENT
