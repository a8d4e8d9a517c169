"""Tools and thoughts in chat: a model that says what a script says, by its published template."""

import pytest
from clients import chat_body, completion_body
from fakes import FakeEngine, say
from scripted import ARGUMENTS, CALL, SCHEMA, Qwen, prompt_of, saying

CHAT = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": SCHEMA,
    },
}


class Marked(Qwen):
    """The tags of calls are special tokens, 257 and 259; so is 258, which is no mark."""

    vocab_size = 260
    special = {257: b"<tool_call>", 258: b"<|box|>", 259: b"</tool_call>"}

    def encode(self, text, *, add_special_tokens=True):
        token_ids, data = [], text.encode()
        while data:
            found = [id for id, mark in self.special.items() if data.startswith(mark)]
            token_ids += found or [data[0]]
            data = data[len(self.special[found[0]]) if found else 1 :]
        return token_ids

    def token_bytes(self, token_id):
        return self.special.get(token_id) or super().token_bytes(token_id)

    def is_special(self, token_id):
        return token_id >= 256


def ask(server, **changes):
    with server.connect() as client:
        return client.ask("POST", CHAT, chat_body(tools=[WEATHER], **changes))


@pytest.fixture
def start(start_server):
    """start(text) -> a server whose model says the text, a token at a time."""
    return lambda text: start_server(*saying(text))


def test_a_call_is_told_whole_with_its_name_and_arguments(start):
    answer = ask(start("<think>\nHm.\n</think>\n\nLooking.\n" + CALL)).json()["choices"][0]
    message = answer["message"]
    (call,) = message.pop("tool_calls")
    assert message == {
        "role": "assistant",
        "content": "Looking.",
        "reasoning_content": "Hm.",
        "reasoning": "Hm.",
    }
    assert call.pop("id").startswith("call_")
    assert call == {"type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
    assert answer["finish_reason"] == "tool_calls"


def test_an_answer_that_is_all_calls_has_no_content(start):
    server = start(CALL + "\n" + CALL)
    choice = ask(server).json()["choices"][0]
    assert choice["message"]["content"] is None
    first, second = choice["message"]["tool_calls"]
    assert first["id"] != second["id"]
    (call,) = ask(server, parallel_tool_calls=False).json()["choices"][0]["message"]["tool_calls"]
    assert call["function"]["arguments"] == ARGUMENTS


def test_a_stream_names_a_call_once_and_then_gives_its_arguments(start):
    events = ask(start("Looking.\n" + CALL), stream=True).events()
    assert events.pop() == "[DONE]"
    choices = [event["choices"][0] for event in events]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    texts = [choice["delta"]["content"] for choice in choices[1:] if "content" in choice["delta"]]
    assert "".join(texts) == "Looking."
    pieces = [c["delta"]["tool_calls"][0] for c in choices if "tool_calls" in c["delta"]]
    assert all(piece["index"] == 0 for piece in pieces)
    assert pieces[0]["function"] == {"name": "weather", "arguments": ""}
    assert [set(piece) for piece in pieces[1:]] == [{"index", "function"}] * (len(pieces) - 1)
    assert "".join(piece["function"]["arguments"] for piece in pieces) == ARGUMENTS
    assert (choices[-1]["delta"], choices[-1]["finish_reason"]) == ({}, "tool_calls")


def test_a_call_that_max_tokens_cuts_is_none(start):
    server = start(CALL)
    choice = ask(server, max_tokens=len(CALL) - 20).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"] == {"role": "assistant", "content": ""}
    last = ask(server, max_tokens=len(CALL) - 20, stream=True).events()[-2]
    assert last["choices"][0]["finish_reason"] == "length"


def test_special_tokens_that_mark_calls_are_read_and_not_shown(start_server):
    tokenizer = Marked()
    call = [*tokenizer.encode(CALL), 258, *b"Done"]
    server = start_server(FakeEngine(say(call)), tokenizer)
    server.engine.vocab_size = tokenizer.vocab_size
    message = ask(server).json()["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["arguments"] == ARGUMENTS
    assert message["content"] == "Done"


def test_tokens_of_thoughts_are_counted(start):
    usage = ask(start("<think>abc</think>Hi")).json()["usage"]
    # The mark that ends a thought is its last token; a token here is a byte.
    assert usage["completion_tokens_details"] == {"reasoning_tokens": len("abc</think>")}
    assert usage["completion_tokens"] == len("<think>abc</think>Hi")


def test_with_tools_an_answer_may_fill_the_context(start):
    server = start("Hi")
    ask(server)
    assert server.engine.requests[-1].params.max_tokens == server.engine.max_context_tokens
    ask(server, max_tokens=7)
    assert server.engine.requests[-1].params.max_tokens == 7
    ask(server, tool_choice="none")
    assert server.engine.requests[-1].params.max_tokens == 512


@pytest.fixture
def constraints(monkeypatch):
    """Places of the constraints that engines were given, which scripted ones then do not keep."""
    given = []

    def guide_of(_engine, params):
        given.append(params.constraint and params.constraint.place)

    monkeypatch.setattr(FakeEngine, "guide_of", guide_of)
    return given


NAMED = {"type": "function", "function": {"name": "weather"}}
ALLOWED = {"mode": "required", "tools": [NAMED]}


@pytest.mark.parametrize(
    ("choice", "num_calls"),
    [
        ("required", 2),
        (NAMED, 1),
        ({"type": "allowed_tools", "allowed_tools": ALLOWED}, 2),
        ("auto", 2),
    ],
)
def test_a_call_that_must_come_is_a_constraint_of_the_answer(start, constraints, choice, num_calls):
    message = ask(start(CALL + CALL), tool_choice=choice).json()["choices"][0]["message"]
    assert len(message["tool_calls"]) == num_calls
    assert set(constraints) == {None if choice == "auto" else "tools"}


def test_a_strict_tool_is_a_constraint_and_nothing_that_the_template_hears(start, constraints):
    server = start("Hi")
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    with server.connect() as client:
        body = chat_body(tools=[strict])
        assert client.ask("POST", CHAT, body).status == 200
        assert client.ask("POST", CHAT, {**body, "tool_choice": "none"}).status == 200
    assert constraints[0] == "tools" and constraints[-1] is None
    assert "strict" not in prompt_of(server)


def test_a_schema_that_cannot_be_kept_to_is_refused_before_an_answer(start, constraints):
    odd = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)b"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": odd}}
    with start("Hi").connect() as client:
        answer = client.ask("POST", CHAT, chat_body(tools=[tool], tool_choice="required"))
    assert answer.status == 422 and answer.error["param"].startswith("tools")


