"""What a request says its answer must be: what comes of it, and each refusal word by word."""

import pytest

from marlin.errors import RequestError
from marlin.server.api.names import CHAT, MAX_IGNORED, Names
from marlin.server.api.openai_tools import parse_arguments, parse_tools
from marlin.server.api.output_format import parse_output, response_format
from marlin.text.grammar.constraint import Constraint, Ebnf, Either, JsonSchema, Regex, Text

SCHEMA = {"type": "object", "properties": {}}


def structured(**given):
    return {"structured_outputs": given}


@pytest.mark.parametrize(
    ("body", "constraint"),
    [
        ({}, None),
        ({"response_format": None}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"structured_outputs": None}, None),
        ({"response_format": {"type": "json_object"}},
         Constraint(JsonSchema({"type": "object"}), "response_format")),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
         Constraint(JsonSchema(SCHEMA), "response_format.json_schema.schema")),
        ({"response_format": {"type": "json_schema", "json_schema": {
            "schema": True, "strict": False, "name": "n"}}},
         Constraint(JsonSchema(True), "response_format.json_schema.schema")),
        (structured(json=SCHEMA), Constraint(JsonSchema(SCHEMA), "structured_outputs.json")),
        (structured(json='{"type": "null"}'),
         Constraint(JsonSchema({"type": "null"}), "structured_outputs.json")),
        (structured(json_object=True, regex=None, choice=False),
         Constraint(JsonSchema({"type": "object"}), "structured_outputs.json_object")),
        (structured(regex="a+"), Constraint(Regex("a+"), "structured_outputs.regex")),
        (structured(grammar="root ::= 'a'"),
         Constraint(Ebnf("root ::= 'a'"), "structured_outputs.grammar")),
        (structured(choice=["a", "b"]),
         Constraint(Either((Text("a"), Text("b"))), "structured_outputs.choice")),
    ],
)  # fmt: skip
def test_what_an_answer_must_be_is_a_part_of_a_grammar_and_its_place(body, constraint):
    assert parse_output(body) == constraint


def test_a_flat_format_is_that_of_the_responses_api():
    flat = {"type": "json_schema", "name": "n", "schema": SCHEMA}
    found = response_format(flat, "text.format", is_flat=True)
    assert found == Constraint(JsonSchema(SCHEMA), "text.format.schema")


def test_of_choices_there_may_be_1024():
    assert len(parse_output(structured(choice=["a"] * 1024)).part.parts) == 1024


JSON = "response_format.json_schema"
ONE = "must have one of json, json_object, regex, choice, grammar, got"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"response_format": 5}, "response_format", "must be an object, got an integer"),
        ({"response_format": {"type": "xml"}}, "response_format.type",
         'must be one of text, json_object, json_schema, got "xml"'),
        ({"response_format": {"type": "json_schema"}}, JSON, "must be an object, got null"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, f"{JSON}.schema",
         "must be a schema, an object, got null"),
        ({"response_format": {"type": "json_schema", "json_schema": {"strict": 5}}},
         f"{JSON}.strict", "must be true or false, got 5"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": 5}}},
         f"{JSON}.name", "must be a string, got 5"),
        (structured(), "structured_outputs", f"{ONE} 0"),
        (structured(regex="a", json=SCHEMA), "structured_outputs", f"{ONE} 2"),
        (structured(json=5), "structured_outputs.json",
         "must be a schema, an object, got an integer"),
        (structured(json="{"), "structured_outputs.json", "is "),
        (structured(json_object=1), "structured_outputs.json_object",
         "must be true or false, got an integer"),
        (structured(choice=[]), "structured_outputs.choice",
         "must be an array of 1 to 1024 strings"),
        (structured(choice=["a"] * 1025), "structured_outputs.choice",
         "must be an array of 1 to 1024 strings"),
        (structured(choice="a"), "structured_outputs.choice",
         "must be an array of 1 to 1024 strings"),
        (structured(choice=["a", 5]), "structured_outputs.choice[1]",
         "must be a string, got an integer"),
        (structured(regex=5), "structured_outputs.regex", "must be a string, got an integer"),
        (structured(grammar=[1]), "structured_outputs.grammar",
         "must be a string, got an array"),
        ({"response_format": {"type": "json_object"}, **structured(regex="a")},
         "structured_outputs", "and response_format both say what the answer is"),
    ],
)  # fmt: skip
def test_what_no_answer_can_be_is_refused_by_name(body, param, message):
    with pytest.raises(RequestError) as caught:
        parse_output(body)
    assert caught.value.param == param
    assert caught.value.message.startswith(f"{param} {message}")


def tool(name, **more):
    return {"type": "function", "function": {"name": name, **more}}


F, G = tool("f"), tool("g", strict=True, parameters={"type": "object"}, description="D")


def named(name):
    return {"type": "function", "function": {"name": name}}


