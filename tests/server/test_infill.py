"""Gaps that a model fills: `suffix` of completions, and llama-server's /infill."""

import json

import pytest
from clients import MODEL
from fakes import ByteTokenizer, FakeEngine, say
from scripted import prompt_of

from marlin.text.gaps import FillTokens

PATH = "/infill"
AROUND = {"input_prefix": "a = ", "input_suffix": "\nprint(a)"}


class Coder(ByteTokenizer):
    """Marks are bytes that no text here has."""

    fill_tokens = FillTokens(*b"PSM")


class Projects(ByteTokenizer):
    fill_tokens = FillTokens(*b"PSM", False, *b"RF")


class Suffixes(ByteTokenizer):
    fill_tokens = FillTokens(*b"PS", None, True)


def ask(server, path=PATH, **body):
    with server.connect() as client:
        return client.ask("POST", path, body)


@pytest.fixture
def coder(start_server):
    return start_server(FakeEngine(say(b"1", b"2")), Coder())


def test_a_suffix_makes_a_gap_of_a_completion(coder):
    asked = {"model": MODEL, "prompt": "a = ", "suffix": "\nprint(a)"}
    choice = ask(coder, "/v1/completions", **asked, echo=True).json()["choices"][0]
    assert prompt_of(coder) == "Pa = S\nprint(a)M"
    assert choice["text"] == "a = 12"
    assert ask(coder, "/v1/completions", **{**asked, "suffix": ""}).status == 200
    assert prompt_of(coder) == "a = "


def test_a_gap_is_filled_as_editors_ask_for_it(coder):
    answer = ask(coder, **AROUND, prompt="0 + ", n_predict=10, stop=["\n"], seed=-1).json()
    assert prompt_of(coder) == "Pa = 0 + S\nprint(a)M"
    assert answer == {
        "content": "12",
        "index": 0,
        "id_slot": 0,
        "model": MODEL,
        "tokens_predicted": 2,
        "tokens_evaluated": len("Pa = 0 + S\nprint(a)M"),
        "tokens_cached": 0,
        "truncated": False,
        "stop": True,
        "stop_type": "eos",
        "stopping_word": "",
    }


def test_a_stream_ends_with_what_says_stop(coder):
    events = [
        json.loads(block.removeprefix("data: "))
        for block in ask(coder, **AROUND, stream=True).body.decode().split("\n\n")[:-1]
    ]
    assert "".join(event["content"] for event in events) == "12"
    for event in events[:-1]:
        assert event == {"index": 0, "content": event["content"], "stop": False}
    whole = ask(coder, **AROUND).json()
    assert events[-1] == whole | {"content": "", "tokens_cached": events[-1]["tokens_cached"]}


@pytest.mark.parametrize(
    ("changes", "kind", "word"),
    [
        ({"n_predict": 1}, "limit", ""),
        ({"stop": ["2"]}, "word", "2"),
        ({"n_predict": -1}, "eos", ""),
    ],
)
def test_why_a_gap_was_left_is_told(coder, changes, kind, word):
    answer = ask(coder, **AROUND, **changes).json()
    assert (answer["stop_type"], answer["stopping_word"]) == (kind, word)


def test_an_editor_may_have_what_it_will_ask_about_computed(coder):
    """As llama.vim does while nobody types."""
    asked = {"input_prefix": "", "input_suffix": "", "prompt": "", "n_predict": 0, "samplers": []}
    files = [{"filename": "b.py", "text": "b = 2\n"}]
    answer = ask(coder, **asked, input_extra=files, id_slot=0, cache_prompt=True)
    assert answer.status == 200
    assert coder.engine.requests[-1].params.max_tokens == 0


def test_other_files_come_before_the_gap(start_server, coder):
    files = [{"filename": "b.py", "text": "b = 2\n", "time": 1}, {"text": "c"}]
    server = start_server(FakeEngine(), Projects())
    assert ask(server, **AROUND, input_extra=files).status == 200
    whole = "Rproject\nFb.py\nb = 2\nFtmp\ncFfile\nPa = S\nprint(a)M"
    assert prompt_of(server) == whole
    assert ask(coder, **AROUND, input_extra=files).status == 200
    assert prompt_of(coder) == "b = 2\n\n\nc\n\nPa = S\nprint(a)M"


def test_a_model_without_a_mark_for_the_middle_has_the_suffix_first(start_server):
    server = start_server(FakeEngine(), Suffixes())
    ask(server, **AROUND)
    assert prompt_of(server) == "S\nprint(a)Pa = "


def test_a_model_that_fills_no_gaps_refuses_by_name(server):
    for path, body, param in (
        (PATH, AROUND, "input_prefix"),
        ("/v1/completions", {"model": MODEL, "prompt": "a", "suffix": "b"}, "suffix"),
    ):
        answer = ask(server, path, **body)
        assert (answer.status, answer.error["param"]) == (422, param)
        assert "fill-in-the-middle" in answer.error["message"]


def test_what_has_no_effect_on_a_gap_is_told(coder):
    answer = ask(coder, **AROUND, t_max_predict_ms=500, samplers=["top_k", "infill"])
    assert answer.headers["x-ignored-parameters"] == "t_max_predict_ms, samplers"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input_prefix": "a"}, "input_suffix"),
        ({**AROUND, "input_prefix": 1}, "input_prefix"),
        ({**AROUND, "n_predict": -2}, "n_predict"),
        ({**AROUND, "repeat_penalty": 1.1}, "repeat_penalty"),
        ({**AROUND, "input_extra": [{"filename": "a"}]}, "input_extra[0].text"),
        ({**AROUND, "input_extra": ["a"]}, "input_extra[0]"),
        ({**AROUND, "input_extra": [{"text": "a"}] * 257}, "input_extra"),
        ({**AROUND, "temprature": 1}, "temprature"),
    ],
)
def test_what_is_wrong_with_a_gap_is_named(coder, body, param):
    answer = ask(coder, **body)
    assert (answer.status, answer.error["param"]) == (422, param)


def test_token_ids_have_no_gap(coder):
    answer = ask(coder, "/v1/completions", model=MODEL, prompt=[72], suffix="b")
    assert (answer.status, answer.error["param"]) == (422, "suffix")
