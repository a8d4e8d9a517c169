"""Calls that are broken, cut off or oddly written, in each family: what is still told of them."""

import pytest
from test_tool_calls import FAMILY, TOOLS, D, deepseek, read

from marlin.text.answer import THOUGHTS, AnswerForm, AnswerReader, thought_of
from marlin.text.tool_calls.families import FAMILIES, family_of
from marlin.text.tool_calls.lfm2 import show
from marlin.text.tool_calls.pythonic import MAX_DEPTH

BEGIN, SEP = deepseek("tool calls begin") + deepseek("tool call begin"), deepseek("tool sep")
END, CLOSING = deepseek("tool call end"), deepseek("tool calls end")
KIMI, GEMMA = "<|tool_calls_section_begin|><|tool_call_begin|>", "<|tool_call>call:f"
ARGUMENT, KIMI_END = "<|tool_call_argument_begin|>", "<|tool_call_end|>"
COMMENTARY = "<|channel|>commentary to=functions.f<|message|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"


def lfm2(arguments):
    return f"<|tool_call_start|>[f({arguments})]<|tool_call_end|>t"


def tagged(text):
    return f"<tool_call>{text}</tool_call>"


def dsml(parameters):
    invoke = f'<{D}DSML{D}invoke name="f">{parameters}</{D}DSML{D}invoke>'
    return f"<{D}DSML{D}tool_calls>\n{invoke}</{D}DSML{D}tool_calls>t"


def parameter(name, is_string, value):
    end = f"</{D}DSML{D}parameter>"
    return f'<{D}DSML{D}parameter name="{name}" string="{is_string}">{value}{end}'


