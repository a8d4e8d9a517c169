"""How the grammar of each family's calls is put together: what text stands where, what is free."""

import pytest

from marlin.errors import RequestError
from marlin.text.grammar.constraint import (
    AllOf,
    AnyText,
    Constraint,
    Either,
    InOrder,
    JsonSchema,
    Regex,
    Repeated,
    SpecialToken,
    Text,
    Until,
    Without,
)
from marlin.text.tool_calls.families import FAMILIES
from marlin.text.tool_calls.shape import ToolGrammar, properties
from marlin.text.tool_calls.tagged import resolved, schema_types, typed

FAMILY = {family.name: family for family in FAMILIES}
D = "\uff5c"
BLANK = "\u2581"
TOOL = {
    "type": "object",
    "properties": {
        "a": {"type": "string"},
        "n": {"type": "integer"},
        "e": {"enum": ["x", "y"]},
    },
    "required": ["a"],
}


def shown(part):
    """A part on one line: a mark as «mark», JSON as <type>, any text up to an end as …end."""
    if isinstance(part, Either) and isinstance(part.parts[-1], SpecialToken):
        text, token = part.parts
        assert shown(text) == token.text
        return f"«{token.text}»"
    if isinstance(part, Text):
        return part.text
    if isinstance(part, JsonSchema):
        return f"<{part.schema.get('type', 'any')}>"
    if isinstance(part, Regex):
        mark = "~" if part.is_searched else "/"
        return f"{mark}{part.pattern}{mark}"
    if isinstance(part, AllOf):
        return f"({'&'.join(map(shown, part.parts))})"
    if isinstance(part, InOrder):
        return "".join(map(shown, part.parts))
    if isinstance(part, Either):
        return f"({'|'.join(map(shown, part.parts))})"
    if isinstance(part, Repeated):
        times = {(0, 1): "?", (0, None): "*"}[part.low, part.high]
        return f"[{shown(part.part)}]{times}"
    if isinstance(part, Until):
        return f"…{part.end}"
    if isinstance(part, Without):
        return f"!{part.text}!"
    assert part == AnyText()
    return "…"


def token(words):
    return f"«<{D}{words.replace(' ', BLANK)}{D}>»"


def dsml(word):
    bar = f"«{D}DSML{D}»"
    end = f"</{D}DSML{D}parameter>"
    return (
        f"«<{D}DSML{D}{word}>»\n",
        f'(<{bar}invoke name="f">\n'
        f'<{bar}parameter name="a" string="true">…{end}\n'
        f'[<{bar}parameter name="n" string="false"><integer></{bar}parameter>\n]?'
        f'[<{bar}parameter name="e" string="true">(x|y){end}\n]?'
        f"</{bar}invoke>\n)",
        "",
        f"«</{D}DSML{D}{word}>»",
    )


def gemma(opening, closing, quote):
    call = f"(«{opening}»call:f{{a:«{quote}»…{quote}[,n:<integer>]?[,e:«{quote}»(x|y){quote}]?}}"
    return "", f"{call}«{closing}»)", "", ""


def coder(tag, line):
    return (
        "",
        f"(«<{tag}>»\n<function=f>\n<parameter=a>{line}…{line}</parameter>\n"
        f"[<parameter=n>{line}<integer>{line}</parameter>\n]?"
        f"[<parameter=e>{line}(x|y){line}</parameter>\n]?</function>\n«</{tag}>»)",
        "\n",
        "",
    )


def array(opening, closing):
    return f"«{opening}»[", '({"name": "f", "arguments": <object>})', ", ", f"]{closing}"


