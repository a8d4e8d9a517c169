"""The serving contract, from outside: a real process, plain HTTP and the official SDK.

Serves the mock model. METAL_MARLIN_MOCK_MODEL=0 runs the same tests with the demo model. Options
and variables are test_serve_settings.py's.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from contract import (
    CHAT,
    COMPLETIONS,
    MODEL,
    QUESTION,
    chat,
    completion,
    content_of,
    streamed_text,
)
from served import Served

# Health and models


def test_health_is_the_documented_object(served):
    assert served.ask("GET", "/health") == (200, {"status": "ok", "model_loaded": True})


def test_models_lists_the_one_model_under_its_paths_name(served):
    status, body = served.ask("GET", "/v1/models")
    (card,) = body["data"]
    assert (status, body["object"]) == (200, "list")
    assert (card["id"], card["object"], card["owned_by"]) == (MODEL, "model", "metal-marlin")
    assert type(card["created"]) is int and abs(card["created"] - time.time()) < 3600


def test_models_are_found_one_by_one(served):
    status, card = served.ask("GET", f"/v1/models/{MODEL}")
    assert (status, card["id"]) == (200, MODEL)
    status, body = served.ask("GET", "/v1/models/other")
    assert (status, body["error"]["type"]) == (404, "model_not_found")


def test_models_are_read_by_the_sdk(sdk):
    assert [model.id for model in sdk.models.list()] == [MODEL]
    assert sdk.models.retrieve(MODEL).owned_by == "metal-marlin"


# Chat and text completions


def test_chat_answers_in_the_documented_shape(served):
    answer = served.post(CHAT, chat())
    assert set(answer) >= {"id", "object", "created", "model", "choices", "usage"}
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", MODEL)
    assert abs(answer["created"] - time.time()) < 60
    (choice,) = answer["choices"]
    assert (choice["index"], choice["message"]["role"]) == (0, "assistant")
    assert choice["message"]["content"]
    assert choice["finish_reason"] in ("stop", "length")


def test_completions_answer_in_the_documented_shape(served):
    answer = served.post(COMPLETIONS, completion())
    assert set(answer) >= {"id", "object", "created", "model", "choices", "usage"}
    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"]) == ("text_completion", MODEL)
    (choice,) = answer["choices"]
    assert choice["index"] == 0 and choice["text"]
    assert choice["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (COMPLETIONS, completion())])
def test_usage_adds_up(served, path, body):
    usage = served.post(path, body)["usage"]
    assert 0 < usage["completion_tokens"] <= body["max_tokens"]
    assert usage["prompt_tokens"] > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_every_message_of_a_conversation_is_in_the_prompt(served):
    roles = ("system", "user", "assistant", "user")
    messages = [{"role": role, "content": f"I am {role}."} for role in roles]

    def prompt_tokens(messages):
        answer = served.post(CHAT, chat(messages=messages, max_tokens=1))
        return answer["usage"]["prompt_tokens"]

    whole = prompt_tokens(messages)
    for number in range(len(messages)):
        changed = [dict(message) for message in messages]
        changed[number]["content"] += " Truly, I am."
        assert prompt_tokens(changed) > whole, roles[number]


def test_text_parts_are_read_as_their_text(served):
    parts = [{"type": "text", "text": QUESTION[0]["content"]}]
    as_parts = chat(messages=[{"role": "user", "content": parts}], temperature=0)
    whole = served.post(CHAT, chat(temperature=0))
    assert content_of(served.post(CHAT, as_parts)) == content_of(whole)


def test_a_prompt_of_token_ids_counts_as_many_tokens(served):
    usage = served.post(COMPLETIONS, completion(prompt=[65, 66, 67]))["usage"]
    assert usage["prompt_tokens"] == 3


def test_max_tokens_ends_an_answer_with_reason_length(served):
    answer = served.post(CHAT, chat(max_tokens=2, ignore_eos=True))
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2


def test_max_tokens_is_512_when_a_request_names_none(served):
    body = chat(ignore_eos=True)
    del body["max_tokens"]
    assert served.post(CHAT, body)["usage"]["completion_tokens"] == 512


def test_temperature_0_repeats_itself(served):
    first, second = (served.post(CHAT, chat(temperature=0)) for _ in range(2))
    assert content_of(first) == content_of(second)


def test_a_seed_repeats_an_answer_and_another_seed_changes_it(served):
    def answer(seed):
        return content_of(served.post(CHAT, chat(seed=seed, temperature=1.5)))

    assert answer(1) == answer(1) != answer(2)


def test_defaults_are_temperature_0_7_and_top_p_0_9(served):
    named = chat(seed=3, temperature=0.7, top_p=0.9, frequency_penalty=0.0, presence_penalty=0.0)
    assert content_of(served.post(CHAT, chat(seed=3))) == content_of(served.post(CHAT, named))


@pytest.mark.parametrize("as_list", [False, True])
def test_a_stop_string_ends_the_text_before_it(served, as_list):
    whole = content_of(served.post(CHAT, chat(temperature=0)))
    stop = whole[len(whole) // 2 :][:4]
    stops = ["never there", stop] if as_list else stop
    answer = served.post(CHAT, chat(temperature=0, stop=stops))
    assert content_of(answer) == whole[: whole.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_both_kinds_of_answer_are_read_by_the_sdk(sdk):
    answer = sdk.chat.completions.create(**chat())
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.total_tokens > answer.usage.prompt_tokens > 0
    assert sdk.completions.create(**completion()).choices[0].text


# Streaming


def test_streaming_chat_has_the_documented_events_in_order(served):
    *chunks, done = served.events(CHAT, chat())
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert {chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]} == {None}
    assert {chunk["choices"][0]["index"] for chunk in chunks} == {0}


def test_streaming_chunks_repeat_id_object_created_and_model(served):
    chunks = served.events(CHAT, chat())[:-1]
    kinds = {tuple(chunk[k] for k in ("id", "object", "created", "model")) for chunk in chunks}
    ((chunk_id, kind, _created, model),) = kinds
    assert chunk_id.startswith("chatcmpl-")
    assert (kind, model) == ("chat.completion.chunk", MODEL)


def test_streaming_brings_the_text_of_the_whole_answer(served):
    whole = content_of(served.post(CHAT, chat(temperature=0)))
    assert streamed_text(served.events(CHAT, chat(temperature=0))) == whole


def test_streaming_completions_brings_the_text_of_the_whole_answer(served):
    whole = served.post(COMPLETIONS, completion(temperature=0))["choices"][0]["text"]
    events = served.events(COMPLETIONS, completion(temperature=0))
    assert events[0]["object"] == "text_completion"
    assert streamed_text(events) == whole
    assert events[-1] == "[DONE]"


def test_streaming_comes_in_several_chunks_while_tokens_are_made(served):
    connection = served.connect()
    try:
        body = json.dumps(chat(stream=True, max_tokens=100_000, ignore_eos=True))
        connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        first = response.readline()
        assert first.startswith(b"data: {") and response.readline() == b"\n"
        assert served.metrics()["requests_active"] == 1
        for _ in range(3):
            assert response.readline().startswith(b"data: {") and response.readline() == b"\n"
        response.close()
    finally:
        connection.close()
    served.wait_for_active(0)


def test_streaming_with_include_usage_ends_with_the_counts(served):
    *chunks, usage, _done = served.events(CHAT, chat(stream_options={"include_usage": True}))
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] > usage["usage"]["completion_tokens"] > 0
    assert all(chunk["usage"] is None for chunk in chunks)


def test_streaming_leaks_no_part_of_a_stop_string(served):
    whole = content_of(served.post(CHAT, chat(temperature=0)))
    stop = whole[len(whole) // 2 :][:6]
    events = served.events(CHAT, chat(temperature=0, stop=stop))
    assert streamed_text(events) == whole[: whole.index(stop)]
    assert events[-2]["choices"][0]["finish_reason"] == "stop"


def test_streaming_of_an_invalid_request_is_an_error_status(served):
    status, body = served.ask("POST", CHAT, chat(stream=True, temperature=9))
    assert (status, body["error"]["param"]) == (422, "temperature")


def test_streaming_is_read_by_the_sdk(sdk):
    chunks = list(sdk.chat.completions.create(**chat(stream=True)))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_streaming_to_a_client_that_leaves_frees_the_server(served):
    connection = served.connect()
    body = chat(stream=True, max_tokens=100_000, ignore_eos=True)
    connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.readline()
    assert served.metrics()["requests_active"] == 1
    response.close()
    connection.close()
    served.wait_for_active(0)


def test_streaming_to_an_http_1_0_client_has_no_chunks(served):
    body = json.dumps(chat(stream=True)).encode()
    with served.open_socket() as client:
        head = b"POST %b HTTP/1.0\r\nContent-Type: application/json\r\n" % CHAT.encode()
        head += b"Content-Length: %d\r\n\r\n" % len(body)
        client.sendall(head + body)
        answer = client.makefile("rb").read()
    head, _, content = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head and b"chunked" not in head.lower()
    assert content.startswith(b"data: {") and content.endswith(b"data: [DONE]\n\n")


# Concurrent requests: ten of them from five workers


def run_concurrent(work):
    with ThreadPoolExecutor(max_workers=5) as pool:
        return list(pool.map(work, range(10)))


def test_concurrent_requests_are_all_answered(served):
    answers = run_concurrent(lambda _: served.post(CHAT, chat()))
    assert len({answer["id"] for answer in answers}) == 10
    assert all(content_of(answer) for answer in answers)
    served.wait_for_active(0)


def test_concurrent_requests_get_the_answers_they_get_alone(served):
    def answer(seed):
        return content_of(served.post(CHAT, chat(seed=seed, temperature=1)))

    together = run_concurrent(answer)
    assert together == [answer(seed) for seed in range(10)]


def test_concurrent_streams_are_not_mixed_up(served):
    alone = [served.post(CHAT, chat(seed=seed, temperature=1)) for seed in range(10)]
    streams = run_concurrent(lambda seed: served.events(CHAT, chat(seed=seed, temperature=1)))
    assert [streamed_text(events) for events in streams] == [content_of(a) for a in alone]
    assert len({events[0]["id"] for events in streams}) == 10


def test_concurrent_requests_of_every_kind_share_the_server(served):
    def one(index):
        if index % 3 == 0:
            return served.ask("GET", "/health")[0]
        if index % 3 == 1:
            return served.ask("POST", COMPLETIONS, completion())[0]
        return served.ask("POST", CHAT, chat(messages=[]))[0]

    assert run_concurrent(one) == [200, 200, 422] * 3 + [200]


def test_concurrent_requests_by_the_sdk_are_all_answered(sdk):
    answers = run_concurrent(lambda _: sdk.chat.completions.create(**chat()))
    assert all(answer.choices[0].message.content for answer in answers)


# Input validation: 422, and `param` names the field

WRONG_IN_BOTH = [
    ({"model": None}, "model"),
    ({"model": 5}, "model"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"frequency_penalty": 2.1}, "frequency_penalty"),
    ({"presence_penalty": -2.1}, "presence_penalty"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"stream": "yes"}, "stream"),
    ({"stop": 1}, "stop"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"seed": "s"}, "seed"),
    ({"no_such_parameter": 1}, "no_such_parameter"),
]
WRONG_IN_CHAT = [
    ({"messages": None}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [QUESTION[0], "Hi"]}, "messages[1]"),
    ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role"),
    ({"messages": [*QUESTION, *QUESTION, {"role": "user"}]}, "messages[2].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "x"}]}]}, "messages[0].content[0].type"),
]
WRONG_IN_COMPLETIONS = [
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": 7}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt[1]"),
    ({"prompt": [10**9]}, "prompt[0]"),
]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [(CHAT, chat(**changes), param) for changes, param in WRONG_IN_BOTH + WRONG_IN_CHAT]
    + [
        (COMPLETIONS, completion(**changes), param)
        for changes, param in WRONG_IN_BOTH + WRONG_IN_COMPLETIONS
    ],
)
def test_validation_names_the_wrong_field_with_422(served, path, body, param):
    status, answer = served.ask("POST", path, body)
    assert (status, answer["error"]["param"]) == (422, param)
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "missing"),
    [(CHAT, "model"), (CHAT, "messages"), (COMPLETIONS, "model"), (COMPLETIONS, "prompt")],
)
def test_validation_names_a_missing_field_with_422(served, path, missing):
    body = chat() if path == CHAT else completion()
    del body[missing]
    status, answer = served.ask("POST", path, body)
    assert (status, answer["error"]["param"]) == (422, missing)


def test_validation_errors_raise_the_sdks_exception(sdk):
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        sdk.chat.completions.create(**chat(temperature=2.5))
    assert caught.value.param == "temperature"


# Errors; the rest of them are test_serve_errors.py's


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (COMPLETIONS, completion())])
def test_another_model_is_404_model_not_found(served, sdk, path, body):
    status, answer = served.ask("POST", path, {**body, "model": "other"})
    assert (status, answer["error"]["type"]) == (404, "model_not_found")
    with pytest.raises(openai.NotFoundError):
        sdk.post(path.removeprefix("/v1"), body={**body, "model": "other"}, cast_to=object)


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (COMPLETIONS, completion())])
def test_without_a_model_a_request_is_503_model_not_loaded(path, body):
    with Served("--host", "127.0.0.1") as empty:
        assert "no model" in empty.announcement
        assert empty.ask("GET", "/health") == (200, {"status": "ok", "model_loaded": False})
        assert empty.ask("GET", "/v1/models") == (200, {"object": "list", "data": []})
        status, answer = empty.ask("POST", path, body)
    assert (status, answer["error"]["type"]) == (503, "model_not_loaded")