# (family, answer, its content, [(name, arguments, whether the call is whole)])
EDGES = [
    ("deepseek", f"A{BEGIN}f", "A", []),
    ("deepseek", f'{BEGIN}f{SEP}{{"a": {END}', "", [("f", '{"a": ', False)]),
    ("deepseek", f"{BEGIN} f {SEP}{{}}{END} x {CLOSING} t", "t", [("f", "{}", True)]),
    ("deepseek", f"{BEGIN}function{SEP}g", "", []),
    ("deepseek", f"{BEGIN}function{SEP}g\n{{}}{END}", "", [("g", "{}", True)]),
    ("deepseek", f"{BEGIN}f{SEP}{{}}{END}", "", [("f", "{}", True)]),
    ("kimi", f"{KIMI}f{ARGUMENT}{{}}{KIMI_END}", "", [("f", "{}", True)]),
    ("kimi", f"{KIMI} functions.a:b:3 {ARGUMENT}{{}}{KIMI_END}", "", [("a:b", "{}", True)]),
    ("kimi", f"{KIMI}functions.f:0", "", []),
    (
        "kimi",
        f'{KIMI}functions.f:0{ARGUMENT}{{"a": {KIMI_END}<|tool_call_begin|>functions.g:1{ARGUMENT}'
        f"{{}}{KIMI_END}<|tool_calls_section_end|> t",
        *("t", [("f", '{"a": ', False), ("g", "{}", True)]),
    ),
    ("gemma", GEMMA + "{a:[,1]}<tool_call|>t", "t", [("f", '{"a": [', False)]),
    ("gemma", GEMMA + "{a:}<tool_call|>", "", [("f", '{"a": ', False)]),
    ("gemma", GEMMA + "{a}<tool_call|>", "", [("f", "", False)]),
    ("gemma", GEMMA + "{a:1,b:[1", "", [("f", '{"a": 1, "b": [', False)]),
    ("gemma", GEMMA + '{a:<|"|>x', "", [("f", '{"a": "x', False)]),
    ("gemma", GEMMA + '{a:<|"|>é"\n<|"|>}', "", [("f", '{"a": "é\\"\\n"}', True)]),
    (
        "gemma",
        GEMMA + '{<|"|>a<|"|>:true,"b":null,c:word two,é:ö}<tool_call|>',
        *("", [("f", '{"a": true, "b": null, "c": "word two", "é": "ö"}', True)]),
    ),
    (
        "gemma",
        GEMMA + "{a:[],b:{},c:[{}],d:{e:{f:-1.5}},g:[1,[2]]}<tool_call|>",
        "",
        [
            (
                *("f", '{"a": [], "b": {}, "c": [{}], "d": {"e": {"f": -1.5}}, "g": [1, [2]]}'),
                True,
            )
        ],
    ),
    ("gemma", "<|tool_call>f {a:1} x <tool_call|> t", "t", [("f", '{"a": 1}', True)]),
    ("gemma", "x " + GEMMA, "x", []),
    ("harmony", COMMENTARY + '{"a": 1}', "", [("f", '{"a": 1}', True)]),
    ("harmony", f'{COMMENTARY}{{"a": <|call|>{FINAL}Hi<|return|>', "Hi", [("f", '{"a": ', False)]),
    ("harmony", f"{COMMENTARY}{{}} x <|call|>{FINAL}Hi", "Hi", [("f", "{}", True)]),
    ("harmony", f"{COMMENTARY}{{}}<|start|>x<|message|>Hi", "Hi", [("f", "{}", True)]),
    ("harmony", "<|channel|>final", "", []),
    ("harmony", "<|chan", "", []),
    ("harmony", "to=functions.f", "", []),
    ("harmony", " Hello <|end|>", " Hello <|end|>", []),
    ("harmony", f"<|channel|>final<|message|> A <|end|>{FINAL} B ", " A B ", []),
    ("llama", "<|python_tag|>g.call(a=1", "", [("g", '{"a": ', False)]),
    ("llama", "<|python_tag|> g(a=1) more", "", [("g", '{"a": 1}', True)]),
    ("llama", "<|python_tag|>print", "", []),
    ("llama", '{"name": "f", "parameters": {"a": "x"}} and', "and", [("f", '{"a": "x"}', True)]),
    ("llama", '{"type": "function", "name": "f", "parameters": {}}', "", [("f", "{}", True)]),
    (
        "llama",
        '{"name": "f"}, {"name": "h"};{"name": "g"}',
        *("", [("f", "{}", True), ("h", "{}", True), ("g", "{}", True)]),
    ),
    ("llama", '{"other": "x", "name": "f"}', '{"other": "x", "name": "f"}', []),
    ("llama", '{"name" "f"}', '{"name" "f"}', []),
    ("llama", '{"type" "f"}', '{"type" "f"}', []),
    ("llama", '{"type": "x" "name": "f"}', '{"type": "x" "name": "f"}', []),
    ("llama", ' Hi {"name": "f"} ', ' Hi {"name": "f"} ', []),
    ("lfm2", "<|tool_call_start|>[f(a='x'), (b=1)]<|tool_call_end|>t", "t", [
        ("f", '{"a": "x"}', True),
    ]),
    ("lfm2", "<|tool_call_start|>[ f(a='x' , b=2 ) , g( )] z <|tool_call_end|> t", "t", [
        ("f", '{"a": "x", "b": 2}', True), ("g", "{}", True),
    ]),
    ("lfm2", "<|tool_call_start|>f(a=1) g()<|tool_call_end|>t", "t", [("f", '{"a": 1}', True)]),
    ("lfm2", "<|tool_call_start|>[]<|tool_call_end|>t", "t", []),
    ("lfm2", "<|tool_call_start|>[f]<|tool_call_end|>t(x)", "t(x)", []),
    ("lfm2", lfm2("a="), "t", [("f", '{"a": ""', False)]),
    ("lfm2", lfm2("é=ö"), "t", [("f", '{"é": "ö"}', True)]),
    ("lfm2", lfm2("a={'a' 1}"), "t", [("f", '{"a": {"a"', False)]),
    ("lfm2", lfm2("a={'a': }"), "t", [("f", '{"a": {"a": ""', False)]),
    ("lfm2", lfm2("a=[,1]"), "t", [("f", '{"a": [""', False)]),
    ("lfm2", lfm2("a={'b':1,'c':[1,2,],'d':(),'e':{},'f':[], 'g': (1, 'x')}"), "t", [
        ("f", '{"a": {"b": 1, "c": [1, 2], "d": [], "e": {}, "f": [], "g": [1, "x"]}}', True),
    ]),
    ("lfm2", lfm2("a=None, b=False, c=True, d=null"), "t", [
        ("f", '{"a": null, "b": false, "c": true, "d": null}', True),
    ]),
    ("lfm2", lfm2("a=-1.5e3, b=1.2.3, c=None2"), "t", [
        ("f", '{"a": -1.5e3, "b": "1.2.3", "c": "None2"}', True),
    ]),
    ("lfm2", "<|tool_call_start|>[f(a=[1", "", [("f", '{"a": [', False)]),
    ("lfm2", "<|tool_call_start|>[f(a='x\\", "", [("f", '{"a": "x', False)]),
    ("lfm2", "<|tool_call_start|>[f(a='x", "", [("f", '{"a": "x', False)]),
    ("lfm2", lfm2("a='\\n\\r\\t\\b\\f\\\\\\'\\\"\\q\\\n\\x41\\u0042'"), "t", [
        ("f", '{"a": "\\n\\r\\t\\b\\f\\\\\'\\"\\\\q\\u0041\\u0042"}', True),
    ]),
    ("lfm2", lfm2('a="""x"y""", b=\'\'\'it\'s\'\'\', c="it\'s", d=\'"\''), "t", [
        ("f", '{"a": "x\\"y", "b": "it\'s", "c": "it\'s", "d": "\\""}', True),
    ]),
    ("qwen_coder", tagged("\n<function=f>\n</function>\n") + "\nDone.", "Done.", [
        ("f", "{}", True),
    ]),
    ("qwen_coder", "A" + tagged("\nnothing\n") + "B", "AB", []),
    ("qwen_coder", "<tool_call>\n<function=f>\n<parameter=city>\nx", "", [
        ("f", '{"city": "x', False),
    ]),
    ("qwen_coder", "<tool_call>\n<function=f>\n<parameter=days>\n3", "", [
        ("f", '{"days": ', False),
    ]),
    ("qwen_coder", "<tool_call>\n<function=f>\n<parameter=city", "", [("f", "", False)]),
    ("qwen_coder", "<tool_call>\n<function=f", "", []),
    ("qwen_coder", "<function=f><parameter=city>a\n\nb</parameter>x<parameter=days>\n\n4\n\n"
     "</parameter></function>", "", [("f", '{"city": "a\\n\\nb", "days": 4}', True)]),
    ("qwen_coder", tagged("<function=f>junk<parameter=a>é</parameter>junk"), "", [
        ("f", '{"a": "é"}', True),
    ]),
    ("glm", tagged("f\n<arg_key>city</arg_key> <arg_value>\nx\n</arg_value>\n") + " t", "t", [
        ("f", '{"city": "\\nx\\n"}', True),
    ]),
    ("glm", tagged("f\n<arg_key>city</arg_key>junk<arg_value>x</arg_value>") + "t", "t", [
        ("f", "", False),
    ]),
    ("glm", "<tool_call>f\n<arg_key>city</arg_key>\n<arg_val", "", [("f", "", False)]),
    ("glm", "<tool_call>f\n<arg_key>city", "", [("f", "", False)]),
    ("glm", "<tool_call>f", "", []),
    ("glm", tagged("g") + "x" + tagged(" g \n"), "x", [("g", "{}", True), ("g", "{}", True)]),
    ("mistral", "[TOOL_CALLS] f [CALL_ID]123456789[ARGS]{}", "", [("f", "{}", True)]),
    ("mistral", "[TOOL_CALLS]f[CALL_ID]123456789", "", []),
    ("mistral", "[TOOL_CALLS]f", "", []),
    ("mistral", '[TOOL_CALLS]f[ARGS]{"a":', "", [("f", '{"a":', False)]),
    ("mistral", "[TOOL_CALLS]f[ARGS]{} tail", "tail", [("f", "{}", True)]),
    ("mistral array", '[TOOL_CALLS] [{"name": "f"}] tail', "tail", [("f", "{}", True)]),
    ("mistral array", '[TOOL_CALLS][{"name": "f"} {"name": "g"}', "", [
        ("f", "{}", True), ("g", "{}", True),
    ]),
    ("hermes", tagged('{"function": "g", "arguments": {}}'), "", [("g", "{}", True)]),
    ("hermes", tagged('{"function": {"name": "g", "function": {"name": "f"}, "arguments": {}}}'),
     "", [("g", "{}", True)]),
    ("hermes", tagged('{"arguments": {}}') + "t", "t", []),
    ("hermes", tagged('{"name": 5, "arguments": {}}') + "t", "t", []),
    ("hermes", tagged('{"name": "g", "parameters": {"a": 1}}'), "", [("g", '{"a": 1}', True)]),
    ("hermes", tagged('{"name" "g"}'), "", []),
    ("hermes", tagged('{"name": "g", "arguments": {}'), "", [("g", "{}", False)]),
    ("hermes", '<tool_call>{"name": "g"', "", []),
    ("hermes", tagged('{"name": "g", "x": {"y": [1, "}"]}, "arguments": {}}'), "", [
        ("g", "{}", True),
    ]),
    ("hermes", tagged('[{"name": "g"}, {"name": "f"}]'), "", [
        ("g", "{}", True), ("f", "{}", True),
    ]),
    ("hermes", "A " + tagged('{"name": "g"}') + " B " + tagged('{"name": "f"}') + " C", "ABC", [
        ("g", "{}", True), ("f", "{}", True),
    ]),
    ("hermes", tagged("nothing") + "x", "x", []),
    ("hermes", tagged('{"name": "g", "arguments": {"a": "x\ty\\n\\"z\\\\"}}'), "", [
        ("g", '{"a": "x\\ty\\n\\"z\\\\"}', True),
    ]),
    ("hermes", tagged('{"name": "g", "arguments": "{\\"a\\": \\"é\\"}"}'), "", [
        ("g", '{"a": "é"}', True),
    ]),
    ("minimax", '<minimax:tool_call>\n<invoke name="f">\n<parameter name="city">x</parameter>\n'
     '<parameter name="days">x</parameter></invoke></minimax:tool_call>t', "t", [
        ("f", '{"city": "x", "days": "x"}', True),
    ]),
    # What DeepSeek says of a value goes before what the schema says.
    ("dsml tool_calls", dsml(parameter("city", "false", 3) + parameter("days", "true", 3)), "t", [
        ("f", '{"city": "3", "days": "3"}', True),
    ]),
    ("dsml tool_calls", dsml(parameter("code", "false", "null") + parameter("x", "false", "[1]")),
     "t", [("f", '{"code": null, "x": [1]}', True)]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "content", "calls"), EDGES)
