"""Answers of every family of tool-call formats: the same parts however they arrive, and never
a part of a mark in content."""

import json

import pytest

from marlin.text.answer import THOUGHTS, AnswerForm, AnswerReader
from marlin.text.tool_calls.families import FAMILIES
from marlin.text.tool_calls.pythonic import MAX_DEPTH

FAMILY = {family.name: family for family in FAMILIES}
THINK, BRACKETS, GEMMA = THOUGHTS[:3]
SCHEMA = {
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "opt": {"type": "object"},
        "code": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    }
}
TOOLS = {"f": SCHEMA, "g": None}
ARGUMENTS = {"city": 'Rome "x"\n<b>é', "days": 3, "opt": {"a": [1, True]}}
JSON = json.dumps(ARGUMENTS, ensure_ascii=False)
CALLS = [("f", ARGUMENTS), ("g", {})]
D = "\uff5c"


def deepseek(words):
    return f"<{D}{words.replace(' ', chr(0x2581))}{D}>"


def dsml(word):
    return (
        f"Look.\n\n<{D}DSML{D}{word}>\n"
        f'<{D}DSML{D}invoke name="f">\n'
        f'<{D}DSML{D}parameter name="city" string="true">Rome "x"\n<b>é</{D}DSML{D}parameter>\n'
        f'<{D}DSML{D}parameter name="days" string="false">3</{D}DSML{D}parameter>\n'
        f'<{D}DSML{D}parameter name="opt" string="false">{{"a": [1, true]}}</{D}DSML{D}parameter>\n'
        f"</{D}DSML{D}invoke>\n"
        f'<{D}DSML{D}invoke name="g">\n</{D}DSML{D}invoke>\n'
        f"</{D}DSML{D}{word}>"
    )


def coder(tag):
    return (
        f"Look.\n<{tag}>\n<function=f>\n"
        '<parameter=city>\nRome "x"\n<b>é\n</parameter>\n'
        "<parameter=days>\n3\n</parameter>\n"
        '<parameter=opt>\n{"a": [1, true]}\n</parameter>\n'
        f"</function>\n</{tag}>\n<{tag}>\n<function=g>\n</function>\n</{tag}>"
    )