LFM2 = (
    "«<|tool_call_start|>»[",
    "(f(a=<string>[,n=<integer>]?[,e=<any>]?))",
    ", ",
    "]«<|tool_call_end|>»",
)
# {family: before the first call, a call of f, between two, after the last}
SHAPES = {
    "dsml function_calls": dsml("function_calls"),
    "dsml tool_calls": dsml("tool_calls"),
    "deepseek": (
        token("tool calls begin"),
        f"({token('tool call begin')}f{token('tool sep')}<object>{token('tool call end')})",
        "",
        token("tool calls end"),
    ),
    "kimi": (
        "«<|tool_calls_section_begin|>»",
        "(«<|tool_call_begin|>»functions.f:/[0-9]{1,3}/«<|tool_call_argument_begin|>»<object>"
        "«<|tool_call_end|>»)",
        "",
        "«<|tool_calls_section_end|>»",
    ),
    "minimax": (
        "«<minimax:tool_call>»\n",
        '(<invoke name="f">\n<parameter name="a">…</parameter>\n'
        '[<parameter name="n"><integer></parameter>\n]?'
        '[<parameter name="e">(x|y)</parameter>\n]?</invoke>\n)',
        "",
        "«</minimax:tool_call>»",
    ),
    "glm": (
        "",
        "(«<tool_call>»f\n«<arg_key>»a«</arg_key>»\n«<arg_value>»…</arg_value>\n"
        "[«<arg_key>»n«</arg_key>»\n«<arg_value>»<integer>«</arg_value>»\n]?"
        "[«<arg_key>»e«</arg_key>»\n«<arg_value>»(x|y)</arg_value>\n]?«</tool_call>»)",
        "\n",
        "",
    ),
    "qwen_coder": coder("tool_call", "\n"),
    "seed": coder("seed:tool_call", ""),
    "gemma": gemma("<|tool_call>", "<tool_call|>", '<|"|>'),
    "functiongemma": gemma("<start_function_call>", "<end_function_call>", "<escape>"),
    "mistral": ("", "(«[TOOL_CALLS]»f«[ARGS]»<object>)", "", ""),
    "mistral array": array("[TOOL_CALLS]", ""),
    "nemotron": array("<TOOLCALL>", "«</TOOLCALL>»"),
    "apriel": array("<tool_calls>", "«</tool_calls>»"),
    "hermes": (
        "",
        '(«<tool_call>»\n{"name": "f", "arguments": <object>}\n«</tool_call>»)',
        "\n",
        "",
    ),
    "lfm2": LFM2,
    "lfm2 listed": LFM2,
}
each_shape = pytest.mark.parametrize("name", SHAPES)


def calls(name, tools, max_calls=None):
    family = FAMILY[name]
    return shown(family.shape.calls(tools, max_calls, family.markers))


@each_shape
def test_calls_are_written_with_what_stands_before_between_and_after_them(name):
    before, call, between, after = SHAPES[name]
    assert calls(name, {"f": TOOL}) == f"{before}{call}[{between}{call}]*{after}"
    assert calls(name, {"f": TOOL}, 2) == f"{before}{call}[{between}{call}]*{after}"
    assert calls(name, {"f": TOOL}, 1) == f"{before}{call}{after}"


def test_a_family_of_one_call_an_answer_writes_one():
    assert calls("llama", {"f": TOOL}) == '({"name": "f", "parameters": <object>})'
    assert calls("harmony", {"f": TOOL}) == (
        "(«<|channel|>»commentary to=functions.f «<|constrain|>»json«<|message|>»<object>)"
    )


def test_every_family_is_here():
    assert {*SHAPES, "llama", "harmony"} == set(FAMILY)
    assert [name for name in FAMILY if FAMILY[name].reads_all] == ["harmony"]
    assert [name for name in FAMILY if FAMILY[name].show] == ["lfm2 listed"]


def test_one_of_several_tools_is_called_and_a_tool_without_a_schema_takes_any_object():
    assert calls("mistral", {"f": TOOL, "g": None}, 1) == (
        "(«[TOOL_CALLS]»f«[ARGS]»<object>|«[TOOL_CALLS]»g«[ARGS]»<object>)"
    )
    assert calls("lfm2", {"g": None}, 1) == "«<|tool_call_start|>»[(g())]«<|tool_call_end|>»"
    assert calls("glm", {"g": {}}, 1) == "(«<tool_call>»g\n«</tool_call>»)"


def test_words_may_come_before_calls_that_begin_with_a_mark():
    family = FAMILY["mistral"]
    free = shown(family.shape.freely({"g": None}, 1, family.markers))
    assert free == "(![TOOL_CALLS]!|…[TOOL_CALLS](g«[ARGS]»<object>))"
    family = FAMILY["nemotron"]
    free = shown(family.shape.freely({"g": None}, 1, family.markers))
    call = '({"name": "g", "arguments": <object>})'
    assert free == f"(!<TOOLCALL>!|…<TOOLCALL>[{call}]«</TOOLCALL>»)"
    family = FAMILY["llama"]
    free = shown(family.shape.freely({"g": None}, 1, family.markers))
    assert free == '(({"name": "g", "parameters": <object>})|/\\s*[^\\s{]/…|)'