def test_of_an_odd_call_is_told_what_is_sure(name, text, content, calls):
    expected = {"content": content, "reasoning": ""}, [list(call) for call in calls]
    assert read(name, [text]) == expected
    assert read(name, text) == expected


@pytest.mark.parametrize("name", FAMILY)
def test_without_tools_a_call_is_content(name):
    text = 'A <tool_call>{"name": "g"}</tool_call> {"name": "g"} [TOOL_CALLS]g[ARGS]{}'
    reader = AnswerReader(AnswerForm(None, FAMILY[name]), {})
    parts = reader.push(text) + reader.finish(False)
    assert ["".join(part.text for part in parts)] == [text]
    assert {part.kind for part in parts} == {"content"}


def ids_of(name, text):
    reader = AnswerReader(AnswerForm(None, FAMILY[name]), TOOLS)
    return [part.id for part in reader.push(text) + reader.finish(False) if part.kind == "call"]


def test_the_id_that_a_model_gave_a_call_is_kept():
    assert ids_of("hermes", tagged('{"id": "x1", "name": "g"}')) == ["x1"]
    assert ids_of("hermes", tagged('{"id": 5, "name": "g", "other": "y"}')) == [None]
    assert ids_of("hermes", tagged('{"name": "g", "other": "y"}')) == [None]
    assert ids_of("mistral", "[TOOL_CALLS]f[CALL_ID]12345[ARGS]{}") == ["12345"]
    assert ids_of("mistral", "[TOOL_CALLS]f[ARGS]{}") == [None]
    assert ids_of("mistral array", '[TOOL_CALLS][{"name": "f", "id": "abc"}]') == ["abc"]
    assert ids_of("kimi", f"{KIMI} functions.f:7 {ARGUMENT}{{}}") == ["functions.f:7"]
    assert ids_of("glm", tagged("g")) == [None]


