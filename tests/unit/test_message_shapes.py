"""Messages in the shapes that templates can take, and what is told of a template by trying it."""

import hashlib

import pytest

from marlin.errors import RequestError, TemplateError
from marlin.text import message_shapes as shapes
from marlin.text.chat_template import ChatTemplate
from marlin.text.conversation import RESERVED_VARIABLES, Conversation, Prompter


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def result(id, content="x"):
    return say("tool", content, tool_call_id=id)


def answer(*ids):
    return say("assistant", "", tool_calls=[{"id": id, "function": {"name": "f"}} for id in ids])


S, U, A = (say(role, role[0]) for role in ("system", "user", "assistant"))


@pytest.mark.parametrize(
    ("messages", "joined"),
    [
        ([], []),
        ([S], [S]),
        ([S, S, S], [say("system", "s\n\ns\n\ns")]),
        ([S, U, S, S], [S, U, say("system", "s\n\ns")]),
        ([U, U], [U, U]),
        ([{**S, "name": "n"}, S], [say("system", "s\n\ns", name="n")]),
    ],
)
def test_runs_of_system_messages_are_joined(messages, joined):
    assert shapes.with_systems_joined(messages) == joined


@pytest.mark.parametrize(
    ("given", "ordered"),
    [
        ("ba", "ab"),
        ("cab", "abc"),
        ("cba", "abc"),
        ("zba", "abz"),  # of a call that is not there
        ("yxa", "ayx"),
        ("aab", "aab"),
        ("", ""),
    ],
)
def test_results_stand_in_the_order_of_their_calls(given, ordered):
    def conversation(ids):
        return [U, answer("a", "b", "c"), *map(result, ids), A, *map(result, "ba"), U]

    assert shapes.with_results_in_order(conversation(given)) == conversation(ordered)


def test_results_of_each_answer_are_in_its_own_order():
    messages = [answer("a", "b"), result("b"), result("a"), answer("b", "a"), result("a")]
    found = shapes.with_results_in_order([*messages, result("b")])
    assert [m.get("tool_call_id") for m in found] == [None, "a", "b", None, "b", "a"]
    assert shapes.with_results_in_order([result("b"), result("a")])[0] == result("b")


@pytest.mark.parametrize(
    ("id", "is_kept"),
    [("abcDEF019", True), ("abcDEF01", False), ("abcDEF0199", False), ("abc-EF019", False),
     ("äbcDEF019", False), ("call_1", False)],
)  # fmt: skip
def test_ids_become_nine_letters_and_digits(id, is_kept):
    short = id if is_kept else hashlib.sha256(id.encode()).hexdigest()[:9]
    assert len(short) == 9
    given = [answer(id), result(id), U]
    found = shapes.with_short_ids(given)
    assert found == [answer(short), result(short), U]
    assert given[0]["tool_calls"][0]["id"] == id  # nothing was changed


def test_calls_may_be_shown_as_text():
    given = [U, say("assistant", "Hm", tool_calls=[1, 2])]
    found = shapes.with_calls_shown(given, lambda calls: f"<{len(calls)}>")
    assert found == [U, say("assistant", "Hm<2>", tool_calls=[1, 2])]


def reminder(text):
    return f"<system-reminder>\n{text}\n</system-reminder>"


@pytest.mark.parametrize(
    ("messages", "plain"),
    [
        ([S, U, A], [S, U, A]),
        ([S, S, U], [say("system", "s\n\ns"), U]),
        ([U, U], [say("user", "u\n\nu")]),
        ([U, S, U, A], [say("user", f"u\n\n{reminder('s')}\n\nu"), A]),
        ([U, A, S], [U, A, say("user", reminder("s"))]),
        ([A, A], [A, A]),
    ],
)
def test_plainer_messages_have_one_system_message_and_turns(messages, plain):
    assert shapes.plainer(messages) == plain


def prompter(template, tool_template=None, tokens=None):
    other = tool_template and ChatTemplate(tool_template)
    return Prompter(ChatTemplate(template), tokens or {}, other)


PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
CALLS = (
    "{% if tools %}TOOLS{% endif %}" + PLAIN.replace(
        "{% endfor %}",
        "{% for c in m.tool_calls %}<tool_call>{\"name\": \"{{ c.function.name }}\", "
        "\"arguments\": {{ c.function.arguments|tojson }}}</tool_call>"
        "{% endfor %}{% endfor %}",
    )
)  # fmt: skip
SHORT = CALLS.replace(
    "<tool_call>",
    "{% if c.id|length != 9 %}{{ raise_exception('ids') }}{% endif %}<tool_call>",
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def test_the_family_of_calls_is_what_a_template_writes():
    assert prompter(PLAIN).form.family is None
    assert prompter(CALLS).form.family.name == "hermes"
    assert prompter(SHORT).form.family.name == "hermes"
    assert prompter(CALLS).form.thought is None
    assert prompter(CALLS + "</think>").form.thought.opening == "<think>"
    # It shows tools and writes calls in no known way, or fails on them.
    assert prompter("{{ tools }}" + PLAIN).form.family is None
    assert prompter("{{ raise_exception('x') if tools }}" + PLAIN).form.family is None
    # What it tells the model to write counts where it writes nothing.
    told = prompter("{% if tools %}List of tools: {% endif %}" + PLAIN)
    assert told.form.family.name == "lfm2 listed"
    hermes = '{% if tools %}<tool_call>"name" "arguments"{% endif %}' + PLAIN
    assert prompter(hermes).form.family is None  # a conversation's calls would be lost


def test_calls_that_a_template_leaves_out_are_written_for_it():
    told = prompter("{% if tools %}List of tools: {% endif %}" + PLAIN)
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    text = told.prompt(Conversation([U, say("assistant", "Hm", tool_calls=[call])], tools=[TOOL]))
    assert text.endswith("<assistant>Hm<|tool_call_start|>[f(x=1)]<|tool_call_end|>")


def test_ids_are_shortened_only_for_a_template_that_insists():
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {}}}
    conversation = Conversation([U, say("assistant", "", tool_calls=[call])], tools=[TOOL])
    assert "<tool_call>" in prompter(SHORT).prompt(conversation)
    assert not prompter(CALLS)._short_ids and prompter(SHORT)._short_ids