# (family, thought, answer): its content is "Look.", its thought "Hm <f>", its calls CALLS.
ANSWERS = {
    "hermes": (
        THINK,
        "<think>\nHm <f>\n</think>\n\nLook.\n"
        f'<tool_call>\n{{"name": "f", "arguments": {JSON}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
    ),
    "nemotron": (
        THINK,
        "<think>Hm <f></think>Look.\n"
        f'<TOOLCALL>[{{"name": "f", "arguments": {JSON}}}, {{"name": "g"}}]</TOOLCALL>',
    ),
    "apriel": (
        None,
        f'Look. <tool_calls>[{{"name": "f", "arguments": {JSON}, "id": "1"}},'
        '{"name": "g", "arguments": {}}]</tool_calls>',
    ),
    "qwen_coder": (THINK, "<think>\nHm <f>\n</think>\n\n" + coder("tool_call")),
    "seed": (THOUGHTS[3], "<seed:think>Hm <f></seed:think>" + coder("seed:tool_call")),
    "llama": (
        None,
        f'{{"name": "f", "parameters": {JSON}}}; {{"name": "g", "parameters": {{}}}}',
    ),
    "mistral": (
        BRACKETS,
        f"[THINK]Hm <f>[/THINK]Look.[TOOL_CALLS]f[CALL_ID]abcdefgh1[ARGS]{JSON}"
        "[TOOL_CALLS]g[ARGS]{}",
    ),
    "mistral array": (
        BRACKETS,
        f'[THINK]Hm <f>[/THINK]Look.[TOOL_CALLS][{{"name": "f", "arguments": {JSON}, "id": "1"}}, '
        '{"name": "g", "arguments": {}}]',
    ),
    "harmony": (
        None,
        "<|channel|>analysis<|message|>Hm <f><|end|><|start|>assistant<|channel|>commentary"
        "<|message|>Look.<|end|><|start|>assistant<|channel|>commentary to=functions.f "
        f"<|constrain|>json<|message|>{JSON}<|call|><|start|>assistant to=functions.g"
        "<|channel|>commentary json<|message|>{}",
    ),
    "glm": (
        THINK,
        "<think>Hm <f></think>Look.\n<tool_call>f\n<arg_key>city</arg_key>\n"
        '<arg_value>Rome "x"\n<b>é</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>'
        '<arg_key>opt</arg_key><arg_value>{"a": [1, true]}</arg_value>\n</tool_call>\n'
        "<tool_call>g\n</tool_call>",
    ),
    "deepseek": (
        THINK,
        f"<think>Hm <f></think>Look.{deepseek('tool calls begin')}{deepseek('tool call begin')}f"
        f"{deepseek('tool sep')}{JSON}{deepseek('tool call end')}{deepseek('tool call begin')}"
        f"function{deepseek('tool sep')}g\n```json\n{{}}\n```{deepseek('tool call end')}"
        f"{deepseek('tool calls end')}",
    ),
    "dsml function_calls": (None, dsml("function_calls")),
    "dsml tool_calls": (None, dsml("tool_calls")),
    "gemma": (
        GEMMA,
        "<|channel>thought\nHm <f>\n<channel|>Look."
        '<|tool_call>call:f{city:<|"|>Rome "x"\n<b>é<|"|>,'
        "days:3,opt:{a:[1,true]}}<tool_call|><|tool_call>call:g{}<tool_call|>",
    ),
    "functiongemma": (
        None,
        'Look.<start_function_call>call:f{city:<escape>Rome "x"\n<b>é<escape>,days:3,'
        "opt:{a:[1,true]}}<end_function_call><start_function_call>call:g{}<end_function_call>",
    ),
    "kimi": (
        THINK,
        "<think>Hm <f></think>Look.<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"
        f"<|tool_call_argument_begin|>{JSON}<|tool_call_end|><|tool_call_begin|>functions.g:1"
        "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
    ),
    "minimax": (
        THINK,
        '<think>\nHm <f>\n</think>\n\nLook.\n<minimax:tool_call>\n<invoke name="f">\n'
        '<parameter name="city">Rome "x"\n<b>é</parameter>\n<parameter name="days">3</parameter>\n'
        '<parameter name="opt">{"a": [1, true]}</parameter>\n</invoke>\n<invoke name="g">\n'
        "</invoke>\n</minimax:tool_call>",
    ),
    "lfm2": (
        THINK,
        "<think>Hm <f></think>Look.<|tool_call_start|>[f(city='Rome \"x\"\\n<b>\\u00e9', days=3, "
        'opt={"a": [1, True]}), g()]<|tool_call_end|>',
    ),
}
WITHOUT_CONTENT = {"llama"}


def read(name, pieces, is_cut=False, thought=None, **more):
    """({kind: text}, [[name, arguments, is whole]]) of an answer that comes in pieces."""
    reader = AnswerReader(AnswerForm(thought, FAMILY[name]), TOOLS, **more)
    parts = [part for piece in pieces for part in reader.push(piece)] + reader.finish(is_cut)
    texts, calls = {"content": "", "reasoning": ""}, []
    for part in parts:
        if part.kind in texts:
            texts[part.kind] += part.text
        elif part.kind == "call":
            assert part.call == len(calls)
            calls.append([part.text, "", False])
        elif part.kind == "arguments":
            assert part.call == len(calls) - 1 and not calls[-1][2]
            calls[-1][1] += part.text
        else:
            calls[part.call][2] = True
    return texts, calls


each_answer = pytest.mark.parametrize("name", ANSWERS)


def test_every_family_has_an_answer_here():
    assert set(FAMILY) == {*ANSWERS, "lfm2 listed"}


@each_answer
def test_an_answer_is_read_whole(name):
    thought, text = ANSWERS[name]
    texts, calls = read(name, [text], thought=thought)
    has_thought = thought is not None or name == "harmony"
    content = "" if name in WITHOUT_CONTENT else "Look."
    assert texts == {"content": content, "reasoning": "Hm <f>" if has_thought else ""}
    assert [(name, json.loads(arguments)) for name, arguments, _ in calls] == CALLS
    assert all(is_whole for *_, is_whole in calls)


