"""The bodies and events of the Responses and the Messages API, byte for byte of what clients read;
that a server sends them is tests/server's."""

import json

import pytest

from marlin.errors import ContextLengthError, DeviceError, RequestError, UnknownPathError
from marlin.server.api import messages_answers, responses_answers
from marlin.server.api.dialect import Choice, ToolCall, Usage
from marlin.server.api.messages_answers import MessagesAnswer
from marlin.server.api.responses_answers import ResponsesAnswer
from marlin.text.tool_calls.scanner import Part

USAGE = Usage(10, 5, 3, 2)
ERROR = RequestError("top_k is bad", param="top_k")


def events(data):
    """[(event, its data)] of a stream."""
    blocks = data.decode().split("\n\n")
    assert blocks.pop() == ""
    pairs = [block.removeprefix("event: ").split("\ndata: ") for block in blocks]
    return [(name, json.loads(data)) for name, data in pairs]


def responses(shows_summary=False):
    return ResponsesAnswer("ab", {"id": "resp_ab", "model": "m"}, shows_summary)


def numbered(data):
    """Events whose name is also their type, and whose numbers count from 0, without either."""
    found = []
    for number, (name, fields) in enumerate(events(data)):
        assert fields.pop("type") == name and fields.pop("sequence_number") == number
        found.append((name.removeprefix("response."), fields))
    return found


RESPONSES_USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 3},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 15,
}


def response(status, output, usage=RESPONSES_USAGE, error=None):
    cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
    return {
        **{"id": "resp_ab", "model": "m", "status": status, "error": error},
        **{"incomplete_details": cut, "output": output, "usage": usage},
    }


def thought(status, texts, kind="content"):
    item = {"type": "reasoning", "id": "rs_ab00", "summary": [], "status": status}
    part = "reasoning_text" if kind == "content" else "summary_text"
    return {**item, kind: [{"type": part, "text": text} for text in texts]}


def text_part(text):
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def message(number, status, *texts):
    item = {"type": "message", "id": f"msg_ab{number:02}", "status": status, "role": "assistant"}
    return {**item, "content": [text_part(text) for text in texts]}


def call(number, status, name, arguments, call_id):
    item = {"type": "function_call", "id": f"fc_ab{number:02}", "call_id": call_id}
    return {**item, "name": name, "arguments": arguments, "status": status}


def test_a_whole_response_is_its_items():
    calls = [ToolCall("f", None, "{}", True), ToolCall("g", "own", "[", False)]
    choice = Choice(0, "Look", "tool_calls", (), "Hm.", calls)
    output = [
        thought("completed", ["Hm."]),
        message(1, "completed", "Look"),
        call(2, "completed", "f", "{}", "call_ab02"),
        call(3, "completed", "g", "[", "own"),
    ]
    assert responses().body([choice], USAGE) == response("completed", output)
    short = [thought("completed", ["Hm."], "summary"), message(1, "completed", "Look")]
    choice = Choice(0, "Look", "stop", (), "Hm.")
    assert responses(True).body([choice], USAGE) == response("completed", short)


def test_a_response_of_calls_alone_has_no_message_and_one_of_nothing_an_empty_one():
    choice = Choice(0, "", "tool_calls", (), "", [ToolCall("f", None, "{}", True)])
    output = responses().body([choice], USAGE)["output"]
    assert output == [call(0, "completed", "f", "{}", "call_ab00")]
    assert responses().body([Choice(0, "", None)], USAGE)["output"] == [message(0, "completed", "")]


def test_the_last_item_of_a_response_that_is_cut_is_incomplete():
    body = responses().body([Choice(0, "Look", "length", (), "Hm.")], USAGE)
    output = [thought("completed", ["Hm."]), message(1, "incomplete", "Look")]
    assert body == response("incomplete", output)


def built(answer, *ending):
    """The events of an answer of a thought, words, a call and one that does not end."""
    return b"".join(
        [
            answer.opening(0, USAGE),
            *(answer.part(0, Part("reasoning", text)) for text in ("Hm", ".")),
            *(answer.text(0, text, ()) for text in ("", "Lo", "ok")),
            answer.part(0, Part("call", "f", 0)),
            answer.part(0, Part("arguments", "{}", 0)),
            answer.part(0, Part("called", "", 0)),
            answer.part(0, Part("call", "g", 1, "own")),
            answer.part(0, Part("arguments", "{", 1)),
            answer.ending(0, *ending),
            answer.closing(USAGE),
        ]
    )


def added(index, item):
    return "output_item.added", {"output_index": index, "item": item}


def ended(index, item):
    return "output_item.done", {"output_index": index, "item": item}


