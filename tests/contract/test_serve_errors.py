"""What a server process answers to requests that it cannot serve, and the SDK's exception for each.

The served model is always the mock: none of this depends on a model.
"""

import json
import re
import time

import openai
import pytest
from contract import CHAT, MODEL, QUESTION, chat, content_of
from served import PATIENCE_S, serve_mock

JSON = {"Content-Type": "application/json"}


def ask_sdk(served, api_key="unused", **changes):
    with openai.OpenAI(base_url=served.base_url, api_key=api_key, max_retries=0) as sdk:
        return sdk.chat.completions.create(**{"model": MODEL, "messages": QUESTION, **changes})


def serve(*arguments, **environ):
    return serve_mock(*arguments, environ=environ, model=f"models/{MODEL}")


@pytest.fixture(scope="module")
def served():
    with serve("--max-context", "64") as served:
        yield served


def begin_endless_stream(served):
    """A request that generates until it is closed or timed out; returns (connection, response)."""
    connection = served.connect()
    body = chat(stream=True, max_tokens=100_000, ignore_eos=True)
    connection.request("POST", CHAT, json.dumps(body), JSON)
    response = connection.getresponse()
    assert response.status == 200
    return connection, response


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"Hi",
        b'{"a": NaN}',
        b'{"a": 1, "a": 2}',
        b"\xff",
        b"[" * 60_000,
        b'{"a": 1e999}',
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_that_is_not_json_is_400(served, body):
    status, answer = served.ask("POST", CHAT, body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


def test_a_prompt_past_the_context_is_400_with_both_numbers(served):
    long = [{"role": "user", "content": "word " * 100}]
    with pytest.raises(openai.BadRequestError) as caught:
        ask_sdk(served, messages=long)
    assert caught.value.code == "context_length_exceeded"
    prompt, context = re.findall(r"\b\d\d+\b", caught.value.body["message"])
    assert int(prompt) > 100 and context == "64"


def test_a_body_past_the_limit_is_413(served):
    # A context of 64 tokens: 64 times 32 bytes and 64 KiB.
    status, answer = served.ask("POST", CHAT, b" " * (67584 + 1))
    assert status == 413 and "67584" in answer["error"]["message"]
    status, answer = served.ask("POST", CHAT, b" " * 67584)
    assert status == 400 and answer["error"]["code"] == "invalid_json"


def test_wrong_methods_and_paths_are_405_and_404_in_json(served):
    status, headers, content = served.send("GET", CHAT)
    assert (status, headers["Allow"]) == (405, "POST")
    assert json.loads(content)["error"]["message"]
    assert served.ask("POST", "/health", {})[0] == 405
    assert served.ask("GET", "/nowhere")[0] == 404
    assert served.ask("OPTIONS", "/v1/models")[0] == 405


def test_a_key_is_asked_for_on_every_route_but_health():
    with serve(METAL_MARLIN_API_KEY="your-secret-key") as locked:
        for method, path in (("GET", "/v1/models"), ("GET", "/metrics"), ("POST", CHAT)):
            status, answer = locked.ask(method, path, chat() if method == "POST" else None)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert locked.ask("GET", "/health")[0] == 200
        with pytest.raises(openai.AuthenticationError):
            ask_sdk(locked, "wrong")
        assert ask_sdk(locked, "your-secret-key").choices
        assert "your-secret-key" not in locked.log()


def test_past_the_queue_a_request_is_503_with_retry_after():
    with serve("--max-concurrent-requests", "1") as small:
        connection, response = begin_endless_stream(small)
        waiting = small.connect()
        waiting.request("POST", CHAT, json.dumps(chat()), JSON)
        small.wait_for_active(2)
        status, headers, content = small.send("POST", CHAT, chat())
        assert (status, headers["Retry-After"]) == (503, "1")
        assert json.loads(content)["error"]["type"] == "server_overloaded"
        with pytest.raises(openai.InternalServerError):
            ask_sdk(small)
        response.close()
        connection.close()
        assert content_of(json.loads(waiting.getresponse().read()))
        waiting.close()
        small.wait_for_active(0)


def test_an_answer_past_the_timeout_is_504_or_a_last_event():
    with serve("--timeout", "0.3", "--max-context", "1000000") as hasty:
        endless = {"max_tokens": 900_000, "ignore_eos": True}
        started = time.monotonic()
        with pytest.raises(openai.InternalServerError) as caught:
            ask_sdk(hasty, max_tokens=900_000, extra_body={"ignore_eos": True})
        assert 0.3 <= time.monotonic() - started < PATIENCE_S / 2
        assert (caught.value.status_code, caught.value.code) == (504, "timeout")
        *_chunks, error, done = hasty.events(CHAT, chat(**endless))
        assert (error["error"]["code"], done) == ("timeout", "[DONE]")
        hasty.wait_for_active(0)


def test_a_request_id_is_returned_and_logged():
    with serve() as served:
        _, headers, _ = served.send("POST", CHAT, chat(), {"X-Request-ID": "mine-1"})
        assert headers["X-Request-ID"] == "mine-1"
        assert served.stop() == 0
        assert "mine-1" in served.log()


def test_prompts_are_not_logged_above_debug():
    with serve("--log-level", "INFO") as served:
        served.post(CHAT, chat(messages=[{"role": "user", "content": "my secret"}]))
        served.ask("POST", CHAT, chat(messages=[{"role": "user", "content": "my secret"}], n="x"))
        served.stop()
        assert "secret" not in served.log()
