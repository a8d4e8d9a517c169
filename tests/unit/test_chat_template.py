"""Real chat templates on many conversations; the oracle is jinja2 as `transformers` sets it up."""

import copy
import threading
from datetime import datetime
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template as compile_with_jinja2

from marlin.errors import TemplateError
from marlin.text.chat_template import ChatTemplate

TEMPLATES = sorted((Path(__file__).parents[1] / "data" / "chat_templates").glob("*.jinja"))
NOON = datetime(2024, 7, 26, 12, 0, 0)

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'The "weather" <now> in a città.\nTwo lines.',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name & country", "nullable": False},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                "days": {"type": ["integer", "null"], "description": "How many"},
                "where": {"type": "array", "items": {"type": "object", "properties": {}}},
            },
            "required": ["city"],
        },
        "return": {"type": "object"},
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "No parameters.",
        "parameters": {"type": "object", "properties": {}},
    },
}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **rest):
    return {"role": "assistant", "content": content, **rest}


def system(content):
    return {"role": "system", "content": content}


def call(arguments, name="get_weather", call_id="call00001"):
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def tool_result(content, call_id="call00001"):
    return {"role": "tool", "content": content, "tool_call_id": call_id, "name": "get_weather"}


PARIS = {"city": "Paris", "days": 3, "unit": None, "deep": {"a": [1, 2.5, True, "é"]}}
PARTS = [{"type": "text", "text": "Look "}, {"type": "text", "text": "here."}]
TURNS = [user("One?"), assistant("1."), user(" Two? "), assistant("2.\n"), user("Three?")]
CONVERSATIONS = {
    "one question": [user("Hello?")],
    "system": [system("Be brief."), user("Hello?")],
    "developer": [{"role": "developer", "content": "Be brief."}, user("Hello?")],
    "many turns": TURNS,
    "many turns with system": [system("  Be brief.\n"), *TURNS],
    "empty contents": [system(""), user(""), assistant(""), user("")],
    "no content": [user("Hi"), assistant(None), user(None)],
    "unicode": [system("日本語 <b>&amp;"), user("e\u0301 \U0001f600 \u2028")],
    "template marks in content": [system("{{ x }}"), user("{% if %} {# %}")],
    "special tokens in content": [user("<|im_end|></s>[INST]"), assistant("<think>a</think>b")],
    "content parts": [system(PARTS), user(PARTS), assistant(PARTS), user(PARTS)],
    "image part": [user([{"type": "image"}, {"type": "text", "text": "What?"}])],
    "reasoning": [user("Hm?"), assistant("4", reasoning_content="2+2\n"), user("Sure?")],
    "thinking": [user("Hm?"), assistant("4", thinking="2+2"), user("Sure?")],
    "inline reasoning": [user("Hm?"), assistant("<think>\nwhy\n</think>\n\n4"), user("Sure?")],
    "tool call": [user("Rain?"), assistant(None, tool_calls=[call(PARIS)])],
    "tool call as text": [user("Rain?"), assistant("", tool_calls=[call('{"city": "Paris"}')])],
    "tool result": [
        system("Be brief."),
        user("Rain?"),
        assistant("Let me see.", tool_calls=[call(PARIS)], reasoning_content="I must call."),
        tool_result('{"rain": false}'),
    ],
    "two calls and two results": [
        user("Rain?"),
        assistant("", tool_calls=[call(PARIS), call({}, "clock", "call00002")]),
        tool_result("dry"),
        tool_result([{"type": "text", "text": "noon"}], "call00002"),
        assistant("No rain at noon."),
        user("Thanks"),
    ],
    "flat tool call": [user("Rain?"), assistant("", tool_calls=[{"name": "f", "arguments": {}}])],
    "assistant last": [user("Say A"), assistant("A")],
    "two users": [user("a"), user("b")],
    "assistant first": [assistant("Welcome"), user("b")],
    "ipython": [user("a"), {"role": "ipython", "content": "42"}],
    "unknown role": [user("a"), {"role": "x", "content": "y"}],
    "no messages": [],
}
OPTIONS = [
    {},
    {"add_generation_prompt": False},
    {"tools": [WEATHER, CLOCK]},
    {"tools": [WEATHER], "enable_thinking": False, "thinking": False, "date_string": "1 May 2025"},
    {"tools": [], "enable_thinking": True, "thinking": True, "reasoning_effort": "high"},
    {"documents": [{"title": "T", "text": "t"}], "functions": "[]", "datetime": "now"},
]


