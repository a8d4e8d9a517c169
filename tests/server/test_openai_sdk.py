"""The official SDK against the server: answers it can use, and the exception it raises for each
error."""

import openai
import pytest
from clients import MODEL
from fakes import FakeEngine, say_then_hang

MESSAGES = [{"role": "user", "content": "Hi"}]


def chat(client, **changes):
    return client.chat.completions.create(**{"model": MODEL, "messages": MESSAGES, **changes})


def test_a_chat_answer_is_read(server, sdk):
    answer = chat(sdk(server))
    assert answer.choices[0].message.content == "Hello there!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == 31


def test_a_chat_answer_can_be_sent_back_as_history(server, sdk):
    message = chat(sdk(server)).choices[0].message
    for again in (message, message.model_dump()):
        answer = chat(sdk(server), messages=[*MESSAGES, again, *MESSAGES])
        assert answer.choices[0].message.content == "Hello there!"


def test_a_chat_stream_is_read(server, sdk):
    chunks = list(chat(sdk(server), stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Hello there!"
    assert chunks[-1].usage.completion_tokens == 12


def test_a_completion_is_read_whole_and_streamed(server, sdk):
    client = sdk(server)
    assert client.completions.create(model=MODEL, prompt="Hi").choices[0].text == "Hello there!"
    chunks = client.completions.create(model=MODEL, prompt="Hi", stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello there!"


def test_models_are_listed_and_retrieved(server, sdk):
    assert [model.id for model in sdk(server).models.list()] == [MODEL]
    assert sdk(server).models.retrieve(MODEL).owned_by == "metal-marlin"


def test_the_request_id_reaches_the_sdk(server, sdk):
    assert chat(sdk(server))._request_id.startswith("req-")


@pytest.mark.parametrize(
    ("changes", "kind", "param"),
    [
        ({"temperature": 2.5}, openai.UnprocessableEntityError, "temperature"),
        ({"messages": []}, openai.UnprocessableEntityError, "messages"),
        ({"n": 17}, openai.UnprocessableEntityError, "n"),
        ({"model": "other"}, openai.NotFoundError, "model"),
    ],
)
def test_client_mistakes_raise_the_matching_exception(server, sdk, changes, kind, param):
    with pytest.raises(kind) as caught:
        chat(sdk(server), **changes)
    assert caught.value.param == param
    assert param in caught.value.message


def test_a_prompt_that_is_too_long_raises_bad_request(start_server, sdk):
    server = start_server(FakeEngine(max_context_tokens=5))
    with pytest.raises(openai.BadRequestError) as caught:
        chat(sdk(server))
    assert caught.value.code == "context_length_exceeded"


def test_a_wrong_key_raises_authentication_error(start_server, sdk):
    server = start_server(environ={"METAL_MARLIN_API_KEY": "right"})
    with pytest.raises(openai.AuthenticationError):
        chat(sdk(server, "wrong"))
    assert chat(sdk(server, "right")).choices[0].finish_reason == "stop"


def test_no_model_raises_internal_server_error_with_its_code(start_server, sdk):
    with pytest.raises(openai.InternalServerError) as caught:
        chat(sdk(start_server(model=False)))
    assert (caught.value.status_code, caught.value.code) == (503, "model_not_loaded")


def test_a_timeout_in_mid_stream_raises_api_error(start_server, sdk):
    engine = FakeEngine(say_then_hang(b"text"))
    server = start_server(engine, options={"timeout_s": "0.2"}, poll_s=0.02)
    stream = chat(sdk(server), stream=True)
    with pytest.raises(openai.APIError, match="0.2 s"):
        list(stream)


def test_closing_a_stream_early_frees_the_engine(start_server, sdk):
    engine = FakeEngine(say_then_hang(b"text"))
    server = start_server(engine, poll_s=0.02)
    with chat(sdk(server), stream=True) as stream:
        assert next(iter(stream)).choices[0].delta.role == "assistant"
    sdk(server)
    assert engine.aborted.acquire(timeout=10)
