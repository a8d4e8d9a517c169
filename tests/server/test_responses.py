"""The Responses API: items in and out, the order of its events, and what it refuses."""

import threading

import pytest
from clients import CLIENT_TIMEOUT_S, MODEL, request_bytes
from fakes import EngineDown, FakeEngine
from scripted import ARGUMENTS, CALL, SCHEMA, THOUGHT, Qwen, named_events, prompt_of, saying

PATH = "/v1/responses"
WEATHER = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}


def ask(server, **changes):
    with server.connect() as client:
        return client.ask("POST", PATH, {"model": MODEL, "input": "Hi", **changes})


@pytest.fixture
def start(start_server):
    return lambda text: start_server(*saying(text))


def test_an_answer_is_items_with_thoughts_words_and_calls(start):
    body = ask(start(THOUGHT + "Looking.\n" + CALL), tools=[WEATHER]).json()
    thought, message, call = body["output"]
    assert thought["type"] == "reasoning" and thought["summary"] == []
    assert thought["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert (message["role"], message["content"][0]["text"]) == ("assistant", "Looking.")
    assert (call["name"], call["arguments"]) == ("weather", ARGUMENTS)
    assert len({item["id"] for item in body["output"]} | {call["call_id"]}) == 4
    assert (body["object"], body["status"], body["store"]) == ("response", "completed", False)
    assert body["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    assert body["tools"] == [WEATHER]


def test_the_events_of_a_stream_build_the_items_one_after_another(start):
    server = start(THOUGHT + "Looking.\n" + CALL)
    events = named_events(ask(server, tools=[WEATHER], stream=True).body)
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    assert all(name == data["type"] for name, data in events)
    names = [name.removeprefix("response.") for name, _ in events]
    kinds = [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]
    thought = ["content_part.added", "reasoning_text.delta", "reasoning_text.done"]
    text = ["content_part.added", "output_text.delta", "output_text.done"]
    arguments = ["function_call_arguments.delta", "function_call_arguments.done"]
    assert kinds == [
        *("created", "in_progress"),
        *("output_item.added", *thought, "content_part.done", "output_item.done"),
        *("output_item.added", *text, "content_part.done", "output_item.done"),
        *("output_item.added", *arguments, "output_item.done"),
        "completed",
    ]
    added = [data["output_index"] for name, data in events if name.endswith("item.added")]
    assert added == [0, 1, 2]
    done = [data["item"] for name, data in events if name.endswith("item.done")]
    assert events[-1][1]["response"]["output"] == done
    whole = ask(server, tools=[WEATHER]).json()["output"]
    for ours, theirs in zip(done, whole, strict=True):
        assert set(ours) == set(theirs) and ours.get("content") == theirs.get("content")


def test_who_asks_for_a_summary_gets_thoughts_as_one(start):
    server = start(THOUGHT + "Yes")
    (thought, _) = ask(server, reasoning={"summary": "auto"}).json()["output"]
    assert (thought["summary"], "content" in thought) == (
        [{"type": "summary_text", "text": "Hm."}],
        False,
    )
    events = named_events(ask(server, reasoning={"summary": "auto"}, stream=True).body)
    deltas = [data["delta"] for name, data in events if "summary_text.delta" in name]
    assert "".join(deltas) == "Hm."


def test_an_answer_that_max_output_tokens_cuts_is_incomplete(start):
    server = start("Looking at it")
    body = ask(server, max_output_tokens=7).json()
    assert (body["status"], body["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    assert body["output"][0]["content"][0]["text"] == "Looking"
    name, data = named_events(ask(server, max_output_tokens=7, stream=True).body)[-1]
    assert (name, data["response"]["status"]) == ("response.incomplete", "incomplete")
    assert data["response"]["output"][0]["status"] == "incomplete"
    ask(server)
    assert server.engine.requests[-1].params.max_tokens == server.engine.max_context_tokens


def test_an_error_in_a_stream_ends_it_as_failed(start_server):
    begun = threading.Event()

    def script(_request):
        yield b"a"
        assert begun.wait(CLIENT_TIMEOUT_S)
        raise EngineDown

    body = {"model": MODEL, "input": "Hi", "stream": True}
    with start_server(FakeEngine(script), Qwen()).connect() as client:
        client.send(request_bytes("POST", PATH, body)).read_stream_head()
        begun.set()
        events = named_events(b"".join(client.chunks()))
    name, data = events[-1]
    assert (name, data["response"]["status"]) == ("response.failed", "failed")
    assert data["response"]["error"]["code"] == "internal_error"
    assert data["sequence_number"] == len(events) - 1


def test_items_become_the_messages_of_the_prompt(start):
    server = start("Warm.")
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"type": "message", "role": "user", "content": "Hi", "id": "msg_1"},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "function_call", "call_id": "a", "name": "weather", "arguments": ARGUMENTS},
        {"type": "function_call", "call_id": "b", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "b", "output": "B"},
        {
            "type": "function_call_output",
            "call_id": "a",
            "output": [{"type": "input_text", "text": "A"}],
        },
    ]
    assert ask(server, input=items, instructions="Help.", tools=[WEATHER]).status == 200
    prompt = prompt_of(server)
    assert prompt.index("Help.") < prompt.index("Be brief.") < prompt.index("Hi")
    assert "<think>\nHm.\n</think>\n\n" + CALL in prompt
    responses = prompt.partition("</tool_call><|im_end|>")[2]
    assert responses.index("\nA\n") < responses.index("\nB\n")


def test_what_another_service_would_do_is_left_out_and_told(start):
    server = start("Hi")
    tools = [WEATHER, {"type": "web_search"}, {"type": "namespace", "name": "n", "tools": []}]
    items = [{"type": "web_search_call", "id": "x"}, {"role": "user", "content": "Hi"}]
    items.append({"type": "item_reference", "id": "rs_1"})
    answer = ask(server, tools=tools, input=items)
    assert answer.status == 200
    told = answer.headers["x-ignored-parameters"]
    assert told.split(", ") == [
        *('input[0] "web_search_call"', 'input[2] "item_reference"'),
        *('tools[1] "web_search"', 'tools[2] "namespace"'),
    ]
    assert "namespace" not in prompt_of(server)


FIELDS_OF_OTHERS = {
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi", "lang": "en"}], "x": 1},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None, "effort": 1},
        {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}", "to": "b"},
        {"type": "function_call_output", "call_id": "a", "output": "B", "status": "completed"},
    ],
    "tools": [{**WEATHER, "defer_loading": True}],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [WEATHER], "why": "so"},
}