@pytest.mark.parametrize("name", ["gemma", "lfm2"])
def test_of_arguments_in_a_list_the_required_come_first_and_one_at_least(name):
    tool = {"properties": {"o": {"type": "integer"}, "p": {"type": "null"}}, "required": ["p"]}
    mark = {"gemma": ":", "lfm2": "="}[name]
    assert f"p{mark}<null>[,o{mark}<integer>]?" in calls(name, {"f": tool})
    tool["required"] = []
    assert f"o{mark}<integer>[,p{mark}<null>]?" in calls(name, {"f": tool})
    tool["required"] = ["o", "p"]
    assert f"o{mark}<integer>,p{mark}<null>" in calls(name, {"f": tool})


def constraint_of(name, asked=None, is_forced=False, is_strict=False):
    family = FAMILY[name]
    made = ToolGrammar(family.shape, family.markers, {"g": None}, 1, is_forced, is_strict)
    return made.constraint(asked)


def test_a_call_is_forced_or_may_stand_instead_of_a_format_or_is_held_to_where_strict():
    call = "(«[TOOL_CALLS]»g«[ARGS]»<object>)"
    forced = constraint_of("mistral", is_forced=True)
    assert (shown(forced.part), forced.place) == (call, "tools")
    either = constraint_of("mistral", Constraint(Text("ab"), "response_format"))
    assert (shown(either.part), either.place) == (f"({call}|ab)", "response_format")
    strict = constraint_of("mistral", is_strict=True)
    assert (shown(strict.part)[:16], strict.place) == ("(![TOOL_CALLS]!|", "tools")
    assert constraint_of("mistral") is None


STRING_BOUNDS = [
    ("enum", {"type": ["string", "integer"], "enum": ["a", 1]}),
    ("enum", {"enum": ["a", None]}),
    ("enum", {"anyOf": [{"type": "string", "enum": ["a"], "maxLength": 3}, {"type": "null"}]}),
    ("pattern", {"pattern": "a", "anyOf": [{"type": "string"}, {"type": "null"}]}),
    ("anyOf", {"type": "string", "maxLength": 3, "anyOf": [{"pattern": "a"}, {"pattern": "b"}]}),
]


@pytest.mark.parametrize("name", ["glm", "qwen_coder", "minimax", "gemma", "dsml tool_calls"])
@pytest.mark.parametrize(("bound", "schema"), STRING_BOUNDS, ids=str)
def test_a_string_between_tags_that_is_bounded_in_odd_ways_is_refused(name, bound, schema):
    with pytest.raises(RequestError) as caught:
        calls(name, {"f": {"properties": {"key": schema}}})
    assert caught.value.message == (
        f"argument 'key' of a tool: {bound} of a string cannot be kept to"
        " in the way that this model writes calls"
    )
    assert caught.value.param == "tools"


@pytest.mark.parametrize(
    ("schema", "written"),
    [
        ({"type": "string"}, "…</arg_value>\n"),
        ({"const": "x"}, "(x)</arg_value>\n"),
        ({"type": "string", "enum": ["x"]}, "(x)</arg_value>\n"),
        ({"type": ["null", "string"]}, "…</arg_value>\n"),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "…</arg_value>\n"),
        ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, "…</arg_value>\n"),
        ({"type": "string", "maxLength": 3}, "((!</arg_value>!&/[^]{0,3}/))«</arg_value>\n»"),
        ({"type": ["string", "null"], "pattern": "a"}, "((!</arg_value>!&~a~))«</arg_value>\n»"),
        (
            {"anyOf": [{"type": "string", "minLength": 2}, {"type": "null"}]},
            "((!</arg_value>!&/[^]{2,}/))«</arg_value>\n»",
        ),
        ({"anyOf": [{"type": "integer"}]}, "<any>«</arg_value>»\n"),
        ({"type": "object"}, "<object>«</arg_value>»\n"),
        ({"const": 5}, "<any>«</arg_value>»\n"),
        ({"enum": [1, 2]}, "<any>«</arg_value>»\n"),
        ({}, "<any>«</arg_value>»\n"),
    ],
)
def test_a_value_that_may_be_a_string_stands_as_text_and_any_other_as_json(schema, written):
    tool = {"properties": {"key": schema}, "required": ["key"]}
    before = "(«<tool_call>»f\n«<arg_key>»key«</arg_key>»\n«<arg_value>»"
    assert calls("glm", {"f": tool}, 1) == before + written + "«</tool_call>»)"