def test_harmonys_thoughts_are_a_channel_and_no_part_of_a_later_answer():
    text = f"<|channel|>analysis<|message|> A <|end|>{FINAL} B <|return|>"
    for pieces in ([text], text):
        assert read("harmony", pieces) == ({"content": "B", "reasoning": "A"}, [])
    reader = AnswerReader(AnswerForm(None, FAMILY["harmony"]), {})
    assert not reader.thinking
    reader.push("<|channel|>analysis<|message|>Hm")
    assert reader.thinking
    reader.push(f"<|end|>{FINAL}")
    assert not reader.thinking


def test_a_harmony_call_without_tools_is_content():
    reader = AnswerReader(AnswerForm(None, FAMILY["harmony"]), {})
    assert [part[:2] for part in reader.push(COMMENTARY + "{}")] == [("content", "{}")]


def test_what_a_cut_llama_answer_would_have_been_is_not_told():
    assert read("llama", '{"na', is_cut=True) == ({"content": "", "reasoning": ""}, [])
    assert read("llama", '{"na') == ({"content": '{"na', "reasoning": ""}, [])
    assert read("harmony", "<|cha", is_cut=True)[0]["content"] == ""
    assert read("harmony", "Hel", is_cut=True)[0]["content"] == "Hel"


def nested(depth, opening, closing):
    return f"[f(a={opening * depth}{closing * depth})]"


