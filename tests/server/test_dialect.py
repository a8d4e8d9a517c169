"""A dialect that is none of the server's own, added as a row: all that a client sees is its own."""

import json
import threading
from dataclasses import dataclass

import pytest
from clients import CLIENT_TIMEOUT_S, request_bytes
from fakes import EngineDown, FakeEngine, StoppedByEngine

from marlin.engine.sampling import parse_sampling
from marlin.server.api import routes
from marlin.server.api.dialect import Answer, Call, Echo, Prompt
from marlin.server.api.encoding import encode
from marlin.server.api.fields import request_fields

PATH = "/other/text"


def event(name, value):
    return b"event: %s\ndata: %s\n\n" % (name.encode(), encode(value))


@dataclass(frozen=True, slots=True)
class OtherCall(Call):
    def answer(self, model, name, key, created):
        return OtherAnswer(f"{name}/{len(key)}")

    def beginning(self, prompt, request, tokenizer):
        return Echo("> ")


class OtherAnswer(Answer):
    def __init__(self, id):
        self.id = id

    def body(self, choices, usage):
        return {"id": self.id, "texts": [[c.text, c.finish_reason] for c in choices]}

    def opening(self, index, usage):
        return event("begin", [self.id, index, usage.num_prompt_tokens, usage.num_output_tokens])

    def text(self, index, text, tokens):
        return event("more", [index, text])

    def ending(self, index, finish_reason, stop_string):
        return event("end", [index, finish_reason])

    def closing(self, usage):
        return event("sum", [usage.num_prompt_tokens, usage.num_output_tokens])


class Other:
    def parse(self, body, limits, max_tokens, ignored):
        sampling = parse_sampling(request_fields(body), max_tokens=max_tokens)
        prompts = [Prompt(text, f"ask[{i}]") for i, text in enumerate(body["ask"])]
        stream = body.get("live", False)
        return OtherCall(body["name"], prompts, sampling, (), stream, 1, ())

    def error_status(self, error):
        return 418 if error.status == 422 else error.status

    def error_body(self, error):
        return {"wrong": error.message, "where": error.param}

    def error_events(self, error):
        return event("wrong", error.message)


@pytest.fixture
def start(start_server, monkeypatch):
    rows = (*routes.ROUTES, routes.generation_route(PATH, Other()))
    monkeypatch.setattr(routes.Router.__init__, "__defaults__", (rows,))
    return start_server


def ask(server, **changes):
    with server.connect() as client:
        return client.ask("POST", PATH, {"name": "tiny", "ask": ["ab", "c"], **changes})


def events(body):
    blocks = body.decode().split("\n\n")[:-1]
    pairs = (block.removeprefix("event: ").split("\ndata: ") for block in blocks)
    return [(name, json.loads(data)) for name, data in pairs]


def test_a_whole_answer_is_in_the_dialects_shape(start):
    answer = ask(start())
    assert answer.status == 200
    text = "> Hello there!"
    assert answer.json() == {"id": "tiny/24", "texts": [[text, "stop"], [text, "stop"]]}


def test_a_stream_is_the_dialects_events_in_order(start):
    found = events(ask(start(), ask=["ab"], live=True).body)
    pieces = [value for name, value in found if name == "more"]
    assert found[0] == ("begin", ["tiny/24", 0, 2, 0])
    assert "".join(text for _, text in pieces) == "> Hello there!"
    assert found[-2:] == [("end", [0, "stop"]), ("sum", [2, 12])]
    assert len(found) == len(pieces) + 3


def test_a_refusal_is_in_the_dialects_shape(start):
    answer = ask(start(), temperature=3)
    assert answer.status == 418
    assert answer.json()["where"] == "temperature" and "got 3" in answer.json()["wrong"]
    answer = ask(start(), ask=["ab", ""])
    assert (answer.status, answer.json()["where"]) == (418, "ask[1]")
    assert ask(start(), name="another").json()["where"] == "model"


@pytest.mark.parametrize("fault", [EngineDown, StoppedByEngine])
def test_an_error_in_a_stream_is_the_dialects_last_event(start, fault):
    begun = threading.Event()

    def script(_request):
        yield b"a"
        assert begun.wait(CLIENT_TIMEOUT_S)
        raise fault

    body = {"name": "tiny", "ask": ["ab"], "live": True}
    with start(FakeEngine(script)).connect() as client:
        client.send(request_bytes("POST", PATH, body)).read_stream_head()
        begun.set()
        found = events(b"".join(client.chunks()))
    assert [name for name, _ in found] == ["begin", "more", "wrong"]


def test_a_path_of_no_dialect_is_answered_in_the_openai_apis(start):
    with start().connect() as client:
        assert client.ask("POST", "/other/image", {}).error["code"] == "not_found"