@each_answer
def test_an_answer_is_the_same_however_it_is_cut_into_pieces(name):
    thought, text = ANSWERS[name]
    whole = read(name, [text], thought=thought)
    assert read(name, text, thought=thought) == whole
    for cut in range(1, len(text)):
        assert read(name, [text[:cut], text[cut:]], thought=thought) == whole, cut


@each_answer
def test_an_answer_that_is_cut_off_tells_a_beginning_of_the_whole(name):
    thought, text = ANSWERS[name]
    whole_texts, whole_calls = read(name, [text], thought=thought)
    for cut in range(len(text)):
        texts, calls = read(name, text[:cut], is_cut=True, thought=thought)
        for kind in texts:
            assert whole_texts[kind].startswith(texts[kind]), (cut, kind)
        for call, whole in zip(calls, whole_calls, strict=False):
            assert call == whole or (call[0] == whole[0] and not call[2]), cut
            assert whole[1].startswith(call[1]), cut


@each_answer
def test_arguments_are_streamed_and_not_kept_to_the_end(name):
    thought, text = ANSWERS[name]
    reader = AnswerReader(AnswerForm(thought, FAMILY[name]), TOOLS)
    middle = text.index("Rome") + len("Rome")
    early = [part.text for part in reader.push(text[:middle]) if part.kind == "arguments"]
    assert json.loads("".join(early) + '"}') == {"city": "Rome"}


@each_answer
def test_one_call_at_most_leaves_the_rest_unread(name):
    thought, text = ANSWERS[name]
    for pieces in ([text], text):
        _, calls = read(name, pieces, thought=thought, max_calls=1)
        assert [(name, is_whole) for name, _, is_whole in calls] == [("f", True)]


@each_answer
def test_an_answer_without_calls_is_content_to_the_last_blank(name):
    text = " a < b, {[ 'x' ]} <tool\n"
    for pieces in ([text], text):
        assert read(name, pieces) == ({"content": text, "reasoning": ""}, [])


@pytest.mark.parametrize("thought", THOUGHTS)
def test_a_thought_that_the_prompt_began_goes_on_to_its_end(thought):
    text = f"Hm{thought.closing}\n\nYes"
    for pieces in ([text], text):
        texts, _ = read("hermes", pieces, thought=thought, thinks=True)
        assert texts == {"content": "Yes", "reasoning": "Hm"}
    texts, _ = read("hermes", "Hm", is_cut=True, thought=thought, thinks=True)
    assert texts == {"content": "", "reasoning": "Hm"}


def test_a_call_within_a_thought_is_none():
    call = '<tool_call>{"name": "g", "arguments": {}}</tool_call>'
    texts, calls = read("hermes", f"<think>{call}</think>Yes", thought=THINK)
    assert (texts, calls) == ({"content": "Yes", "reasoning": call}, [])


def test_a_mark_of_thoughts_later_in_an_answer_is_content():
    texts, _ = read("hermes", "I write <think>x</think>.", thought=THINK)
    assert texts == {"content": "I write <think>x</think>.", "reasoning": ""}


def hermes(json_text):
    return f"<tool_call>{json_text}</tool_call>"


