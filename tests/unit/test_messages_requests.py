"""What requests of the Messages API become, and each refusal word by word."""

import pytest

from marlin.errors import RequestError
from marlin.server.api.dialect import WHOLE_CONTEXT
from marlin.server.api.messages import COUNT_TOKENS, MESSAGES
from marlin.server.http.limits import Limits
from marlin.text.grammar.constraint import JsonSchema

ANY_OBJECT = {"type": "json_object"}
LIMITS = Limits(num_output_tokens=100)


def messages(dialect=MESSAGES, limits=LIMITS, ignored=None, **body):
    given = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]}
    return dialect.parse({**given, **body}, limits, 7, ignored)


def conversation(call):
    (prompt,) = call.prompts
    return prompt.conversation


def user(text="Hi"):
    return {"role": "user", "content": text}


def called(id, name="f", arguments=None):
    function = {"name": name, "arguments": {} if arguments is None else arguments}
    return {"id": id, "type": "function", "function": function}


def test_a_message_is_asked_for_with_a_limit_and_counted_without():
    call = messages()
    assert conversation(call).messages == [user()]
    assert (call.model, call.stream, call.num_choices, call.stop) == ("m", False, 1, ())
    assert call.sampling.max_tokens == 50
    assert messages(COUNT_TOKENS, max_tokens=None).sampling.max_tokens == WHOLE_CONTEXT
    assert messages(stream=True, stop_sequences=["a", "b"]).stop == ("a", "b")
    assert call.answer(None, "name", "ab", 7).id == "msg_ab"


def block(kind, **fields):
    return {"type": kind, **fields}


HISTORY = [
    user([block("text", text="A"), block("text", text="B")]),
    {
        "role": "assistant",
        "content": [
            *(block("thinking", thinking=text, signature="s") for text in ("S", "T")),
            block("redacted_thinking", data="x"),
            *(block("text", text=text) for text in ("C", "D")),
            block("tool_use", id="a", name="f", input={"x": 1}),
            block("server_tool_use"),
        ],
    },
    user(
        [
            block("text", text="E"),
            block("tool_result", tool_use_id="a", content=[block("text", text="R")] * 2),
            block("tool_result", tool_use_id="z", content="S"),
            block("tool_result", tool_use_id="a"),
        ]
    ),
    {"role": "system", "content": "Later."},
    {"role": "assistant", "content": "F"},
    user(""),
    user([block("tool_result", tool_use_id="a", content="")]),
]


def test_blocks_become_messages_of_chat():
    call = messages(messages=HISTORY, system="Help.")
    assert call.skipped == ('messages[1].content[6] "server_tool_use"',)
    assert conversation(call).messages == [
        {"role": "system", "content": "Help."},
        user("A\nB"),
        {
            **{"role": "assistant", "content": "C\nD", "reasoning_content": "S\nT"},
            "tool_calls": [called("a", "f", {"x": 1})],
        },
        {"role": "tool", "content": "R\nR", "tool_call_id": "a", "name": "f"},
        {"role": "tool", "content": "S", "tool_call_id": "z"},
        {"role": "tool", "content": "", "tool_call_id": "a", "name": "f"},
        user("E"),
        {"role": "system", "content": "Later."},
        {"role": "assistant", "content": "F"},
        user(""),
        {"role": "tool", "content": "", "tool_call_id": "a", "name": "f"},
    ]


@pytest.mark.parametrize(
    ("system", "told"),
    [
        ("x-anthropic-billing: 1", None),
        ("x-anthropic-billing: 1\nBe brief.", "Be brief."),
        ([block("text", text="x-anthropic-a"), block("text", text="A")], "A"),
        ([block("text", text="A"), block("text", text="B")], "A\nB"),
        ("", None),
        ([], None),
        ("Hi x-anthropic-", "Hi x-anthropic-"),
    ],
)
def test_a_line_for_billing_is_no_part_of_the_prompt(system, told):
    expected = [user()] if told is None else [{"role": "system", "content": told}, user()]
    assert conversation(messages(system=system)).messages == expected


TOOL = {"name": "f", "description": "D", "input_schema": {"type": "object"}}


@pytest.mark.parametrize(
    ("choice", "names", "must_call", "max_calls"),
    [
        (None, ["f"], (), None),
        ({"type": "auto"}, ["f"], (), None),
        ({"type": "auto", "disable_parallel_tool_use": True}, ["f"], (), 1),
        ({"type": "any"}, ["f"], ("f",), None),
        ({"type": "none"}, [], (), None),
        ({"type": "tool", "name": "f"}, ["f"], ("f",), 1),
    ],
)
def test_choices_of_tools_of_messages_are_those_of_chat(choice, names, must_call, max_calls):
    said = conversation(messages(tools=[TOOL, {**TOOL, "type": "custom"}][:1], tool_choice=choice))
    assert [tool["function"]["name"] for tool in said.tools] == names
    assert (tuple(said.must_call), said.max_calls) == (must_call, max_calls)


def test_a_tool_is_a_function_by_its_schema_and_one_of_another_service_is_left_out():
    call = messages(tools=[{**TOOL, "type": "custom"}, {"type": "bash_20250124", "name": "bash"}])
    (tool,) = conversation(call).tools
    assert tool == {
        "type": "function",
        "function": {"name": "f", "description": "D", "parameters": {"type": "object"}},
    }
    assert call.skipped == ('tools[1] "bash_20250124"',)
    assert conversation(messages(tools=[{**TOOL, "strict": True}])).is_strict