def allowed(mode, *names):
    return {
        "type": "allowed_tools",
        "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]},
    }


@pytest.mark.parametrize(
    ("body", "offered", "must_call", "max_calls", "is_strict"),
    [
        ({}, "", (), None, False),
        ({"tools": []}, "", (), None, False),
        ({"tools": [F]}, "f", (), None, False),
        ({"tools": [F, G]}, "fg", (), None, True),
        ({"tools": [F], "tool_choice": "auto"}, "f", (), None, False),
        ({"tools": [G], "tool_choice": "none"}, "", (), None, False),
        ({"tools": [F, G], "tool_choice": "required"}, "fg", ("f", "g"), None, True),
        ({"tools": [F, G], "tool_choice": named("g")}, "fg", ("g",), 1, True),
        ({"tools": [F, G], "tool_choice": allowed("auto", "f", "f")}, "f", (), None, True),
        ({"tools": [F, G], "tool_choice": allowed("required", "g")}, "g", ("g",), None, True),
        ({"tools": [F], "parallel_tool_calls": False}, "f", (), 1, False),
        ({"parallel_tool_calls": False}, "", (), None, False),
        ({"functions": [F["function"]]}, "f", (), 1, False),
        ({"functions": [F["function"]], "parallel_tool_calls": True}, "f", (), None, False),
        ({"functions": [F["function"]], "function_call": {"name": "f"}}, "f", ("f",), 1, False),
        ({"functions": [F["function"]], "function_call": "none"}, "", (), None, False),
        ({"tools": [F], "tool_choice": "none", "function_call": "auto"}, "", (), None, False),
    ],
)
def test_tools_and_a_choice_come_to_what_may_and_must_be_called(
    body, offered, must_call, max_calls, is_strict
):
    use = parse_tools(body)
    assert [tool["function"]["name"] for tool in use.offered] == list(offered)
    assert (use.must_call, use.max_calls, use.is_strict) == (must_call, max_calls, is_strict)


def test_what_templates_are_told_of_a_tool_is_its_name_words_and_parameters():
    offered = parse_tools({"tools": [F, G]}).offered
    nothing = {"type": "object", "properties": {}}
    functions = [
        {"name": "f", "description": "", "parameters": nothing},
        {"name": "g", "description": "D", "parameters": {"type": "object"}},
    ]
    assert offered == [{"type": "function", "function": function} for function in functions]


LONGEST = "a" * 128


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"tools": 5}, "tools", "must be an array, got 5"),
        ({"tools": [5]}, "tools[0]", "must be an object, got an integer"),
        ({"tools": [{"type": "x"}]}, "tools[0].type", 'must be "function", got "x"'),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "must be an object, got null"),
        ({"tools": [tool(5)]}, "tools[0].function.name", "must be a string, got 5"),
        ({"tools": [tool("a b")]}, "tools[0].function.name",
         'must be letters, digits, _ and -, got "a b"'),
        ({"tools": [tool(LONGEST + "a")]}, "tools[0].function.name", "must be letters, digits"),
        ({"tools": [tool("f", strict=5)]}, "tools[0].function.strict",
         "must be true or false, got 5"),
        ({"tools": [tool("f", description=5)]}, "tools[0].function.description",
         "must be a string, got 5"),
        ({"tools": [tool("f", parameters=5)]}, "tools[0].function.parameters",
         "must be an object, got 5"),
        ({"tools": [F, F]}, "tools", 'has more than one tool of the name "f"'),
        ({"functions": [5]}, "functions[0]", "must be an object, got an integer"),
        ({"tool_choice": "required"}, "tool_choice", "asks for a call, but there are no tools"),
        ({"tools": [F], "tool_choice": "must"}, "tool_choice",
         'must be none, auto or required, name a tool, or be allowed_tools, got "must"'),
        ({"tools": [F], "tool_choice": named("g")}, "tool_choice",
         'names "g", which is not among the tools'),
        ({"tools": [F], "tool_choice": {"type": "function"}}, "tool_choice",
         "must name functions"),
        ({"tools": [F], "tool_choice": named(5)}, "tool_choice", "must name functions"),
        ({"tools": [F], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools",
         "must be an object, got null"),
        ({"tools": [F], "tool_choice": allowed("never", "f")}, "tool_choice.allowed_tools.mode",
         'must be one of auto, required, got "never"'),
        ({"tools": [F], "tool_choice": allowed("required")}, "tool_choice",
         "asks for a call, but there are no tools"),
        ({"tools": [F], "tool_choice": {"type": "allowed_tools", "allowed_tools": {
            "mode": "auto", "tools": [5]}}}, "tool_choice.allowed_tools", "must name functions"),
    ],
)  # fmt: skip
def test_tools_that_cannot_be_offered_are_refused_by_name(body, param, message):
    with pytest.raises(RequestError) as caught:
        parse_tools(body)
    assert caught.value.param == param
    assert caught.value.message.startswith(f"{param} {message}")


