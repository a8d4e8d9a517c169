"""The three proofs for stop strings, on the wire, for both endpoints, streamed and whole."""

import pytest
from clients import MODEL
from fakes import FakeEngine, say

ENDPOINTS = [
    pytest.param(chat, stream, id=f"{'chat' if chat else 'completion'}-{how}")
    for chat in (True, False)
    for stream, how in ((False, "whole"), (True, "streamed"))
]


@pytest.fixture
def answer(start_server, sdk):
    """answer(chat, stream, pieces, stop) -> (parts of the text, finish reason, output tokens)."""

    def ask(chat, stream, pieces, stop, **changes):
        client = sdk(start_server(FakeEngine(say(*pieces))))
        create = client.chat.completions.create if chat else client.completions.create
        prompt = {"messages": [{"role": "user", "content": "Hi"}]} if chat else {"prompt": "Hi"}
        if stream:
            changes |= {"stream": True, "stream_options": {"include_usage": True}}
        found = create(model=MODEL, stop=stop, **prompt, **changes)
        chunks = list(found) if stream else [found]
        texts = [text_of(chunk.choices[0]) or "" for chunk in chunks if chunk.choices]
        reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
        return texts, reasons[-1], chunks[-1].usage.completion_tokens

    return ask


def text_of(choice):
    if hasattr(choice, "delta"):
        return choice.delta.content
    return choice.message.content if hasattr(choice, "message") else choice.text


@pytest.mark.parametrize(("chat", "stream"), ENDPOINTS)
def test_no_part_of_a_stop_string_leaks(answer, chat, stream):
    pieces = [b"one <", b"|", b"e", b"nd", b"|", b"> two"]
    texts, reason, _ = answer(chat, stream, pieces, "<|end|>")
    assert "".join(texts) == "one "
    assert not any(set(text) & set("<|") for text in texts)
    assert reason == "stop"


@pytest.mark.parametrize(("chat", "stream"), ENDPOINTS)
@pytest.mark.parametrize("end", ["stop", "length"])
def test_text_held_back_is_not_lost_when_the_answer_ends_otherwise(answer, chat, stream, end):
    changes = {"max_tokens": 8} if end == "length" else {}
    texts, reason, num_tokens = answer(chat, stream, [b"one <|en"], "<|end|>", **changes)
    assert ("".join(texts), reason, num_tokens) == ("one <|en", end, 8)


@pytest.mark.parametrize(("chat", "stream"), ENDPOINTS)
@pytest.mark.parametrize("stops", [["four", "two", "three"], ["three", "four", "two"]])
def test_the_first_of_several_to_appear_wins(answer, chat, stream, stops):
    texts, reason, _ = answer(chat, stream, [b"one t", b"wo three four"], stops)
    assert ("".join(texts), reason) == ("one ", "stop")
