"""What a chat request tells the template: its variables, and whether an answer is continued."""

import pytest

from marlin.errors import RequestError
from marlin.server.api.openai_requests import parse_chat
from marlin.server.http.limits import Limits

QUESTION = {"role": "user", "content": "Hi"}
BEGUN = {"role": "assistant", "content": "It is"}


def conversation(*messages, **changes):
    body = {"model": "m", "messages": list(messages or [QUESTION]), **changes}
    (prompt,) = parse_chat(body, Limits(), 512).prompts
    return prompt.conversation


def effort(name, thinking=True):
    return {"reasoning_effort": name, "thinking_effort": name, "thinking": thinking}


NO_THOUGHT = {**effort("none", False), "enable_thinking": False}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, {}),
        ({"reasoning_effort": "low"}, effort("low")),
        ({"reasoning_effort": "xhigh"}, effort("xhigh")),
        ({"reasoning_effort": ""}, {}),
        ({"reasoning_effort": "none"}, NO_THOUGHT),
        ({"reasoning_effort": "minimal"}, {**NO_THOUGHT, **effort("minimal", False)}),
        ({"reasoning": {}}, {}),
        ({"reasoning": {"effort": "high", "summary": "auto"}}, effort("high")),
        (
            {"reasoning": {"enabled": False, "exclude": True}},
            NO_THOUGHT,
        ),
        (
            {"reasoning": {"effort": "low"}, "reasoning_effort": "high"},
            effort("high"),
        ),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        (
            {"chat_template_kwargs": {"a": None, "b": 1.5, "c": -7, "now": "x", "template": "y"}},
            {"a": None, "b": 1.5, "c": -7, "now": "x", "template": "y"},
        ),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            {**NO_THOUGHT, "enable_thinking": True},
        ),
    ],
)
def test_efforts_and_arguments_become_variables(asked, expected):
    assert conversation(**asked).variables == expected


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"reasoning_effort": 3}, "reasoning_effort"),
        ({"reasoning_effort": "x" * 1025}, "reasoning_effort"),
        ({"reasoning": "high"}, "reasoning"),
        ({"reasoning": {"effort": 1}}, "reasoning.effort"),
        ({"reasoning": {"max_tokens": "100"}}, "reasoning.max_tokens"),
        ({"reasoning": {"efort": "low"}}, "reasoning.efort"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {str(n): n for n in range(33)}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"tools": None}}, "chat_template_kwargs.tools"),
        ({"chat_template_kwargs": {"raise_exception": 1}}, "chat_template_kwargs.raise_exception"),
        ({"chat_template_kwargs": {"a": []}}, "chat_template_kwargs.a"),
        ({"chat_template_kwargs": {"a": {}}}, "chat_template_kwargs.a"),
        ({"chat_template_kwargs": {"a": "x" * 1025}}, "chat_template_kwargs.a"),
        ({"chat_template_kwargs": {"a": "\ud800"}}, "chat_template_kwargs.a"),
        ({"chat_template_kwargs": {"a": 2**63}}, "chat_template_kwargs.a"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"continue_final_message": "yes"}, "continue_final_message"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
    ],
)
def test_what_no_template_should_be_given_is_refused(asked, param):
    with pytest.raises(RequestError) as caught:
        conversation(**asked)
    assert caught.value.param == param


def test_a_last_answer_is_continued_unless_a_new_one_is_asked_for():
    assert not conversation(QUESTION).continues
    assert conversation(QUESTION, BEGUN).continues
    assert conversation(QUESTION, BEGUN, continue_final_message=True).continues
    assert not conversation(QUESTION, BEGUN, continue_final_message=False).continues
    assert not conversation(QUESTION, BEGUN, add_generation_prompt=True).continues
    assert not conversation(QUESTION, BEGUN, QUESTION).continues


@pytest.mark.parametrize("both", [True, False])
def test_an_answer_is_either_continued_or_followed_by_a_new_one(both):
    with pytest.raises(RequestError, match="add_generation_prompt must be"):
        conversation(QUESTION, BEGUN, continue_final_message=both, add_generation_prompt=both)