AT, WORDS = (
    {"item_id": id, "output_index": index, "content_index": 0}
    for index, id in enumerate(("rs_ab00", "msg_ab01"))
)
FIRST, SECOND = ({"item_id": f"fc_ab0{index}", "output_index": index} for index in (2, 3))
EMPTY, WHOLE = ({"type": "reasoning_text", "text": text} for text in ("", "Hm."))
DONE = [
    thought("completed", ["Hm."]),
    message(1, "completed", "Look"),
    call(2, "completed", "f", "{}", "call_ab02"),
    call(3, "incomplete", "g", "{", "own"),
]
BUILT = [
    ("created", {"response": response("in_progress", [], None)}),
    ("in_progress", {"response": response("in_progress", [], None)}),
    added(0, thought("in_progress", [])),
    ("content_part.added", {**AT, "part": EMPTY}),
    ("reasoning_text.delta", {**AT, "delta": "Hm"}),
    ("reasoning_text.delta", {**AT, "delta": "."}),
    ("reasoning_text.done", {**AT, "text": "Hm."}),
    ("content_part.done", {**AT, "part": WHOLE}),
    ended(0, DONE[0]),
    added(1, message(1, "in_progress")),
    ("content_part.added", {**WORDS, "part": text_part("")}),
    ("output_text.delta", {**WORDS, "delta": "Lo", "logprobs": []}),
    ("output_text.delta", {**WORDS, "delta": "ok", "logprobs": []}),
    ("output_text.done", {**WORDS, "text": "Look", "logprobs": []}),
    ("content_part.done", {**WORDS, "part": text_part("Look")}),
    ended(1, DONE[1]),
    added(2, call(2, "in_progress", "f", "", "call_ab02")),
    ("function_call_arguments.delta", {**FIRST, "delta": "{}"}),
    ("function_call_arguments.done", {**FIRST, "arguments": "{}"}),
    ended(2, DONE[2]),
    added(3, call(3, "in_progress", "g", "", "own")),
    ("function_call_arguments.delta", {**SECOND, "delta": "{"}),
    ("function_call_arguments.done", {**SECOND, "arguments": "{"}),
    ended(3, DONE[3]),
    ("incomplete", {"response": response("incomplete", DONE)}),
]


def test_the_events_of_a_response_build_its_items():
    assert numbered(built(responses(), "length", None)) == BUILT


def test_the_events_of_a_summary_are_its_own():
    answer = responses(True)
    data = answer.part(0, Part("reasoning", "Hm.")) + answer.ending(0, "stop", None)
    at = {"item_id": "rs_ab00", "output_index": 0, "summary_index": 0}
    empty, whole = ({"type": "summary_text", "text": text} for text in ("", "Hm."))
    begun = {"type": "reasoning", "id": "rs_ab00", "summary": [], "status": "in_progress"}
    item = thought("completed", ["Hm."], "summary")
    assert numbered(data) == [
        added(0, begun),
        ("reasoning_summary_part.added", {**at, "part": empty}),
        ("reasoning_summary_text.delta", {**at, "delta": "Hm."}),
        ("reasoning_summary_text.done", {**at, "text": "Hm."}),
        ("reasoning_summary_part.done", {**at, "part": whole}),
        ended(0, item),
    ]
    assert numbered(responses().closing(USAGE)) == [
        ("completed", {"response": response("completed", [])})
    ]


def test_a_stream_of_nothing_has_one_empty_message():
    names = [name for name, _ in numbered(responses().ending(0, "stop", None))]
    assert names == [
        *("output_item.added", "content_part.added", "output_text.done", "content_part.done"),
        "output_item.done",
    ]
    answer = responses()
    answer.part(0, Part("call", "f", 0))
    answer.part(0, Part("called", "", 0))
    assert answer.ending(0, "stop", None) == b""


def test_an_error_of_a_response_is_in_its_events():
    error = DeviceError("lost")
    told = {"code": error.code or error.type, "message": "lost"}
    assert numbered(responses().failing(error)) == [
        ("failed", {"response": response("failed", [], None, told)})
    ]
    assert events(responses_answers.error_events(ERROR)) == [
        (
            "error",
            {
                **{"type": "error", "sequence_number": 0, "param": "top_k"},
                **{"code": ERROR.code or ERROR.type, "message": "top_k is bad"},
            },
        )
    ]


MESSAGES_USAGE = {
    "input_tokens": 7,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 3,
    "output_tokens": 5,
}


def whole_message(content, stop_reason=None, stop_sequence=None):
    return {
        **{"id": "msg_ab", "type": "message", "role": "assistant", "model": "m"},
        **{"content": content, "stop_reason": stop_reason, "stop_sequence": stop_sequence},
        "usage": MESSAGES_USAGE,
    }


