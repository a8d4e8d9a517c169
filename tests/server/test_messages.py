"""Anthropic's Messages API: blocks in and out, its events, its errors, and counting."""

import threading

import pytest
from clients import CLIENT_TIMEOUT_S, MODEL, request_bytes
from fakes import EngineDown, FakeEngine
from scripted import ARGUMENTS, CALL, SCHEMA, THOUGHT, Qwen, named_events, prompt_of, saying

PATH = "/v1/messages"
WEATHER = {"name": "weather", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}
HI = [{"role": "user", "content": "Hi"}]


def ask(server, path=PATH, headers=(), **changes):
    body = {"model": MODEL, "max_tokens": 2000, "messages": HI, **changes}
    with server.connect() as client:
        return client.ask("POST", path, body, headers)


@pytest.fixture
def start(start_server):
    return lambda text: start_server(*saying(text))


def test_an_answer_is_blocks_of_thoughts_words_and_calls(start):
    body = ask(start(THOUGHT + "Looking.\n" + CALL), tools=[WEATHER]).json()
    thought, text, call = body["content"]
    assert (thought["thinking"], bool(thought["signature"])) == ("Hm.", True)
    assert text == {"type": "text", "text": "Looking."}
    assert call.pop("id").startswith("toolu_")
    assert call == {"type": "tool_use", "name": "weather", "input": {"city": "Rome", "days": 3}}
    assert (body["type"], body["role"], body["stop_reason"]) == ("message", "assistant", "tool_use")


def test_the_events_of_a_stream_build_the_blocks_one_after_another(start):
    server = start(THOUGHT + "Looking.\n" + CALL)
    events = named_events(ask(server, tools=[WEATHER], stream=True, path=f"{PATH}?beta=true").body)
    assert all(name == data["type"] for name, data in events)
    kinds = [
        data.get("content_block", data.get("delta", {})).get("type", name)
        if name.startswith("content_block_") and name != "content_block_stop"
        else name
        for name, data in events
    ]
    assert [kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind] == [
        "message_start",
        *("thinking", "thinking_delta", "signature_delta", "content_block_stop"),
        *("text", "text_delta", "content_block_stop"),
        *("tool_use", "input_json_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    starts = [data for name, data in events if name == "content_block_start"]
    assert [data["index"] for data in starts] == [0, 1, 2]
    assert starts[2]["content_block"]["input"] == {}
    pieces = [
        data["delta"].get("partial_json", "")
        for _, data in events
        if "index" in data and "delta" in data
    ]
    assert "".join(pieces) == ARGUMENTS
    first, last = events[0][1]["message"], events[-2][1]
    assert (first["content"], first["stop_reason"]) == ([], None)
    assert last["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert first["usage"]["input_tokens"] == last["usage"]["input_tokens"] > 0
    assert last["usage"]["output_tokens"] == len((THOUGHT + "Looking.\n" + CALL).encode())


@pytest.mark.parametrize("stream", [False, True])
def test_why_an_answer_ended_is_told(start, stream):
    server = start("One two three")

    def ending(**changes):
        answer = ask(server, stream=stream, **changes)
        ended = named_events(answer.body)[-2][1]["delta"] if stream else answer.json()
        return ended["stop_reason"], ended["stop_sequence"]

    assert ending() == ("end_turn", None)
    assert ending(max_tokens=3) == ("max_tokens", None)
    assert ending(stop_sequences=["four", " thr"]) == ("stop_sequence", " thr")


def test_blocks_become_the_messages_of_the_prompt(start):
    server = start("Warm.")
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc=1; cch=abc;\nBe brief."},
        {"type": "text", "text": "x-anthropic-other: 1"},
        {"type": "text", "text": "Help.", "cache_control": {"type": "ephemeral"}},
    ]
    call = {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Rome", "days": 3}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "A"}]}
    history = [
        *HI,
        {"role": "system", "content": "Later."},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "Looking."},
                call,
            ],
        },
        {"role": "user", "content": [{"type": "text", "text": "Well?"}, result]},
    ]
    assert ask(server, system=system, messages=history, tools=[WEATHER]).status == 200
    prompt = prompt_of(server)
    assert "x-anthropic" not in prompt
    assert "Be brief.\nHelp." in prompt and "Later." in prompt
    assert "Looking.\n" + CALL in prompt
    assert prompt.index("<tool_response>\nA\n") < prompt.index("Well?")


def test_thinking_and_effort_reach_the_template(start):
    server = start("Hi")
    ask(server, thinking={"type": "disabled"})
    assert prompt_of(server).endswith("<think>\n\n</think>\n\n")
    ask(server, thinking={"type": "adaptive"}, output_config={"effort": "high"})
    assert not prompt_of(server).endswith("</think>\n\n")


