"""What requests of the Responses API become, and each refusal word by word."""

import pytest

from marlin.errors import RequestError
from marlin.server.api.dialect import WHOLE_CONTEXT
from marlin.server.api.responses import RESPONSES
from marlin.server.http.limits import Limits

LIMITS = Limits(num_output_tokens=100)


def responses(limits=LIMITS, ignored=None, **body):
    return RESPONSES.parse({"model": "m", "input": "Hi", **body}, limits, 7, ignored)


def conversation(call):
    (prompt,) = call.prompts
    return prompt.conversation


def user(text="Hi"):
    return {"role": "user", "content": text}


def test_a_response_is_asked_for_with_text_alone():
    call = responses()
    assert conversation(call).messages == [user()]
    assert (call.model, call.stream, call.num_choices, call.stop) == ("m", False, 1, ())
    assert (call.skipped, call.shows_summary, call.sampling.max_tokens) == ((), False, 100)
    assert call.sampling.constraint is None
    assert responses(Limits()).sampling.max_tokens == WHOLE_CONTEXT
    assert responses(max_output_tokens=100).sampling.max_tokens == 100
    assert responses(stream=True).stream is True
    assert responses(reasoning={"summary": "auto"}).shows_summary is True
    assert responses(reasoning={"effort": "low"}).shows_summary is False


def test_a_response_repeats_what_was_asked_of_it():
    echoed = dict(responses().echoed)
    assert echoed == {
        **{"instructions": None, "metadata": {}, "tools": [], "tool_choice": "auto"},
        **{"parallel_tool_calls": True, "temperature": 0.7, "top_p": 0.9, "store": False},
        **{"max_output_tokens": None, "previous_response_id": None, "truncation": "disabled"},
        **{"reasoning": {"effort": None, "summary": None}, "text": {"format": {"type": "text"}}},
    }
    tool = {"type": "function", "name": "f"}
    given = {
        **{"instructions": "Be brief.", "metadata": {"a": "b"}, "tools": [tool]},
        **{"tool_choice": "required", "parallel_tool_calls": False, "temperature": 0.0},
        **{"top_p": 0.5, "max_output_tokens": 9, "reasoning": {"effort": "low", "summary": "x"}},
        **{"text": {"format": {"type": "text"}, "verbosity": "low"}},
    }
    echoed = dict(responses(store=True, truncation="auto", **given).echoed)
    rest = {"store": False, "truncation": "disabled", "previous_response_id": None}
    assert echoed == {**given, **rest}
    call = responses()
    answer = call.answer(None, "name", "ab", 7)
    assert answer.id == "resp_ab" and answer._head["model"] == "name"
    assert {**answer._head}.items() >= {"object": "response", "created_at": 7}.items()


def item(kind, **fields):
    return {"type": kind, **fields}


def called(id, name="f", arguments=None):
    function = {"name": name, "arguments": {} if arguments is None else arguments}
    return {"id": id, "type": "function", "function": function}


ITEMS = [
    {"role": "developer", "content": [item("input_text", text="A"), item("text", text="B")]},
    item("message", role="user", content=[item("input_text", text="Hi")]),
    item("reasoning", summary=[item("summary_text", text="S")]),
    item("reasoning", content=[item("reasoning_text", text="C")], summary=[]),
    item("reasoning", content=None, summary=None),
    item("function_call", call_id="a", name="f", arguments='{"x": 1}'),
    item("function_call", call_id="b", name="g"),
    item("function_call_output", call_id="b", output="B"),
    item("function_call_output", call_id="a", output=[item("output_text", text="A")]),
    {"role": "assistant", "content": [item("refusal", refusal="No.")]},
    item("function_call", call_id="c", name="h", arguments="{}"),
    item("reasoning", summary=[item("summary_text", text="T")]),
    item("function_call", call_id="d", name="h", arguments="{}"),
    user("End"),
]


def test_items_become_messages_of_chat():
    call = responses(input=ITEMS, instructions="Help.")
    assert conversation(call).messages == [
        {"role": "system", "content": "Help."},
        {"role": "system", "content": "A\nB"},
        user(),
        {
            **{"role": "assistant", "content": "", "reasoning_content": "S\nC"},
            "tool_calls": [called("a", "f", {"x": 1}), called("b", "g")],
        },
        {"role": "tool", "content": "B", "tool_call_id": "b", "name": "g"},
        {"role": "tool", "content": "A", "tool_call_id": "a", "name": "f"},
        {"role": "assistant", "content": "No.", "tool_calls": [called("c", "h")]},
        {
            **{"role": "assistant", "content": "", "reasoning_content": "T"},
            "tool_calls": [called("d", "h")],
        },
        user("End"),
    ]


def test_a_thought_belongs_to_the_answer_after_it():
    thought = item("reasoning", content=[item("reasoning_text", text="C")])
    said = conversation(responses(input=[user(), thought, {"role": "assistant", "content": "A"}]))
    assert said.messages[1] == {"role": "assistant", "content": "A", "reasoning_content": "C"}
    said = conversation(responses(input=[thought, user(), {"role": "assistant", "content": "A"}]))
    assert said.messages[0] == user() and said.messages[1]["reasoning_content"] == "C"


def test_what_another_service_keeps_or_runs_is_left_out_and_told():
    items = [
        item("web_search_call"), item("item_reference", id="rs_1"), {"type": 5}, user(),
    ]  # fmt: skip
    tools = [{"type": "web_search"}, {"type": "function", "name": "f"}, {}]
    call = responses(input=items, tools=tools)
    assert call.skipped == (
        *('input[0] "web_search_call"', 'input[1] "item_reference"', "input[2] 5"),
        *('tools[0] "web_search"', "tools[2] null"),
    )
    assert [tool["function"]["name"] for tool in conversation(call).tools] == ["f"]