def test_a_whole_message_is_its_blocks():
    calls = [ToolCall("f", None, '{"a": 1}', True), ToolCall("g", "own", "[1]", True)]
    choice = Choice(0, "Look", "tool_calls", (), "Hm.", [*calls, ToolCall("h", None, "{", True)])
    content = [
        {"type": "thinking", "thinking": "Hm.", "signature": "unsigned"},
        {"type": "text", "text": "Look"},
        {"type": "tool_use", "id": "toolu_ab00", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "own", "name": "g", "input": {"INVALID_JSON": "[1]"}},
        {"type": "tool_use", "id": "toolu_ab02", "name": "h", "input": {"INVALID_JSON": "{"}},
    ]
    body = MessagesAnswer("ab", "m").body([choice], USAGE)
    assert body == whole_message(content, "tool_use")
    empty = MessagesAnswer("ab", "m").body([Choice(0, "", "length")], USAGE)
    assert empty == whole_message([], "max_tokens")
    stopped = Choice(0, "", "stop", stop_string="\n")
    body = MessagesAnswer("ab", "m").body([stopped], USAGE)
    assert body == whole_message([], "stop_sequence", "\n")


def block(index, start, *deltas):
    yield "content_block_start", {"index": index, "content_block": start}
    for delta in deltas:
        yield "content_block_delta", {"index": index, "delta": delta}
    yield "content_block_stop", {"index": index}


def test_the_events_of_a_message_build_its_blocks():
    found = events(built(MessagesAnswer("ab", "m"), "stop", "x"))
    assert all(fields.pop("type") == name for name, fields in found)
    tool = {"type": "tool_use", "input": {}}
    delta = {"stop_reason": "stop_sequence", "stop_sequence": "x"}
    assert found == [
        ("message_start", {"message": whole_message([])}),
        *block(
            *(0, {"type": "thinking", "thinking": "", "signature": ""}),
            *({"type": "thinking_delta", "thinking": text} for text in ("Hm", ".")),
            {"type": "signature_delta", "signature": "unsigned"},
        ),
        *block(
            *(1, {"type": "text", "text": ""}),
            *({"type": "text_delta", "text": text} for text in ("Lo", "ok")),
        ),
        *block(
            *(2, {**tool, "id": "toolu_ab00", "name": "f"}),
            {"type": "input_json_delta", "partial_json": "{}"},
        ),
        *block(
            *(3, {**tool, "id": "own", "name": "g"}),
            {"type": "input_json_delta", "partial_json": "{"},
        ),
        ("message_delta", {"delta": delta, "usage": MESSAGES_USAGE}),
        ("message_stop", {}),
    ]


@pytest.mark.parametrize(
    ("finish_reason", "told"),
    [("stop", "end_turn"), ("length", "max_tokens"), ("tool_calls", "tool_use")],
)
def test_a_message_ends_for_a_reason_of_this_api(finish_reason, told):
    answer = MessagesAnswer("ab", "m")
    assert answer.ending(0, finish_reason, None) == b""
    delta = events(answer.closing(USAGE))[0][1]["delta"]
    assert delta == {"stop_reason": told, "stop_sequence": None}


class Told(RequestError):
    def __init__(self, status):
        super().__init__("why")
        self.status = status


@pytest.mark.parametrize(
    ("status", "answered", "kind"),
    [
        (400, 400, "invalid_request_error"),
        (401, 401, "authentication_error"),
        (403, 403, "permission_error"),
        (404, 404, "not_found_error"),
        (405, 405, "invalid_request_error"),
        (413, 413, "request_too_large"),
        (422, 400, "invalid_request_error"),
        (429, 429, "rate_limit_error"),
        (500, 500, "api_error"),
        (503, 529, "overloaded_error"),
        (504, 504, "api_error"),
    ],
)
def test_an_error_has_this_apis_status_and_type(status, answered, kind):
    error = Told(status)
    assert messages_answers.error_status(error) == answered
    body = {"type": "error", "error": {"type": kind, "message": "why"}}
    assert messages_answers.error_body(error) == body
    assert events(messages_answers.error_events(error)) == [("error", body)]


def test_a_conversation_that_is_too_long_is_told_in_the_words_that_clients_know():
    error = ContextLengthError("too long", 200, 99)
    told = messages_answers.error_body(error)["error"]["message"]
    assert told == "prompt is too long: 200 tokens > 99 maximum"
    assert responses_answers._error(UnknownPathError("no")) == {
        "code": UnknownPathError("no").code or UnknownPathError("no").type, "message": "no",
    }  # fmt: skip