def test_the_template_is_given_the_tools_that_may_be_called(start):
    server = start("Hi")
    other = {"type": "function", "function": {"name": "other"}}
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "other"}}]}
    choices = ["auto", {"type": "allowed_tools", "allowed_tools": allowed}, "none"]
    for choice, shown in zip(choices, (["weather", "other"], ["other"], []), strict=True):
        with server.connect() as client:
            body = chat_body(tools=[WEATHER, other], tool_choice=choice)
            assert client.ask("POST", CHAT, body).status == 200
        names = [name for name in ("weather", "other") if f'"name": "{name}"' in prompt_of(server)]
        assert names == shown


def test_the_results_of_calls_reach_the_template(start):
    server = start("Warm.")
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
    history = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "25 C"}]},
    ]
    assert ask(server, messages=history).status == 200
    assert CALL in prompt_of(server)
    assert "<tool_response>\n25 C\n</tool_response>" in prompt_of(server)


def test_functions_are_the_older_words_for_tools(start):
    server = start(CALL + CALL)
    history = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "25 C"},
    ]
    with server.connect() as client:
        body = chat_body(messages=history, functions=[WEATHER["function"]])
        message = client.ask("POST", CHAT, body).json()["choices"][0]["message"]
    assert len(message["tool_calls"]) == 1
    assert "<tool_response>\n25 C\n</tool_response>" in prompt_of(server)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tools": [{}]}, "tools[0].type"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [WEATHER], "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        (
            {
                "tools": [WEATHER],
                "tool_choice": {"type": "function", "function": {"name": "other"}},
            },
            "tool_choice",
        ),
        ({"tools": {}}, "tools"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ],
)
def test_a_wrong_tool_is_refused_by_name(start, changes, param):
    with start("Hi").connect() as client:
        answer = client.ask("POST", CHAT, chat_body(**changes))
    assert (answer.status, answer.error["param"]) == (422, param)


def test_a_template_without_tools_refuses_them(server):
    answer = ask(server)
    assert (answer.status, answer.error["param"]) == (422, "tools")
    assert "chat template" in answer.error["message"]
    assert ask(server, tool_choice="none").status == 200


def test_a_text_that_looks_like_a_call_stays_text_where_there_are_no_tools(start):
    server = start(CALL)
    with server.connect() as client:
        choice = client.ask("POST", CHAT, chat_body()).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
        answer = client.ask("POST", "/v1/completions", completion_body())
        assert answer.json()["choices"][0]["text"] == CALL


def test_an_assistants_calls_are_checked(start):
    def refused(call):
        history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [call]}]
        answer = ask(server, messages=[*history, {"role": "user", "content": "Hi"}])
        assert answer.status == 422
        return answer.error["param"]

    server = start("Hi")
    at = "messages[1].tool_calls[0]"
    assert refused({"type": "function"}) == f"{at}.id"
    assert refused({"id": "a", "type": "custom"}) == f"{at}.type"
    assert refused({"id": "a", "function": {}}) == f"{at}.function.name"
    assert refused({"id": "a", "function": {"name": "f", "arguments": 5}}) == (
        f"{at}.function.arguments"
    )