def test_the_longest_name_of_a_tool_is_taken():
    for name in (LONGEST, "A.b:c-d_9"):
        assert parse_tools({"tools": [tool(name)]}).offered[0]["function"]["name"] == name


@pytest.mark.parametrize(
    ("value", "arguments"),
    [({"a": 1}, {"a": 1}), ('{"a": 1}', {"a": 1}), ("", {}), (" \n", {}), ("[1]", "[1]"),
     ("x", "x"), ("null", "null")],
)  # fmt: skip
def test_arguments_are_an_object_or_stay_as_they_are(value, arguments):
    assert parse_arguments(value, "p") == arguments


INNER = Names("inner field", ("type", "x"), type="a")
TABLE = Names(
    *("thing", ("one", "inner"), {"taken": str}, {"limited": (1, None)}, {"inner": INNER}),
)


@pytest.mark.parametrize(
    "given",
    [
        {"one": 5, "taken": "a", "limited": 1},
        {"one": None, "taken": None, "limited": None},
        {"inner": {"type": "a", "x": 1}},
        {"inner": [{"type": "a", "x": 1}, {"type": "b", "y": 1}, 5]},
        {"inner": "text"},
    ],
)
def test_names_that_are_known_pass(given):
    ignored = []
    TABLE.check(given, ignored)
    TABLE.check(given)
    assert ignored == []


@pytest.mark.parametrize(
    ("given", "param", "message"),
    [
        ({"taken": 5}, "taken", "taken must be a string, got 5"),
        ({"limited": 2}, "limited", "limited is not supported by this server, got 2"),
        ({"limited": True}, "limited", "limited is not supported by this server, got true"),
        ({"unknown": None}, "unknown", "unknown is not a known thing"),
        ({"takn": 5}, "takn", "takn is not a known thing; did you mean taken?"),
        ({"limit": 5}, "limit", "limit is not a known thing; did you mean limited?"),
        ({"inner": {"type": "a", "z": 1}}, "inner.z", "inner.z is not a known inner field"),
        ({"inner": [{}, {"type": "a", "z": 1}]}, "inner[1].z",
         "inner[1].z is not a known inner field"),
    ],
)  # fmt: skip
def test_a_name_or_value_that_is_not_known_is_refused_with_its_place(given, param, message):
    with pytest.raises(RequestError) as caught:
        TABLE.check(given)
    assert (caught.value.param, caught.value.message) == (param, message)


def test_a_name_is_compared_up_to_64_characters():
    long = Names("thing", ("a" * 64,))
    for size, is_compared in ((63, True), (64, True), (65, False)):
        with pytest.raises(RequestError) as caught:
            long.check({"a" * (size - 1) + "b": 1})
        assert ("did you mean" in caught.value.message) is is_compared


def test_of_names_that_are_ignored_twenty_are_told():
    ignored = []
    TABLE.check({f"n{i}": 1 for i in range(25)}, ignored, "place.")
    assert ignored == [f"place.n{i}" for i in range(20)] and MAX_IGNORED == 20
    assert TABLE.known == {"one", "inner", "taken", "limited"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"x": 1}, "x is not a known parameter of this endpoint"),
        ({"response_format": {"x": 1}},
         "response_format.x is not a known field of response_format"),
        ({"response_format": {"json_schema": {"x": 1}}},
         "response_format.json_schema.x is not a known field of a schema"),
        ({"structured_outputs": {"x": 1}},
         "structured_outputs.x is not a known field of structured_outputs"),
        ({"stream_options": {"x": 1}}, "stream_options.x is not a known stream option"),
        ({"reasoning": {"x": 1}}, "reasoning.x is not a known field of reasoning"),
        ({"messages": [{"x": 1}]}, "messages[0].x is not a known field of a message"),
        ({"messages": [{"content": [{"type": "text", "x": 1}]}]},
         "messages[0].content[0].x is not a known field of a text part"),
        ({"messages": [{"tool_calls": [{"x": 1}]}]},
         "messages[0].tool_calls[0].x is not a known field of a tool call"),
        ({"messages": [{"tool_calls": [{"function": {"x": 1}}]}]},
         "messages[0].tool_calls[0].function.x is not a known field of a call"),
        ({"messages": [{"function_call": {"x": 1}}]},
         "messages[0].function_call.x is not a known field of a call"),
        ({"tools": [{"type": "function", "x": 1}]}, "tools[0].x is not a known field of a tool"),
        ({"tools": [{"type": "function", "function": {"x": 1}}]},
         "tools[0].function.x is not a known field of a function"),
        ({"functions": [{"x": 1}]}, "functions[0].x is not a known field of a function"),
    ],
)  # fmt: skip
def test_a_name_that_chat_does_not_know_is_told_by_what_it_is_not(body, said):
    with pytest.raises(RequestError) as caught:
        CHAT.check(body)
    assert caught.value.message == said