@pytest.mark.parametrize("schema", [{"type": "object"}, {"type": "array"}, {"enum": [1]}, {}])
def test_gemma_holds_no_values_that_its_marks_cannot_write(schema):
    with pytest.raises(RequestError) as caught:
        calls("gemma", {"f": {"properties": {"key": schema}}})
    expected = "argument 'key' of a tool cannot be held to its schema by this model"
    assert (caught.value.message, caught.value.param) == (expected, "tools")


@pytest.mark.parametrize("kind", ["integer", "number", "boolean", "null"])
def test_gemma_writes_numbers_and_words_bare(kind):
    tool = {"properties": {"key": {"type": kind}}}
    assert f"{{key:<{kind}>}}" in calls("gemma", {"f": tool})


def test_a_schema_that_names_no_properties_has_no_arguments():
    for schema in (None, [], {"properties": []}, {"properties": None}, {}):
        assert properties(schema) == []


def test_definitions_reach_the_schema_of_each_argument():
    schema = {
        "properties": {"a": {"$ref": "#/$defs/A"}, "b": {"$ref": "#/definitions/B"}},
        "required": ["b"],
        "$defs": {"A": {"type": "string"}},
        "definitions": {"B": {"type": "null"}},
    }
    shared = {"$defs": schema["$defs"], "definitions": schema["definitions"]}
    assert properties(schema) == [
        ("a", JsonSchema({**shared, "type": "string"}), False),
        ("b", JsonSchema({**shared, "type": "null"}), True),
    ]


def test_references_are_followed_four_times():
    chain = {f"D{i}": {"$ref": f"#/$defs/D{i + 1}"} for i in range(9)}
    chain["D4"] = {"type": "null"}
    assert resolved({"$defs": chain}, {"$ref": "#/$defs/D1"}) == {"type": "null"}
    assert resolved({"$defs": chain}, {"$ref": "#/$defs/D0"}) == {"$ref": "#/$defs/D4"}
    assert resolved({}, {"$ref": "#/$defs/D0"}) == {}
    assert resolved({}, {"$ref": 5}) == {"$ref": 5}
    assert resolved({}, None) == {}


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"enum": ["a", 1, None, True, 1.5, [], {}]},
         {"string", "integer", "number", "null", "boolean", "array", "object"}),
        ({"enum": [1.5]}, {"number"}),
        ({"const": 2}, {"integer", "number"}),
        ({"const": None}, {"null"}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"string", "null"}),
        ({"oneOf": [{"type": "string"}, {"const": 1}]}, {"string", "integer", "number"}),
        ({"anyOf": [{"type": "string"}, {}]}, None),
        ({"anyOf": "x"}, None),
        ({}, None),
        (5, None),
    ],
)  # fmt: skip
def test_the_types_of_a_parameter_are_what_its_schema_says(schema, types):
    assert schema_types({"properties": {"key": schema}}, "key") == types


def test_types_are_looked_for_in_options_four_deep():
    def within(depth):
        schema = {"type": "string"}
        for _ in range(depth - 1):
            schema = {"anyOf": [schema]}
        return schema_types({"properties": {"key": schema}}, "key")

    assert within(4) == {"string"}
    assert within(5) is None


@pytest.mark.parametrize("schema", [None, [], {}, {"properties": None}, {"properties": {"b": {}}}])
def test_the_types_of_a_parameter_that_no_schema_has_are_unknown(schema):
    assert schema_types(schema, "key") is None


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        ("5", {"integer"}, 5),
        (" 5\n", {"integer"}, 5),
        ("5", {"number"}, 5),
        ("5.5", {"integer"}, "5.5"),
        ("5.5", {"number"}, 5.5),
        ("true", {"boolean"}, True),
        ("True", {"boolean"}, True),
        ("False", None, False),
        ("None", {"null"}, None),
        ("None", {"integer"}, "None"),
        ("true", {"integer"}, "true"),
        ("[1]", {"array"}, [1]),
        ('{"a": 1}', {"object"}, {"a": 1}),
        ('{"a": 1}', {"array", "string"}, '{"a": 1}'),
        ('"a"', {"string", "null"}, '"a"'),
        ('"a"', None, '"a"'),
        ("null", {"null", "string"}, None),
        ("word", None, "word"),
        (" word ", {"integer"}, " word "),
        ("", None, ""),
        ("5", None, 5),
    ],
)
def test_a_text_becomes_a_value_of_one_of_the_types_or_stays(text, types, value):
    found = typed(text, types)
    assert (found, type(found)) == (value, type(value))