def test_fields_within_items_that_mean_nothing_here_are_told(start):
    answer = ask(start(CALL), **FIELDS_OF_OTHERS)
    assert answer.status == 200
    assert answer.headers["x-ignored-parameters"].split(", ") == [
        *("input[0].content[0].lang", "input[0].x", "input[1].effort", "input[2].to"),
        *("tools[0].defer_loading", "tool_choice.why"),
    ]


def test_a_strict_server_refuses_them(start_server):
    server = start_server(*saying(CALL), options={"unknown_parameters": "strict"})
    for changes in ({"tools": FIELDS_OF_OTHERS["tools"]}, {"input": FIELDS_OF_OTHERS["input"]}):
        assert ask(server, **changes).status == 422


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"text": {"format": {"type": "json_object", "skema": {}}}}, "text.format.skema"),
        ({"input": []}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"type": "message", "role": "king", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
         "input[0].content[0].type"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input[0].type"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"inputs": "Hi"}, "inputs"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(start, changes, param):
    answer = ask(start("Hi"), **changes)
    assert (answer.status, answer.error["param"]) == (422, param)


def test_the_official_client_reads_answers_and_streams(start, sdk):
    server = start("Looking.\n" + CALL)
    client = sdk(server)
    answer = client.responses.create(model=MODEL, input="Hi", tools=[WEATHER])
    assert (answer.output_text, answer.output[1].arguments) == ("Looking.", ARGUMENTS)
    with client.responses.stream(model=MODEL, input="Hi", tools=[WEATHER]) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert "response.function_call_arguments.done" in kinds
    assert (final.output_text, final.output[1].arguments) == ("Looking.", ARGUMENTS)
