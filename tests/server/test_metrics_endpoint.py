"""/metrics of a live server, read with Prometheus' own parsers."""

import threading
import time

import pytest
from clients import CLIENT_TIMEOUT_S, chat_body, completion_body, request_bytes
from fakes import EngineDown, FakeEngine, say, say_then_hang
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from marlin.engine.interface import EngineStats

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SCRAPE = "Accept: text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


class Scrape:
    """One exposition, by sample name and labels."""

    def __init__(self, server):
        with server.connect() as client:
            answer = client.ask("GET", "/metrics", None, [SCRAPE])
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        self.samples = {}
        for family in parse_text(answer.body.decode("utf-8")):
            for sample in family.samples:
                self.samples[sample.name, frozenset(sample.labels.items())] = sample.value

    def value(self, name, **labels):
        return self.samples.get(("metal_marlin_" + name, frozenset(labels.items())), 0)

    def requests(self, endpoint, status):
        return self.value("http_requests_total", endpoint=endpoint, status=str(status))


def scrape_until(server, accept):
    """Counting comes after the answer: scrape until accept(scrape)."""
    end = time.monotonic() + CLIENT_TIMEOUT_S
    while not accept(scrape := Scrape(server)):
        assert time.monotonic() < end, scrape.samples
    return scrape


def ask(server, method, path, body=None, headers=()):
    with server.connect() as client:
        return client.ask(method, path, body, headers)


def test_requests_are_counted_by_endpoint_and_status(server):
    for _ in range(3):
        assert ask(server, "POST", CHAT, chat_body()).status == 200
    assert ask(server, "POST", CHAT, chat_body(stream=True)).status == 200
    assert ask(server, "POST", CHAT, chat_body(temperature=9)).status == 422
    assert ask(server, "POST", COMPLETIONS, b"{").status == 400
    assert ask(server, "POST", COMPLETIONS, completion_body(model="x")).status == 404
    assert ask(server, "DELETE", "/v1/models").status == 405
    assert ask(server, "GET", "/v1/models/tiny").status == 200
    assert ask(server, "GET", "/v1/models/huge").status == 404
    assert ask(server, "GET", "/admin").status == 404
    server.wait_until_idle()
    scrape = Scrape(server)
    assert scrape.requests("other", 404) == 1
    assert scrape.requests(CHAT, 200) == 4
    assert scrape.requests(CHAT, 422) == 1
    assert scrape.requests(COMPLETIONS, 400) == scrape.requests(COMPLETIONS, 404) == 1
    assert scrape.requests("/v1/models", 405) == 1
    assert scrape.requests("/v1/models/{id}", 200) == 1
    assert scrape.requests("/v1/models/{id}", 404) == 1
    assert scrape.value("generation_requests_total") == 7
    assert scrape.value("requests_in_flight") == 0


def test_bytes_that_are_no_request_are_counted_as_other(server):
    with server.connect() as client:
        assert client.send(b"NONSENSE\r\n\r\n").read().status == 400
    scrape_until(server, lambda scrape: scrape.requests("other", 400) == 1)


def test_tokens_and_latencies_of_whole_and_streamed_answers(start_server):
    server = start_server(FakeEngine(say(b"Hello there!")))
    began = time.monotonic()
    ask(server, "POST", COMPLETIONS, completion_body(prompt="12345"))
    ask(server, "POST", COMPLETIONS, completion_body(prompt="1234567", stream=True))
    name = "request_duration_seconds"
    scrape = scrape_until(server, lambda scrape: scrape.value(name + "_count") == 2)
    elapsed_s = time.monotonic() - began
    assert scrape.value("prompt_tokens_total") == 12
    assert scrape.value("generated_tokens_total") == 24
    assert scrape.value("time_to_first_token_seconds_count") == 2
    # The tokens of a first delta have none before them.
    assert 0 <= scrape.value("inter_token_latency_seconds_count") <= 22
    first_s = scrape.value("time_to_first_token_seconds_sum")
    between_s = scrape.value("inter_token_latency_seconds_sum")
    assert 0 < first_s <= first_s + between_s <= scrape.value(name + "_sum") < elapsed_s
    assert scrape.value(name + "_bucket", le="+Inf") == 2
    assert 0 < scrape.value("busy_seconds_total") < elapsed_s


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_counted_as_disconnected(start_server, stream):
    engine = FakeEngine(say_then_hang(b"begun "))
    server = start_server(engine, poll_s=0.02)
    with server.connect() as client:
        client.send(request_bytes("POST", CHAT, chat_body(stream=stream)))
        assert engine.submitted.acquire(timeout=CLIENT_TIMEOUT_S)
        if stream:
            client.read_stream_head()
        assert Scrape(server).value("requests_in_flight") == 1
    scrape = scrape_until(server, lambda scrape: scrape.requests(CHAT, "disconnected") == 1)
    assert scrape.requests(CHAT, 200) == 0
    assert scrape.value("requests_in_flight") == 0
    assert scrape.value("generated_tokens_total") == 6
    assert scrape.value("request_duration_seconds_count") == 0