def variables_for(messages, options):
    defaults = {"tools": None, "documents": None, "add_generation_prompt": True}
    return {"messages": messages, "bos_token": "<s>", "eos_token": "</s>", **defaults, **options}


def expected_text(template, variables):
    """What jinja2 renders, or None when it raises; its clock is stopped at NOON."""
    try:
        return template.render(strftime_now=NOON.strftime, **variables)
    except Exception:
        return None


def rendered_text(template, variables):
    try:
        return template.render(variables, now=lambda: NOON)
    except TemplateError:
        return None


def test_the_corpus_of_real_templates_is_there():
    assert len(TEMPLATES) == 25


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_real_template_renders_every_conversation_as_jinja2_does(path):
    source = path.read_text()
    ours, theirs = ChatTemplate(source), compile_with_jinja2(source)
    num_rendered = 0
    for name, messages in CONVERSATIONS.items():
        for options in OPTIONS:
            variables = variables_for(messages, options)
            expected = expected_text(theirs, variables)
            assert rendered_text(ours, variables) == expected, (name, options)
            num_rendered += expected is not None
    assert num_rendered >= 20


def test_rendering_changes_neither_messages_nor_tools():
    messages, tools = CONVERSATIONS["two calls and two results"], [WEATHER, CLOCK]
    before = copy.deepcopy((messages, tools))
    for path in TEMPLATES:
        rendered_text(ChatTemplate(path.read_text()), variables_for(messages, {"tools": tools}))
    assert (messages, tools) == before


def test_threads_share_a_template_without_mixing_their_variables():
    template = ChatTemplate(
        "{% set ns = namespace(n=0) %}"
        "{% for i in range(300) %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}"
    )
    results = {}

    def work(x):
        results[x] = {template.render({"x": x}) for _ in range(20)}

    threads = [threading.Thread(target=work, args=(x,)) for x in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {x: {str(300 * x)} for x in range(4)}


def test_a_template_reads_the_clock_it_is_given():
    template = ChatTemplate("{{ strftime_now('%d %b %Y %H:%M') }}")
    assert template.render({}, now=lambda: NOON) == "26 Jul 2024 12:00"


def test_raise_exception_ends_the_render_with_exactly_its_message():
    source = "{% if true %}\n{{ raise_exception('No system role: ' ~ 1) }}{% endif %}"
    template = ChatTemplate(source)
    with pytest.raises(TemplateError) as caught:
        template.render({})
    assert caught.value.message == "No system role: 1"
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{{ b\n}}\n{% frob %}", "template line 4: unknown tag 'frob'"),
        ("a\n\n{% if x %}\nb", "template line 3: this block has no elif or else or endif"),
        ("a\n{{ 'b }}", "template line 2: unexpected"),
        ("{#\n#}{#\n", "template line 2: missing end of comment"),
        ("\n{% include 'x' %}", "template line 2: 'include' is refused"),
    ],
)
def test_a_bad_template_is_refused_with_its_line(source, message):
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source)
    assert message in caught.value.message


def test_a_failing_render_names_the_line_of_the_innermost_statement():
    source = "a\n{% for m in messages %}\n{% if m %}\n{{ m.a.b }}{% endif %}{% endfor %}"
    with pytest.raises(TemplateError, match="template line 4: dict has no 'a'"):
        ChatTemplate(source).render({"messages": [{"role": "user"}]})


class Sly(dict):
    """A dict whose entries are made by code of its own."""

    def __missing__(self, key):
        return key


@pytest.mark.parametrize("value", [object(), {1, 2}, b"x", Sly(), NOON, len])
def test_a_variable_that_is_not_a_plain_value_is_refused(value):
    with pytest.raises(TemplateError, match="'messages' holds a"):
        ChatTemplate("x").render({"messages": [{"content": value}]})