def test_a_budget_of_thoughts_is_told_to_be_without_effect(start):
    answer = ask(start("Hi"), thinking={"type": "enabled", "budget_tokens": 1024})
    assert "x-ignored-parameters" not in answer.headers


def test_choices_of_tools_have_this_apis_names(start):
    server = start(CALL + CALL)
    one = {"type": "auto", "disable_parallel_tool_use": True}
    calls = ask(server, tools=[WEATHER], tool_choice=one).json()["content"]
    assert [block["type"] for block in calls] == ["tool_use"]
    ask(server, tools=[WEATHER], tool_choice={"type": "none"})
    assert "weather" not in prompt_of(server)


def test_tools_of_another_service_are_left_out_and_told(start):
    answer = ask(
        start("Hi"), tools=[WEATHER, {"type": "web_search_20250305", "name": "web_search"}]
    )
    assert answer.headers["x-ignored-parameters"] == 'tools[1] "web_search_20250305"'


@pytest.mark.parametrize(
    ("changes", "status", "kind", "text"),
    [
        ({"messages": []}, 400, "invalid_request_error", "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "invalid_request_error", "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]},
         400, "invalid_request_error", "messages[0].content[0].type"),
        ({"max_tokens": None}, 400, "invalid_request_error", "max_tokens"),
        ({"temperature": 3}, 400, "invalid_request_error", "temperature"),
        ({"tool_choice": {"type": "maybe"}}, 400, "invalid_request_error", "tool_choice.type"),
        ({"mcp_servers": [{}]}, 400, "invalid_request_error", "mcp_servers"),
        ({"model": "other"}, 404, "not_found_error", "other"),
    ],
)  # fmt: skip
def test_errors_have_this_apis_shape(start, changes, status, kind, text):
    answer = ask(start("Hi"), **changes)
    assert (answer.status, answer.json()["type"]) == (status, "error")
    assert answer.error["type"] == kind
    assert text in answer.error["message"]


def test_a_prompt_that_is_too_long_is_told_in_the_words_that_clients_know(start_server):
    engine, tokenizer = saying("Hi")
    engine.max_context_tokens = 100
    server = start_server(engine, tokenizer)
    answer = ask(server, messages=[{"role": "user", "content": "a" * 200}])
    assert answer.status == 400
    assert answer.error["message"].startswith("prompt is too long: 2")
    assert answer.error["message"].endswith(" tokens > 99 maximum")


def test_an_error_in_a_stream_is_its_last_event(start_server):
    begun = threading.Event()

    def script(_request):
        yield b"a"
        assert begun.wait(CLIENT_TIMEOUT_S)
        raise EngineDown

    body = {"model": MODEL, "max_tokens": 5, "messages": HI, "stream": True}
    with start_server(FakeEngine(script), Qwen()).connect() as client:
        client.send(request_bytes("POST", PATH, body)).read_stream_head()
        begun.set()
        name, data = named_events(b"".join(client.chunks()))[-1]
    assert (name, data["error"]["type"]) == ("error", "api_error")


def test_the_tokens_of_a_prompt_are_counted_without_an_answer(start):
    server = start("Hi")
    body = {"model": MODEL, "messages": HI, "system": "Be brief.", "tools": [WEATHER]}
    with server.connect() as client:
        counted = client.ask("POST", f"{PATH}/count_tokens", body).json()["input_tokens"]
        answered = client.ask("POST", PATH, {**body, "max_tokens": 5}).json()["usage"]
        assert client.ask("POST", f"{PATH}/count_tokens", {"model": MODEL}).status == 400
    assert counted == answered["input_tokens"]
    assert len(server.engine.requests) == 1


def test_what_clients_ask_before_their_first_request_is_answered(start):
    with start("Hi").connect() as client:
        assert client.ask("HEAD", "/").status == 200


def test_fields_within_blocks_that_mean_nothing_here_are_told(start):
    text = {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}, "lang": "en"}
    call = {"type": "tool_use", "id": "a", "name": "weather", "input": {}, "cache_control": None}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [text], "is_error": True}
    messages = [
        {"role": "user", "content": [text], "id": "msg_1"},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
    ]
    tools = [{**WEATHER, "input_examples": [{}]}]
    answer = ask(start("Hi"), messages=messages, tools=tools, system=[text])
    assert answer.status == 200
    told = answer.headers["x-ignored-parameters"].split(", ")
    assert sorted(told) == [
        *("messages[0].content[0].lang", "messages[0].id"),
        *("messages[2].content[0].content[0].lang", "system[0].lang", "tools[0].input_examples"),
    ]


def test_a_refused_stop_string_is_called_as_it_was_given(start):
    error = ask(start("Hi"), stop_sequences=["a", ""]).json()["error"]
    assert error["message"].startswith("stop_sequences[1] ")