def test_a_stream_that_breaks_is_counted_under_its_error(start_server):
    head_read = threading.Event()

    def script(_request):
        yield b"begun "
        assert head_read.wait(CLIENT_TIMEOUT_S)
        raise EngineDown

    server = start_server(FakeEngine(script))
    with server.connect() as client:
        client.send(request_bytes("POST", CHAT, chat_body(stream=True)))
        assert b" 200 " in client.read_stream_head()
        head_read.set()
        assert b'"error"' in b"".join(client.chunks())
    scrape = scrape_until(server, lambda scrape: scrape.requests(CHAT, 500) == 1)
    assert scrape.requests(CHAT, 200) == 0


def test_a_waiting_request_is_queued_and_in_flight(start_server):
    engine = FakeEngine(say_then_hang(b"begun "))
    server = start_server(engine, options={"max_concurrent_requests": "1"})
    with server.connect() as running, server.connect() as waiting:
        running.send(request_bytes("POST", CHAT, chat_body(stream=True)))
        running.read_stream_head()
        waiting.send(request_bytes("POST", CHAT, chat_body(stream=True)))
        scrape_until(server, lambda scrape: scrape.value("requests_in_flight") == 2)
        scrape_until(server, lambda scrape: scrape.value("requests_queued") == 1)
        assert ask(server, "POST", CHAT, chat_body()).status == 503
    server.wait_until_idle()
    scrape = Scrape(server)
    assert scrape.value("requests_in_flight") == scrape.value("requests_queued") == 0
    assert scrape.requests(CHAT, 503) == 1


def test_a_call_of_many_choices_is_one_request_and_queued_until_one_of_them_begins(start_server):
    begin = threading.Event()

    class Waiting(FakeEngine):
        def _run(self, request, work):
            assert begin.wait(CLIENT_TIMEOUT_S)
            super()._run(request, work)

    server = start_server(Waiting(say_then_hang(b"a")))
    with server.connect() as client:
        client.send(request_bytes("POST", CHAT, chat_body(stream=True, n=7)))
        scrape_until(server, lambda scrape: scrape.value("requests_queued") == 1)
        begin.set()
        scrape_until(server, lambda scrape: scrape.value("requests_queued") == 0)
        assert Scrape(server).value("requests_in_flight") == 1


def test_gauges_come_from_the_engine(start_server):
    class Engine(FakeEngine):
        def stats(self):
            return EngineStats(0, 2, 4096, 7 << 19, num_kv_blocks=512, num_free_kv_blocks=500)

    server = start_server(Engine())
    scrape = Scrape(server)
    assert (scrape.value("kv_blocks"), scrape.value("kv_blocks_free")) == (512, 500)
    assert (scrape.value("kv_bytes"), scrape.value("gpu_memory_bytes")) == (4096, 7 << 19)
    assert scrape.value("workers") == scrape.value("model_info", model="tiny") == 1
    assert 5e6 < scrape.value("resident_memory_bytes") < 50e9
    assert server.metrics()["gpu_memory_usage_mb"] == 3.5


def test_without_a_model_there_is_no_model_info(start_server):
    server = start_server(model=False)
    assert not [name for name, _ in Scrape(server).samples if name.endswith("model_info")]


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ([], "application/json"),
        (["Accept: */*"], "application/json"),
        ([SCRAPE], "text/plain; version=0.0.4; charset=utf-8"),
        (
            ["Accept: application/openmetrics-text;version=1.0.0;q=0.9,*/*;q=0.1"],
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
    ],
)
def test_the_accept_field_chooses_the_format(server, accept, content_type):
    answer = ask(server, "GET", "/metrics", None, accept)
    assert (answer.status, answer.headers["content-type"]) == (200, content_type)
    assert answer.headers["vary"] == "Accept"
    if "openmetrics" in content_type:
        assert len(list(parse_openmetrics(answer.body.decode()))) > 10


def test_metrics_can_be_switched_off_and_counting_then_harms_nothing(start_server):
    server = start_server(options={"enable_metrics": "false"})
    assert ask(server, "POST", CHAT, chat_body()).status == 200
    answer = ask(server, "GET", "/metrics")
    assert (answer.status, answer.error["code"]) == (404, "not_found")


@pytest.mark.parametrize("switch", ["true", "false"])
def test_metrics_want_the_key_whether_on_or_off(start_server, switch):
    environ = {"METAL_MARLIN_API_KEY": "key"}
    server = start_server(options={"enable_metrics": switch}, environ=environ)
    assert ask(server, "GET", "/metrics").status == 401
    answer = ask(server, "GET", "/metrics", None, ["Authorization: Bearer key"])
    assert answer.status == (200 if switch == "true" else 404)


def test_a_head_request_has_the_headers_of_the_exposition(server):
    with server.connect() as client:
        answer = client.ask("HEAD", "/metrics", None, [SCRAPE])
    assert answer.headers["content-type"].startswith("text/plain")
    assert int(answer.headers["content-length"]) > 1000