@pytest.mark.parametrize(
    ("name", "text", "calls"),
    [
        # The name after the arguments, arguments in a string, none at all, within "function".
        ("hermes", hermes('{"arguments": {"a": 1}, "name": "g"}'), ['{"a": 1}']),
        ("hermes", hermes('{"name": "g", "arguments": "{\\"a\\": 1}"}'), ['{"a": 1}']),
        ("hermes", hermes('{"name": "g"}'), ["{}"]),
        ("hermes", hermes('{"name": "g", "arguments": null}'), ["{}"]),
        ("hermes", hermes('{"function": {"name": "g", "arguments": {}}}'), ["{}"]),
        # What models forget: escapes of line ends, the end of a tag, a tag.
        ("hermes", hermes('{"name": "g", "arguments": {"a": "1\n2"}}'), ['{"a": "1\\n2"}']),
        ("hermes", '<tool_call>{"name": "g", "arguments": {}}', ["{}"]),
        (
            "hermes",
            '<tool_call>{"name": "g", "arguments": {}}\n<tool_call>{"name": "g"}',
            ["{}", "{}"],
        ),
        ("hermes", hermes('{"name": "g", "arguments": {}}}'), ["{}"]),
        ("hermes", hermes('{"name": "g", "arguments": {"a": 0.8}}'), ['{"a": 0.8}']),
        ("qwen_coder", "<function=g>\n</function>", ["{}"]),
        ("qwen_coder", "<tool_call><function=g></tool_call>", ["{}"]),
        # One line end at either side is not the value's; the rest is.
        (
            "qwen_coder",
            "<function=f><parameter=city>\n\n a \n\n</parameter></function>",
            ['{"city": "\\n a \\n"}'],
        ),
        # A value that is not of its type stays text; the schema may allow null.
        (
            "qwen_coder",
            "<function=f><parameter=days>a</parameter><parameter=code>null</parameter></function>",
            ['{"days": "a", "code": null}'],
        ),
        (
            "qwen_coder",
            "<function=f><parameter=code>12</parameter><parameter=opt>NaN</parameter></function>",
            ['{"code": "12", "opt": "NaN"}'],
        ),
        ("qwen_coder", "<function=g><parameter=a>True</parameter></function>", ['{"a": true}']),
        ("mistral", '[TOOL_CALLS][{"name": "g", "arguments": {}, "id": "abcdefgh1"}]', ["{}"]),
        ("llama", '<|python_tag|>g.call(a="b", c=[1, None])', ['{"a": "b", "c": [1, null]}']),
        ("llama", '<|python_tag|>{"name": "g", "parameters": {}}', ["{}"]),
        ("llama", '\n{"type": "function", "name": "g", "parameters": {}}', ["{}"]),
        (
            "lfm2",
            "<|tool_call_start|>[g(a='\\d\\'\\x41', b={'k': (1,)})]<|tool_call_end|>",
            ['{"a": "\\\\d\'\\u0041", "b": {"k": [1]}}'],
        ),
        ("lfm2", "<|tool_call_start|>[g(a='''x\n''', b='')]", ['{"a": "x\\n", "b": ""}']),
        ("harmony", "<|channel|>commentary to=functions.g<|message|>{}", ["{}"]),
    ],
)
def test_a_call_in_another_of_its_shapes_is_read(name, text, calls):
    for pieces in ([text], text):
        texts, found = read(name, pieces)
        assert texts["content"] == ""
        assert [(arguments, is_whole) for _, arguments, is_whole in found] == [
            (arguments, True) for arguments in calls
        ]


@pytest.mark.parametrize(
    "text",
    ['{"name": "h", "parameters": {}}', '{"a": 1}', '{"name": 5}', "{", '{"type": 1, "name": "g"}'],
)
def test_json_that_names_no_tool_is_a_llamas_content(text):
    for pieces in ([text], text):
        assert read("llama", pieces) == ({"content": text, "reasoning": ""}, [])


def test_an_answer_without_channels_is_content_for_harmony():
    assert read("harmony", "Hello")[0]["content"] == "Hello"
    assert read("harmony", "<|channel|>final<|message|>Hello")[0]["content"] == "Hello"


def test_a_call_that_is_no_json_is_never_whole():
    for text in ('{"name": "g", "arguments": {"a": </tool_call>', '{"name": "g", "arguments": }'):
        texts, calls = read("hermes", f"<tool_call>{text}</tool_call>")
        assert texts["content"] == ""
        assert not any(is_whole for *_, is_whole in calls)


@pytest.mark.parametrize(
    ("name", "opening", "level"),
    [
        ("lfm2", "<|tool_call_start|>[g(a=", "["),
        ("gemma", "<|tool_call>call:g{a:", "{a:"),
        ("gemma", "<|tool_call>call:g{a:", "["),
        ("hermes", '<tool_call>{"name": "g", "arguments": ', '{"a": '),
        ("hermes", "<tool_call>", '{"function": '),
    ],
)
def test_a_deep_value_ends_in_no_error(name, opening, level):
    text = opening + level * 5000
    assert not any(is_whole for *_, is_whole in read(name, [text])[1])
    assert MAX_DEPTH * 20 < 1000  # frames of the interpreter that a level takes, and all it has
