"""`echo` with `logprobs`: the prompt's own tokens, as those who measure models ask for them."""

import math

import pytest
from clients import completion_body
from fakes import ByteTokenizer, FakeEngine, say

HALF = -math.log(2)  # what the fake engine's model holds of every token


class WithBegin(ByteTokenizer):
    add_bos_token, bos_token_id = True, 256

    def encode(self, text, *, add_special_tokens=True, parse_special=True):
        return [256] * add_special_tokens + list(text.encode())


def ask(server, **changes):
    with server.connect() as client:
        answer = client.ask("POST", "/v1/completions", completion_body(echo=True, **changes))
    assert answer.status == 200, answer.body
    return answer


@pytest.fixture
def served(start_server):
    return start_server(FakeEngine(say(b"!", b"?")))


def test_a_prompt_is_scored_without_an_answer(served):
    body = ask(served, prompt="Hé", logprobs=1, max_tokens=0).json()
    choice = body["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Hé", "length")
    assert body["usage"]["completion_tokens"] == 0
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["H", "bytes:\\xc3", "bytes:\\xa9"]
    assert logprobs["token_logprobs"] == [None, HALF, HALF]
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["top_logprobs"][1] == {"bytes:\\xc3": HALF}
    assert logprobs["text_offset"] == [0, 1, 1]


def test_an_answers_tokens_follow_the_prompts(served):
    choice = ask(served, prompt=[72, 105], logprobs=0, max_tokens=2).json()["choices"][0]
    assert choice["text"] == "Hi!?"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["H", "i", "!", "?"]
    assert logprobs["token_logprobs"] == [None, HALF, HALF, HALF]
    assert logprobs["text_offset"] == [0, 1, 2, 3]


def test_a_stream_has_the_same_tokens_as_a_whole_answer(served):
    asked = {"prompt": ["Hi", "you"], "logprobs": 2, "max_tokens": 2, "n": 2}
    whole = ask(served, **asked).json()["choices"]
    *events, done = ask(served, **asked, stream=True).events()
    assert done == "[DONE]"
    for choice in whole:
        pieces = [
            part
            for event in events
            for part in event["choices"]
            if part["index"] == choice["index"]
        ]
        assert "".join(part["text"] for part in pieces) == choice["text"]
        for name in choice["logprobs"]:
            shown = [item for part in pieces for item in (part.get("logprobs") or {}).get(name, [])]
            assert shown == choice["logprobs"][name]


def test_what_a_tokenizer_puts_before_a_text_is_no_part_of_it(start_server):
    server = start_server(FakeEngine(), WithBegin())
    logprobs = ask(server, prompt="Hi", logprobs=0, max_tokens=0).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["<end>", "H", "i"]
    assert logprobs["token_logprobs"] == [None, HALF, HALF]
    assert logprobs["text_offset"] == [0, 0, 1]


def test_a_long_prompt_is_scored_to_its_end(served):
    choice = ask(served, prompt="x" * 1000, logprobs=5, max_tokens=0).json()["choices"][0]
    assert len(choice["logprobs"]["token_logprobs"]) == 1000
    assert choice["logprobs"]["text_offset"] == list(range(1000))


def test_without_echo_an_answer_has_a_token_at_least(served):
    with served.connect() as client:
        answer = client.ask("POST", "/v1/completions", completion_body(max_tokens=0, logprobs=1))
    assert (answer.status, answer.error["param"]) == (422, "max_tokens")
    assert ask(served, prompt="Hi", max_tokens=0).json()["choices"][0]["text"] == "Hi"
