"""A stream from its first event to its last: each choice is opened once and ended once, and what a
call asks for beside comes once, however many pieces its text has."""

import time

import pytest
from clients import chat_body, completion_body
from fakes import ByteTokenizer, FakeEngine, say

TEXT = "The quick brown fox jumps over the lazy dog."


@pytest.fixture
def server(start_server):
    """One whose engine says TEXT a byte at a time, slowly enough for many writes."""

    def script(_request):
        for byte in TEXT.encode():
            time.sleep(0.002)
            yield bytes([byte])

    return start_server(FakeEngine(script))


def streamed(server, path, body):
    with server.connect() as client:
        return client.ask("POST", path, {**body, "stream": True}).events()


def choices_of(events):
    """{index: its choices in order} of the chunks of a stream."""
    found = {}
    for event in events:
        for choice in event["choices"]:
            found.setdefault(choice["index"], []).append(choice)
    return found


@pytest.mark.parametrize("n", [1, 3])
def test_a_chat_choice_has_one_role_at_its_beginning_and_one_reason_at_its_end(server, n):
    *events, done = streamed(server, "/v1/chat/completions", chat_body(n=n))
    assert done == "[DONE]" and "[DONE]" not in events
    choices = choices_of(events)
    assert sorted(choices) == list(range(n))
    for parts in choices.values():
        assert len(parts) > 10
        assert ["role" in part["delta"] for part in parts] == [True] + [False] * (len(parts) - 1)
        reasons = [part["finish_reason"] for part in parts]
        assert reasons == [None] * (len(parts) - 1) + ["stop"]
        assert "".join(part["delta"].get("content", "") for part in parts) == TEXT


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("echo", [False, True])
def test_a_completion_choice_has_its_prompt_once_and_one_reason_at_its_end(server, n, echo):
    *events, done = streamed(server, "/v1/completions", completion_body(n=n, echo=echo))
    assert done == "[DONE]" and "[DONE]" not in events
    choices = choices_of(events)
    assert sorted(choices) == list(range(n))
    for parts in choices.values():
        assert "".join(part["text"] for part in parts) == "Hi" * echo + TEXT
        reasons = [part["finish_reason"] for part in parts]
        assert reasons == [None] * (len(parts) - 1) + ["stop"]


@pytest.mark.parametrize("n", [1, 3])
def test_usage_that_was_asked_for_comes_once_and_last_and_counts_all(server, n):
    body = chat_body(n=n, stream_options={"include_usage": True})
    *events, last, done = streamed(server, "/v1/chat/completions", body)
    assert done == "[DONE]"
    assert [event["usage"] for event in events] == [None] * len(events)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == n * len(TEXT)


def test_a_completion_keeps_the_blank_it_begins_with_and_a_chat_answer_does_not(start_server):
    tokenizer = ByteTokenizer()
    tokenizer.strips_leading_space = True  # as SentencePiece's
    server = start_server(FakeEngine(say(b" jumps", b" over")), tokenizer)
    with server.connect() as client:
        answer = client.ask("POST", "/v1/completions", completion_body()).json()
        assert answer["choices"][0]["text"] == " jumps over"
        answer = client.ask("POST", "/v1/chat/completions", chat_body()).json()
        assert answer["choices"][0]["message"]["content"] == "jumps over"