F, G = {"type": "function", "name": "f"}, {"type": "function", "name": "g"}


@pytest.mark.parametrize(
    ("choice", "names", "must_call"),
    [
        (None, ["f", "g"], ()),
        ("auto", ["f", "g"], ()),
        ("none", [], ()),
        ("required", ["f", "g"], ("f", "g")),
        (F, ["f", "g"], ("f",)),
        ({"type": "allowed_tools", "mode": "auto", "tools": [G]}, ["g"], ()),
        ({"type": "allowed_tools", "mode": "required", "tools": [G]}, ["g"], ("g",)),
    ],
)
def test_choices_of_tools_are_those_of_chat(choice, names, must_call):
    said = conversation(responses(tools=[F, G], tool_choice=choice))
    assert [tool["function"]["name"] for tool in said.tools] == names
    assert tuple(said.must_call) == must_call
    assert said.max_calls == (1 if choice == F else None)
    one = conversation(responses(tools=[F], parallel_tool_calls=False))
    assert one.max_calls == 1


def test_a_response_may_be_held_to_a_format():
    flat = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    constraint = responses(text={"format": flat}).sampling.constraint
    assert constraint is not None and constraint.place == "text.format.schema"
    assert responses(text={"format": {"type": "text"}}).sampling.constraint is None


REFUSED_RESPONSES = [
    ({"input": None}, "input", "input must not be null"),
    ({"input": []}, "input", "input must be text or an array of items, got an array"),
    ({"input": 5}, "input", "input must be text or an array of items, got an integer"),
    ({"input": [5]}, "input[0]", "input[0] must be an object, got an integer"),
    ({"input": [{"type": "web_search_call"}]}, "input", "input has no messages"),
    ({"input": [{"role": 5, "content": ""}]}, "input[0].role",
     "input[0].role must be a string, got an integer"),
    ({"input": [{"role": "user"}]}, "input[0].content",
     "input[0].content must be a string, got null"),
    ({"input": [{"role": "user", "content": [5]}]}, "input[0].content[0]",
     "input[0].content[0] must be an object, got an integer"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
     "input[0].content[0].type",
     'input[0].content[0].type must be input_text, got "input_image"'),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
     "input[0].content[0].text", "input[0].content[0].text must be a string, got null"),
    ({"input": [{"role": "assistant", "content": [{"type": "refusal", "text": "a"}]}]},
     "input[0].content[0].refusal",
     "input[0].content[0].refusal must be a string, got null"),
    ({"input": [{"type": "function_call", "call_id": "a"}]}, "input[0].name",
     "input[0].name must be a string, got null"),
    ({"input": [{"type": "function_call", "name": "a"}]}, "input[0].call_id",
     "input[0].call_id must be a string, got null"),
    ({"input": [{"type": "function_call_output", "call_id": "a"}]}, "input[0].output",
     "input[0].output must be a string, got null"),
    ({"input": [{"type": "function_call_output", "output": "a"}]}, "input[0].call_id",
     "input[0].call_id must be a string, got null"),
    ({"input": [{"type": "reasoning", "content": 5}]}, "input[0].content",
     "input[0].content must be a string, got an integer"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type",
     "input[0].type is item_reference, but this server keeps no items; send store: false"),
    ({"instructions": 5}, "instructions", "instructions must be a string, got an integer"),
    ({"tools": [5]}, "tools[0]", "tools[0] must be an object, got an integer"),
    ({"max_output_tokens": 101}, "max_output_tokens", None),
    ({"max_output_tokens": 0}, "max_output_tokens", None),
    ({"reasoning": 5}, "reasoning", None),
    ({"stream": 5}, "stream", None),
    ({"parallel_tool_calls": 5}, "parallel_tool_calls", None),
    ({"tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "tool_choice.tools", None),
    ({"tool_choice": {"type": "other"}}, "tool_choice", None),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "param", "message"), REFUSED_RESPONSES)
def test_a_response_that_cannot_be_given_is_refused_by_name(changes, param, message):
    with pytest.raises(RequestError) as caught:
        responses(**changes)
    assert caught.value.param == param
    assert caught.value.message.startswith(message or param)


TAKEN_RESPONSES = {
    **{"user": "a", "store": True, "include": [], "truncation": "auto", "service_tier": "a"},
    **{"prompt_cache_key": "a", "prompt_cache_retention": "a", "safety_identifier": "a"},
    **{"client_metadata": {}, "stream_options": {}, "background": False, "top_logprobs": 0},
    **{"previous_response_id": None, "conversation": None, "prompt": None, "metadata": {}},
    **{"max_tool_calls": None, "temperature": 1.0, "top_p": 1.0, "top_k": 5, "min_p": 0.1},
    **{"repetition_penalty": 1.1, "seed": 5, "chat_template_kwargs": {}},
}
NOT_DONE = ["previous_response_id", "conversation", "prompt", "max_tool_calls"]


@pytest.mark.parametrize("name", TAKEN_RESPONSES)
def test_a_parameter_of_responses_that_changes_nothing_or_is_served_is_taken(name):
    ignored = []
    responses(ignored=ignored, **{name: TAKEN_RESPONSES[name]})
    assert ignored == []


@pytest.mark.parametrize("name", [*NOT_DONE, "background", "top_logprobs", "unknown"])
def test_a_parameter_of_responses_that_asks_for_more_is_refused(name):
    with pytest.raises(RequestError) as caught:
        responses(**{name: 5})
    assert caught.value.param == name
