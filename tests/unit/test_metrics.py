"""Counting: cells, clocks, several processes together, and the two text formats."""

import mmap
import os
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from marlin.engine.request import Request
from marlin.engine.sampling import SamplingParams
from marlin.errors import MarlinError
from marlin.server.observe import prometheus
from marlin.server.observe.metrics import (
    DISCONNECTED,
    FAMILIES,
    NUM_CELLS,
    NUM_ENDPOINTS,
    OTHER_ENDPOINT,
    STATUSES,
    Metrics,
    ProcessMemory,
    clear_gauges,
    read_snapshot,
    total,
)
from marlin.server.observe.metrics_page import json_body

BUILD = {"version": "1", "python": "3"}
ENDPOINTS = ("/health", "/v1/completions")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def metrics(clock):
    return Metrics(clock=clock)


def cell(snapshot, name):
    return snapshot[FAMILIES[name].start]


def samples(snapshots, model=None, parse=parse_text, **options):
    """{(sample name, frozenset of labels): value} as Prometheus' own parser reads it."""
    text = prometheus.render(snapshots, ENDPOINTS, model, BUILD, **options).decode()
    found = {}
    for family in parse(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, f"{key} twice"
            found[key] = sample.value
    return found


def value(found, name, **labels):
    return found["metal_marlin_" + name, frozenset(labels.items())]


def finished(num_prompt_tokens, num_cached_tokens=0, **counts):
    """An engine's Request as it is when its last delta was read."""
    prompt = [0] * num_prompt_tokens
    counts |= {"num_cached_tokens": num_cached_tokens}
    return Request("id", prompt, SamplingParams(), seed=0, **counts)


def a_request(metrics, clock, gaps, num_prompt_tokens=5, num_cached_tokens=2, **counts):
    """One request of one sequence; gaps: (seconds before a delta, its tokens)."""

    def deltas():
        for seconds, num_tokens in gaps:
            clock.now += seconds
            yield 0, SimpleNamespace(num_tokens=num_tokens)

    request = finished(num_prompt_tokens, num_cached_tokens, **counts)
    record = metrics.record()
    with record.generating():
        list(record.watch([SimpleNamespace(request=request)], deltas()))
    return record


def test_cells_of_families_follow_one_another_without_gap_or_overlap():
    at = 0
    for family in FAMILIES.values():
        assert family.start == at and family.num_cells > 0
        at = family.stop
    assert at == NUM_CELLS


def test_a_request_is_timed_from_its_last_byte_and_between_its_tokens(metrics, clock):
    record = a_request(metrics, clock, [(0.2, 1), (0.04, 1), (0.08, 4)])
    assert (record.num_prompt_tokens, record.num_cached_tokens) == (5, 2)
    assert record.num_output_tokens == 6
    found = samples([metrics.snapshot()])
    assert value(found, "prompt_tokens_total") == 5
    assert value(found, "cached_prompt_tokens_total") == 2
    assert value(found, "generated_tokens_total") == 6
    assert value(found, "time_to_first_token_seconds_count") == 1
    assert value(found, "time_to_first_token_seconds_sum") == pytest.approx(0.2)
    assert value(found, "time_to_first_token_seconds_bucket", le="0.1") == 0
    assert value(found, "time_to_first_token_seconds_bucket", le="0.25") == 1
    # 40 ms once, and four tokens in 80 ms: 20 ms each.
    assert value(found, "inter_token_latency_seconds_count") == 5
    assert value(found, "inter_token_latency_seconds_sum") == pytest.approx(0.12)
    assert value(found, "inter_token_latency_seconds_bucket", le="0.01") == 0
    assert value(found, "inter_token_latency_seconds_bucket", le="0.03") == 4
    assert value(found, "inter_token_latency_seconds_bucket", le="0.05") == 5
    assert value(found, "request_duration_seconds_sum") == pytest.approx(0.32)


def test_sequences_of_one_request_have_one_first_token_and_their_own_gaps(metrics, clock):
    def deltas():
        for index, seconds in ((0, 0.3), (1, 0.1), (0, 0.1), (1, 0.1)):
            clock.now += seconds
            yield index, SimpleNamespace(num_tokens=1)

    request = finished(3)
    streams = [SimpleNamespace(request=request)] * 2
    record = metrics.record()
    with record.generating():
        list(record.watch(streams, deltas()))
    found = samples([metrics.snapshot()])
    assert value(found, "prompt_tokens_total") == 6
    assert value(found, "time_to_first_token_seconds_count") == 1
    assert value(found, "inter_token_latency_seconds_count") == 2
    assert value(found, "inter_token_latency_seconds_sum") == pytest.approx(0.4)


def test_a_request_that_fails_has_no_duration_but_its_tokens_count(metrics, clock):
    def deltas():
        yield 0, SimpleNamespace(num_tokens=3)
        raise ConnectionError

    request = finished(1)
    record = metrics.record()
    with pytest.raises(ConnectionError), record.generating():
        list(record.watch([SimpleNamespace(request=request)], deltas()))
    found = samples([metrics.snapshot()])
    assert value(found, "generated_tokens_total") == 3
    assert value(found, "request_duration_seconds_count") == 0
    assert value(found, "requests_in_flight") == 0


def test_guessed_tokens_and_those_of_them_that_were_right_are_counted(metrics, clock):
    for num_drafts, num_right in ((7, 5), (4, 0)):
        counts = {"num_draft_tokens": num_drafts, "num_accepted_draft_tokens": num_right}
        a_request(metrics, clock, [(0.1, 6)], **counts)
    found = samples([metrics.snapshot()])
    assert value(found, "draft_tokens_total") == 11
    assert value(found, "accepted_draft_tokens_total") == 5


def test_preemptions_are_counted(metrics, clock):
    for count in (2, 0, 1):
        a_request(metrics, clock, [(0.1, 6)], num_preemptions=count)
    assert value(samples([metrics.snapshot()]), "preemptions_total") == 3


def test_leaving_early_closes_the_deltas(metrics):
    closed = []

    def deltas():
        try:
            while True:
                yield 0, SimpleNamespace(num_tokens=1)
        finally:
            closed.append(True)

    request = finished(1, 7)
    held = deltas()  # a reference, so that the garbage collector does not close them
    watched = metrics.record().watch([SimpleNamespace(request=request)], held)
    next(watched)
    watched.close()
    assert closed and cell(metrics.snapshot(), "cached_prompt_tokens_total") == 7


def test_the_rate_is_over_the_time_in_which_a_request_was_active(metrics, clock):
    a_request(metrics, clock, [(2.0, 10)])
    clock.now += 1000.0
    a_request(metrics, clock, [(3.0, 10)])
    assert json_body([metrics.snapshot()])["avg_tokens_per_second"] == 4.0
    with metrics.record().generating():
        clock.now += 5.0
        body = json_body([metrics.snapshot()])
    assert (body["requests_active"], body["avg_tokens_per_second"]) == (1, 2.0)


def test_requests_side_by_side_count_their_time_once(metrics, clock):
    with metrics.record().generating():
        clock.now += 1.0
        with metrics.record().generating():
            clock.now += 1.0
        clock.now += 1.0
    assert cell(metrics.snapshot(), "busy_seconds_total") == 3.0


def test_nothing_has_happened_yet(metrics):
    body = json_body([metrics.snapshot()])
    assert list(body) == [
        "requests_total",
        "requests_active",
        "tokens_generated_total",
        "avg_tokens_per_second",
        "memory_usage_mb",
        "gpu_memory_usage_mb",
    ]
    assert set(body.values()) == {0}


@pytest.mark.parametrize(
    ("endpoint", "status", "labels"),
    [
        (0, 200, ("/health", "200")),
        (1, DISCONNECTED, ("/v1/completions", "disconnected")),
        (OTHER_ENDPOINT, 404, ("other", "404")),
        (OTHER_ENDPOINT, 418, ("other", "other")),
        (0, None, ("/health", "other")),
    ],
)
def test_requests_are_counted_under_a_bounded_set_of_labels(metrics, endpoint, status, labels):
    metrics.answered(endpoint, status)
    endpoint, status = labels
    found = samples([metrics.snapshot()])
    assert value(found, "http_requests_total", endpoint=endpoint, status=status) == 1
    assert sum(name == "metal_marlin_http_requests_total" for name, _ in found) == 1
    assert FAMILIES["http_requests_total"].num_cells == NUM_ENDPOINTS * len(STATUSES) < 550


def test_every_status_of_an_error_is_a_label():
    kinds, statuses = [MarlinError], set()
    while kinds:
        kind = kinds.pop()
        statuses.add(str(kind.status))
        kinds += kind.__subclasses__()
    assert len(statuses) > 5 and statuses <= set(STATUSES)


def test_workers_add_up_and_share_their_shared_memory(clock):
    snapshots = []
    for shared in (700.0, 500.0):
        worker = Metrics(clock=clock)
        worker.answered(0, 200)
        worker.set_gauges(
            kv_blocks=8, kv_blocks_free=3, private_memory_bytes=100, shared_memory_bytes=shared
        )
        a_request(worker, clock, [(1.0, 3)])
        snapshots.append(worker.snapshot())
    found = samples(snapshots)
    assert value(found, "workers") == 2
    assert value(found, "http_requests_total", endpoint="/health", status="200") == 2
    assert value(found, "generated_tokens_total") == 6
    assert value(found, "time_to_first_token_seconds_bucket", le="+Inf") == 2
    assert (value(found, "kv_blocks"), value(found, "kv_blocks_free")) == (16, 6)
    assert value(found, "resident_memory_bytes") == 900


def test_a_new_process_goes_on_counting_in_the_storage_of_the_one_before(clock):
    storage = memoryview(mmap.mmap(-1, 8 * NUM_CELLS)).cast("d")
    first = Metrics(storage, clock)
    first.answered(0, 200)
    first.set_gauges(kv_blocks=8)
    first.begin_request()  # and then it dies
    second = Metrics(storage, clock)
    second.answered(0, 200)
    found = samples([read_snapshot(storage, clock.now)])
    assert value(found, "http_requests_total", endpoint="/health", status="200") == 2
    assert value(found, "generation_requests_total") == 1
    assert value(found, "requests_in_flight") == value(found, "kv_blocks") == 0
    clear_gauges(storage)
    assert value(samples([storage]), "workers") == 0


class SlowCells(list):
    """Cells that let other threads run between the reading of one and its writing."""

    def __getitem__(self, cell):
        value = super().__getitem__(cell)
        time.sleep(0.001)
        return value


def test_no_count_is_lost_between_threads():
    metrics = Metrics(SlowCells([0.0] * NUM_CELLS))

    def work():
        for _ in range(5):
            metrics.add(generated_tokens_total=1)
            metrics.observe("inter_token_latency_seconds", 0.01)
            metrics.used_by_key(3, 7)
            with metrics.record().generating():
                metrics.answered(0, 200)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = samples([metrics.snapshot()])
    assert value(found, "generated_tokens_total") == 40
    assert value(found, "inter_token_latency_seconds_count") == 40
    assert value(found, "inter_token_latency_seconds_sum") == pytest.approx(0.4)
    assert value(found, "generation_requests_total") == 40
    assert value(found, "http_requests_total", endpoint="/health", status="200") == 40
    assert value(found, "requests_in_flight") == 0
    snapshot = metrics.snapshot()
    assert snapshot[FAMILIES["key_requests_total"].start + 3] == 40
    assert snapshot[FAMILIES["key_tokens_total"].start + 3] == 280


@pytest.mark.parametrize("name", ['a"b', "back\\slash", "new\nline", "\\n", "ünïcode", "{},="])
@pytest.mark.parametrize(("parse", "om"), [(parse_text, False), (parse_openmetrics, True)])
def test_label_values_are_escaped(metrics, name, parse, om):
    found = samples([metrics.snapshot()], {"model": name}, parse, openmetrics=om)
    assert value(found, "model_info", model=name) == 1


def test_both_formats_say_the_same(metrics, clock):
    a_request(metrics, clock, [(0.1, 1), (0.01, 2)])
    metrics.answered(1, 200)
    snapshots = [metrics.snapshot()]
    as_text = samples(snapshots, {"model": "tiny"})
    assert samples(snapshots, {"model": "tiny"}, parse_openmetrics, openmetrics=True) == as_text


def test_a_histogram_never_falls_and_ends_at_its_count(metrics, clock):
    for seconds in (0.0, 0.005, 0.0051, 1.0, 119.0, 1e6):
        metrics.observe("time_to_first_token_seconds", seconds)
    found = samples([metrics.snapshot()])
    name = "time_to_first_token_seconds_bucket"
    buckets = [count for (sample, _), count in found.items() if sample.endswith(name)]
    assert buckets == sorted(buckets) and buckets[-1] == 6
    assert value(found, name, le="0.005") == 2  # a bound belongs to its bucket
    assert value(found, name, le="120.0") == 5


def test_names_follow_prometheus_rules():
    for family in FAMILIES.values():
        assert (family.kind == "counter") == family.name.endswith("_total")
        if family.kind == "histogram":
            assert family.name.endswith("_seconds")
            assert list(family.bounds) == sorted(set(family.bounds))


def test_every_family_has_its_help_and_its_type(metrics):
    lines = prometheus.render([metrics.snapshot()], ENDPOINTS, None, BUILD).decode().splitlines()
    for family in FAMILIES.values():
        shown = family.kind != "hidden"
        assert (f"# TYPE {family.name} {family.kind}" in lines) == shown
        assert (f"# HELP {family.name} {family.help}" in lines) == shown


def test_memory_is_that_of_this_process():
    gauges = ProcessMemory().gauges()
    assert set(gauges) <= set(FAMILIES)
    assert 5e6 < sum(gauges.values()) < 50e9


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is a peak")
def test_memory_is_told_anew_each_time_and_without_a_descriptor_more(monkeypatch):
    memory = ProcessMemory()
    before = memory.gauges()["private_memory_bytes"]
    monkeypatch.setattr("builtins.open", None)
    monkeypatch.setattr(os, "open", None)
    # A mapping: an allocator may have as much left over from earlier tests.
    with mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.write(b"a" * len(held))
        assert memory.gauges()["private_memory_bytes"] > before + len(held) // 2


def test_a_total_of_no_workers_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError):
        total([])