def test_tools_are_refused_where_a_template_has_none():
    with pytest.raises(RequestError) as caught:
        prompter(PLAIN).prompt(Conversation([U], tools=[TOOL]))
    assert caught.value.message == (
        "tools cannot be used: this model's chat template has none, or writes calls in a way that"
        " is not known here"
    )
    assert caught.value.param == "tools"


def test_a_template_of_its_own_is_for_tools_and_for_calls():
    both = prompter("plain", CALLS)
    assert both.prompt(Conversation([U])) == "plain"
    assert both.prompt(Conversation([U], tools=[TOOL])) == "TOOLS<user>u"
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": {}}}
    later = both.prompt(Conversation([U, say("assistant", "", tool_calls=[call])]))
    assert later.startswith("<user>u<assistant><tool_call>")


def test_a_template_is_given_its_names_and_no_others():
    shown = (
        "{{ [add_generation_prompt, tools, documents, bos_token, x]|tojson }}"
        "{{ eos_token is defined }}{{ messages|length }}"
    )
    made = prompter(shown, tokens={"bos_token": "<s>"})
    given = Conversation([U, A, U], variables={"x": 5})
    assert made.prompt(given) == '[true, null, null, "<s>", 5]False3'
    names = {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}
    functions = {"dict", "namespace", "raise_exception", "range", "strftime_now"}
    assert RESERVED_VARIABLES == names | functions


def test_who_reads_an_answer_is_told_by_template_and_conversation():
    asked = Conversation([U], tools=[TOOL], max_calls=2)
    assert prompter(PLAIN).new_reader(Conversation([U]), "") is None
    assert prompter(CALLS).new_reader(Conversation([U]), "") is None
    reader = prompter(CALLS).new_reader(asked, "")()
    assert (reader.thinking, reader._max_calls) == (False, 2)
    assert reader._scan.tools == {"f": {"type": "object"}}
    thinks = prompter(CALLS + "</think>")
    assert thinks.new_reader(Conversation([U]), "x")().thinking is False
    assert thinks.new_reader(Conversation([U]), "x<think>\n")().thinking is True
    begun = Conversation([U, say("assistant", "<think>Hm")], continues=True)
    assert thinks.new_reader(begun, "x")().thinking is True
    over = Conversation([U, say("assistant", "<think>Hm</think>")], continues=True)
    assert thinks.new_reader(over, "x")().thinking is False
    before = Conversation([U, say("assistant", "<think>Hm")])
    assert thinks.new_reader(before, "x")().thinking is False


def test_a_grammar_of_calls_is_for_the_tools_that_may_or_must_be_called():
    made = prompter(CALLS)
    other = {"type": "function", "function": {"name": "g"}}
    assert made.tool_grammar(Conversation([U])) is None
    assert prompter(PLAIN).tool_grammar(Conversation([U], tools=[TOOL])) is None
    free = made.tool_grammar(Conversation([U], tools=[TOOL, other]))
    assert (dict(free.tools), free.max_calls) == ({"f": {"type": "object"}, "g": None}, None)
    assert (free.is_forced, free.is_strict) == (False, False)
    given = Conversation([U], tools=[TOOL, other], max_calls=1, must_call=("g",), is_strict=True)
    forced = made.tool_grammar(given)
    assert (forced.tools, forced.max_calls) == ({"g": None}, 1)
    assert (forced.is_forced, forced.is_strict) == (True, True)


def test_what_no_shape_helps_with_is_refused_in_the_templates_words():
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('first') }}{% endif %}"
    with pytest.raises(TemplateError, match="^first$"):
        prompter(strict + PLAIN).prompt(Conversation([A]))
    alone = "{% if messages|length > 1 %}{{ raise_exception('one') }}{% endif %}"
    assert prompter(alone + PLAIN).prompt(Conversation([U, U])) == "<user>u\n\nu"


def test_an_answer_goes_on_from_its_last_character():
    text = prompter(PLAIN + "{{ '!' if add_generation_prompt }}")
    begun = Conversation([U, say("assistant", "Hm \ue000")], continues=True)
    assert text.prompt(begun) == "<user>u<assistant>Hm \ue000"
    # A template that takes no such end, or writes contents otherwise.
    upper = prompter(PLAIN.replace("m.content", "m.content|length") + "{{ '!' }}")
    assert upper.prompt(begun) == "<user>1!Hm \ue000"
