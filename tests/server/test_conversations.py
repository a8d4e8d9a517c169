"""What the model is given of a conversation, over HTTP: continued answers, switches, histories."""

import pytest
from clients import MODEL, chat_body
from fakes import ByteTokenizer, FakeEngine, say

QUESTION = {"role": "user", "content": "Hi"}
BEGUN = {"role": "assistant", "content": "The capital is"}


class SpacedTokenizer(ByteTokenizer):
    """As SentencePiece's: a text of its own loses the blank before its first word."""

    strips_leading_space = True


class SwitchedTokenizer(ByteTokenizer):
    chat_template = (
        "{% if enable_thinking is defined and not enable_thinking %}/no_think {% endif %}"
        "effort={{ reasoning_effort | default('none given') }} {{ messages[-1].content }}"
    )


def ask(server, *messages, **changes):
    """The answer's text to a conversation, and the prompt that was made of it."""
    with server.connect() as client:
        body = chat_body(messages=list(messages), **changes)
        answer = client.ask("POST", "/v1/chat/completions", body).json()
    prompt = bytes(server.engine.requests[-1].prompt_token_ids).decode()
    return answer["choices"][0]["message"]["content"], prompt


def test_a_last_answer_is_continued_with_the_blank_before_the_next_word(start_server):
    server = start_server(FakeEngine(say(b" Paris.")), SpacedTokenizer())
    text, prompt = ask(server, QUESTION, BEGUN)
    assert (text, prompt) == (" Paris.", "user: Hi\nassistant: The capital is")
    text, prompt = ask(server, QUESTION, BEGUN, continue_final_message=False)
    expected = "user: Hi\nassistant: The capital is\nassistant:"
    assert (text, prompt) == ("Paris.", expected)


def test_the_official_client_streams_a_continuation(start_server, sdk):
    server = start_server(FakeEngine(say(b" Par", b"is.")), SpacedTokenizer())
    asked = {"model": MODEL, "messages": [QUESTION, BEGUN], "stream": True}
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    chunks = list(sdk(server).chat.completions.create(**asked, extra_body=extra))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == " Paris."


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, "effort=none given Hi"),
        ({"reasoning_effort": "high"}, "effort=high Hi"),
        ({"reasoning_effort": "none"}, "/no_think effort=none Hi"),
        ({"reasoning": {"effort": "low"}}, "effort=low Hi"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "/no_think effort=none given Hi"),
    ],
)
def test_switches_reach_a_template_that_knows_them(start_server, asked, expected):
    server = start_server(tokenizer=SwitchedTokenizer())
    assert ask(server, QUESTION, **asked)[1] == expected


def test_a_history_as_clients_keep_it_reaches_the_model(server):
    history = [
        {"role": "system", "content": "A"},
        {"role": "developer", "content": "B"},
        QUESTION,
        {"role": "assistant", "id": "msg_1", "refusal": None, "reasoning_details": []},
        {"role": "user", "content": [{"type": "text", "text": "Ho", "cache_control": {}}]},
    ]
    expected = "system: A\nsystem: B\nuser: Hi\nassistant: \nuser: Ho\nassistant:"
    assert ask(server, *history)[1] == expected