@pytest.mark.parametrize(
    ("changes", "variables"),
    [
        ({}, {}),
        ({"thinking": {"type": "enabled"}}, {"enable_thinking": True, "thinking": True}),
        ({"thinking": {"type": "adaptive"}}, {"enable_thinking": True, "thinking": True}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False, "thinking": False}),
        (
            {"output_config": {"effort": "high"}},
            {"reasoning_effort": "high", "thinking_effort": "high", "thinking": True},
        ),
        ({"output_config": {}}, {}),
    ],
)
def test_what_is_asked_of_thoughts_is_told_the_template(changes, variables):
    assert dict(conversation(messages(**changes)).variables) == variables


REFUSED_MESSAGES = [
    ({"messages": None}, "messages", "messages must not be null"),
    ({"messages": []}, "messages", "messages must be an array of messages, got an array"),
    ({"messages": "Hi"}, "messages", "messages must be an array of messages, got a string"),
    ({"messages": [5]}, "messages[0]", "messages[0] must be an object, got an integer"),
    ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role", None),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "messages[0].content is required"),
    ({"messages": [user(5)]}, "messages[0].content",
     "messages[0].content must be text or an array of blocks, got an integer"),
    ({"messages": [user([5])]}, "messages[0].content[0]",
     "messages[0].content[0] must be an object, got an integer"),
    ({"messages": [user([{}])]}, "messages[0].content[0].type", None),
    ({"messages": [user([block("image")])]}, "messages[0].content[0].type",
     'messages[0].content[0].type must be "text", got "image"'),
    ({"messages": [user([block("text")])]}, "messages[0].content[0].text",
     "messages[0].content[0].text must be a string, got null"),
    ({"messages": [user([block("tool_result")])]}, "messages[0].content[0].tool_use_id",
     "messages[0].content[0].tool_use_id must be a string, got null"),
    ({"messages": [user([block("tool_result", tool_use_id="a", content=[block("image")])])]},
     "messages[0].content[0].content[0].type",
     'messages[0].content[0].content[0].type must be "text", got "image"'),
    *(
        ({"messages": [{"role": "assistant", "content": [block("tool_use", **fields)]}]},
         f"messages[0].content[0].{missing}", None)
        for missing, fields in (
            ("name", {"id": "a", "input": {}}),
            ("id", {"name": "f", "input": {}}),
            ("input", {"id": "a", "name": "f"}),
        )
    ),
    ({"messages": [{"role": "assistant", "content": [block("thinking")]}]},
     "messages[0].content[0].thinking",
     "messages[0].content[0].thinking must be a string, got null"),
    ({"system": 5}, "system", "system must be text or an array of blocks, got an integer"),
    ({"system": [block("image")]}, "system[0].type", None),
    ({"max_tokens": None}, "max_tokens", "max_tokens must not be null"),
    ({"max_tokens": 101}, "max_tokens", None),
    ({"tools": [5]}, "tools[0]", "tools[0] must be an object, got an integer"),
    ({"tool_choice": {"type": "maybe"}}, "tool_choice.type", None),
    ({"tool_choice": {"type": "tool", "name": "g"}, "tools": [TOOL]}, "tool_choice", None),
    ({"thinking": {"type": "maybe"}}, "thinking.type", None),
    ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type", None),
    ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "thinking.budget_tokens", None),
    ({"thinking": {"type": "enabled", "budget": 7}}, "thinking.budget", None),
    ({"output_config": {"task_budget": {}}}, "output_config.task_budget", None),
    ({"tool_choice": {"type": "auto", "tools": []}}, "tool_choice.tools", None),
    ({"output_config": {"format": ANY_OBJECT}, "output_format": ANY_OBJECT}, "output_format", None),
    ({"stream": 5}, "stream", None),
    ({"mcp_servers": [{}]}, "mcp_servers", None),
    ({"container": "a"}, "container", None),
    ({"output_format": {"type": "json_schema", "schema": 3}}, "output_format.schema", None),
    ({"unknown": 1}, "unknown", None),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "param", "message"), REFUSED_MESSAGES)
def test_a_message_that_cannot_be_given_is_refused_by_name(changes, param, message):
    with pytest.raises(RequestError) as caught:
        messages(**changes)
    assert caught.value.param == param
    assert caught.value.message.startswith(message or param)


TAKEN_MESSAGES = {
    **{"metadata": {}, "service_tier": "auto", "cache_control": {}, "context_management": {}},
    **{"mcp_servers": [], "container": None, "temperature": 1.0, "top_p": 0.5, "top_k": 5},
}


@pytest.mark.parametrize("name", TAKEN_MESSAGES)
def test_a_parameter_of_messages_that_changes_nothing_or_is_served_is_taken(name):
    ignored = []
    messages(ignored=ignored, **{name: TAKEN_MESSAGES[name]})
    assert ignored == []


def test_a_budget_of_thoughts_is_told_to_be_without_effect():
    call = messages(thinking={"type": "enabled", "budget_tokens": 1024})
    assert (call.skipped, call.sampling.thought_tokens) == ((), 1024)
    assert messages(thinking={"type": "adaptive"}).sampling.thought_tokens is None


@pytest.mark.parametrize("beside", [{"output_config": "format"}, {"output_format": None}])
def test_what_the_answer_must_be_stands_in_either_place(beside):
    [(place, inner)] = beside.items()
    asked = {"type": "json_schema", "schema": {"type": "integer"}}
    constraint = messages(**{place: {inner: asked} if inner else asked}).sampling.constraint
    assert constraint.part == JsonSchema({"type": "integer"})
    assert constraint.place == f"{place}{'.' + inner if inner else ''}.schema"