@pytest.mark.parametrize("brackets", ["[]", "()"])
def test_python_values_nest_32_deep(brackets):
    text = "<|tool_call_start|>{}<|tool_call_end|>"
    assert read("lfm2", [text.format(nested(MAX_DEPTH, *brackets))])[1] == [
        ["f", f'{{"a": {"[" * 32}{"]" * 32}}}', True]
    ]
    assert not read("lfm2", [text.format(nested(MAX_DEPTH + 1, *brackets))])[1][0][2]


def test_gemmas_values_nest_32_deep():
    def whole(depth):
        text = f"{GEMMA}{{a:{'[' * depth}{']' * depth}}}<tool_call|>"
        return read("gemma", [text])[1][0][2]

    assert whole(32) and not whole(33)

    def whole_objects(depth):
        text = f"{GEMMA}{{a:{'{a:' * depth}1{'}' * depth}}}<tool_call|>"
        return read("gemma", [text])[1][0][2]

    assert whole_objects(32) and not whole_objects(33)


def test_python_dicts_nest_32_deep():
    def whole(depth):
        return read("lfm2", [lfm2("a=" + '{"a": ' * depth + "1" + "}" * depth)])[1][0][2]

    assert whole(32) and not whole(33)


def test_calls_are_shown_as_python_where_a_template_leaves_them_to_its_caller():
    def call(name, arguments):
        return {"function": {"name": name, "arguments": arguments}}

    given = {"a": 'x"é', "b": None, "c": [1, True], "d": {"k": 1.5}}
    assert show([call("f", given), call("g", {}), call("h", "text")]) == (
        '<|tool_call_start|>[f(a="x\\"é", b=None, c=[1, True], d={\'k\': 1.5}), g(), h()]'
        "<|tool_call_end|>"
    )


def test_the_family_of_a_text_is_the_first_that_has_all_its_words():
    for family in FAMILIES:
        assert family_of(" ".join(family.written)) is FAMILY[family.name]
        if len(family.written) > 1 and family.name not in ("mistral", "glm", "qwen_coder"):
            found = family_of(family.written[0])
            assert found is None or found.name != family.name
    assert family_of("Hello") is None


@pytest.mark.parametrize("thought", THOUGHTS)
def test_a_templates_thought_is_told_by_its_closing_mark(thought):
    assert thought_of(f"x{thought.closing}y") == thought
    assert thought_of(thought.opening) is None
    assert thought.is_open_at_end(f"Ask {thought.opening}\n")
    assert not thought.is_open_at_end(f"{thought.opening} x")
    assert thought.is_open_in(f"\n{thought.opening}Hm")
    assert not thought.is_open_in(f"x{thought.opening}Hm")
    assert not thought.is_open_in(f"{thought.opening}Hm{thought.closing}")


def test_a_thought_that_is_begun_may_begin_once_more():
    for thought in THOUGHTS:
        text = f"{thought.opening}Hm{thought.closing}Yes"
        texts, _ = read("hermes", [text], thought=thought, thinks=True)
        assert texts == {"content": "Yes", "reasoning": "Hm"}


def test_marks_of_an_answer_are_those_of_its_thoughts_and_calls():
    hermes = FAMILY["hermes"]
    assert AnswerForm().markers == ()
    assert AnswerForm(THOUGHTS[0]).markers == ("<think>", "</think>")
    both = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    assert AnswerForm(THOUGHTS[0], hermes).markers == both
