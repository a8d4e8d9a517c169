"""Messages of a chat request: what is taken, what is refused, and what the template is given."""

import pytest

from marlin.errors import RequestError
from marlin.server.api import names
from marlin.server.api.openai_messages import parse_messages as parse_checked


def parse_messages(messages):
    """As parse_chat() does it: names first, then values."""
    names.CHAT.check({"messages": messages})
    return parse_checked(messages)


ANSWER = {"role": "assistant", "content": "Hi"}


def user(**changes):
    return [{"role": "user", "content": "Hi", **changes}]


def assistant(**changes):
    return [{**ANSWER, **changes}]


def part(value):
    return user(content=[{"type": "text", "text": "a"}, value])


REFUSED = [
    ("Hi", "messages"),
    ([], "messages"),
    (["Hi"], "messages[0]"),
    ([{"content": "Hi"}], "messages[0].role"),
    (user(role="king"), "messages[0].role"),
    (user(role=["user"]), "messages[0].role"),
    (user(role="tool"), "messages[0].tool_call_id"),
    (user(role="tool", tool_call_id=5), "messages[0].tool_call_id"),
    (user(function_call={"name": "f"}), "messages[0].function_call"),
    ([{"role": "user"}], "messages[0].content"),
    (user(content=None), "messages[0].content"),
    (user(content=5), "messages[0].content"),
    (user(content=[]), "messages[0].content"),
    (user(content="\udc00"), "messages[0].content"),
    (part("b"), "messages[0].content[1]"),
    (part({"type": "image_url"}), "messages[0].content[1].type"),
    (part({"text": "b"}), "messages[0].content[1].type"),
    (part({"type": "text"}), "messages[0].content[1].text"),
    (part({"type": "text", "text": "b", "image_url": {}}), "messages[0].content[1].image_url"),
    (part({"type": "text", "text": "b", "annotations": 1}), "messages[0].content[1].annotations"),
    (user(name=5), "messages[0].name"),
    (user(id=5), "messages[0].id"),
    (user(tool_calls=[{}]), "messages[0].tool_calls"),
    (user(colour="red"), "messages[0].colour"),
    (assistant(content=5), "messages[0].content"),
    (assistant(content=None, tool_calls=[{}]), "messages[0].tool_calls[0].id"),
    ([{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls"),
    ([{"role": "assistant", "tool_calls": [5]}], "messages[0].tool_calls[0]"),
    (user(tool_call_id="call_1"), "messages[0].tool_call_id"),
    (assistant(reasoning={}), "messages[0].reasoning"),
    (assistant(refusal=5), "messages[0].refusal"),
]


@pytest.mark.parametrize(("messages", "param"), REFUSED)
def test_a_bad_field_is_refused_by_its_name(messages, param):
    with pytest.raises(RequestError) as caught:
        parse_messages(messages)
    assert caught.value.param == param
    assert caught.value.message.startswith(param)


@pytest.mark.parametrize(
    ("messages", "hint"),
    [
        (user(contents="Hi"), "did you mean content?"),
        (part({"type": "text", "text": "a", "cachecontrol": {}}), "did you mean cache_control?"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest(messages, hint):
    with pytest.raises(RequestError) as caught:
        parse_messages(messages)
    assert caught.value.message.endswith(f"; {hint}")


def test_text_parts_are_joined_by_line_ends_and_developer_is_system():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    given = [{"role": "developer", "content": parts}]
    assert parse_messages(given) == [{"role": "system", "content": "a\nb"}]


@pytest.mark.parametrize(
    "extras",
    [
        {"refusal": None, "tool_calls": [], "audio": None, "annotations": []},
        {"id": "msg_1", "reasoning_details": [{"type": "reasoning.text"}], "refusal": "no"},
        {"annotations": [{"type": "url_citation"}], "cache_control": {"type": "ephemeral"}},
    ],
)
def test_an_answer_can_be_sent_back_as_history(extras):
    assert parse_messages(assistant(**extras)) == [ANSWER]


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": []}])
def test_an_answer_without_content_is_an_empty_text_or_its_refusal(content):
    given = {"role": "assistant", **content}
    assert parse_messages([given]) == [{"role": "assistant", "content": ""}]
    given = {**given, "refusal": "I cannot."}
    assert parse_messages([given]) == [{"role": "assistant", "content": "I cannot."}]


def test_name_and_reasoning_reach_the_template():
    given = user(name="Ann", reasoning_content="hm")
    assert parse_messages(given) == given


def test_reasoning_is_another_name_of_reasoning_content():
    expected = assistant(reasoning_content="hm")
    assert parse_messages(assistant(reasoning="hm")) == expected
    assert parse_messages(assistant(reasoning="no", reasoning_content="hm")) == expected


def test_what_a_part_says_of_caches_and_sources_is_not_text():
    given = part({"type": "text", "text": "b", "cache_control": {}, "annotations": []})
    assert parse_messages(given) == user(content="a\nb")
