"""Grammars of calls: what templates write of a call is in them, and what they let a model write
reads back as calls that the schemas allow."""

import json
import random
import re
from datetime import date

import numpy as np
import pytest
from json_texts import END, byte_vocabulary

from marlin.device.grammar import DEAD, START, Automaton
from marlin.errors import RequestError
from marlin.text.answer import AnswerForm, AnswerReader
from marlin.text.grammar.constraint import Constraint, JsonSchema
from marlin.text.tool_calls.families import FAMILIES
from marlin.text.tool_calls.shape import ToolGrammar

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"$ref": "#/$defs/Kind"},
        "days": {"type": "integer", "minimum": 1, "maximum": 99},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["kind", "days"],
    "additionalProperties": False,
    "$defs": {"Kind": {"type": "string", "enum": ["sun", "rain"]}},
}
TOOLS = {"weather": SCHEMA, "now": {"type": "object", "properties": {}}}
SOME = [family for family in FAMILIES if not family.reads_all]
each_family = pytest.mark.parametrize("family", SOME, ids=lambda family: family.name)


@pytest.fixture(scope="module")
def vocabulary():
    return byte_vocabulary()


def automaton_of(vocabulary, family, asked=None, tools=TOOLS, **changes):
    options = {"max_calls": None, "is_forced": True, "is_strict": False, **changes}
    made = ToolGrammar(family.shape, family.markers, tools, **options)
    return Automaton(vocabulary, made.constraint(asked).compiled())


def takes(automaton, text):
    position = automaton.advance(START, text.encode())
    return position != DEAD and automaton.accepts(position)


def written(automaton, seed, most=3000):
    """An answer of a model that chooses at random, but says little where it may say anything."""
    chooser, position, text = random.Random(seed), START, bytearray()
    mask = np.zeros(END // 32 + 1, np.uint32)
    while len(text) < most:
        automaton.mask(position, mask)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: END + 1]
        allowed = np.flatnonzero(bits[:0xFF]).tolist()  # 0xFF begins special tokens
        if bits[END] and (not allowed or chooser.random() < 0.5):
            return bytes(text).decode()
        assert allowed, bytes(text)
        likely = [byte for byte in allowed if byte in b'<>"/}]|parmetc_value ' or byte > 0xEF]
        choice = chooser.choice(likely if likely and chooser.random() < 0.9 else allowed)
        text.append(choice)
        position = automaton.advance(position, bytes([choice]))
    return None


def calls_of(family, text):
    """[(name, arguments)] of an answer; all of them whole, and nothing beside them."""
    reader = AnswerReader(AnswerForm(None, family), TOOLS)
    parts = reader.push(text) + reader.finish(False)
    assert not [part for part in parts if part.kind == "content"], text
    names = [part.text for part in parts if part.kind == "call"]
    assert len([part for part in parts if part.kind == "called"]) == len(names), text
    arguments = [""] * len(names)
    for part in parts:
        if part.kind == "arguments":
            arguments[part.call] += part.text
    return [(name, json.loads(text)) for name, text in zip(names, arguments, strict=True)]


def test_a_call_that_must_come_is_one_of_the_tools_with_such_arguments(vocabulary):
    hermes = next(family for family in FAMILIES if family.name == "hermes")
    automaton = automaton_of(vocabulary, hermes)
    call = '<tool_call>\n{"name": "weather", "arguments": {"kind": "sun", "days": 3}}\n</tool_call>'
    assert takes(automaton, call)
    assert takes(automaton, f"{call}\n{call}")
    assert not takes(automaton, "Looking.")
    assert not takes(automaton, call.replace("weather", "other"))
    assert not takes(automaton, call.replace("sun", "snow"))
    assert not takes(automaton, call.replace("</tool_call>", ""))
    assert not takes(automaton_of(vocabulary, hermes, max_calls=1), f"{call}\n{call}")


def test_an_answer_on_channels_is_held_to_what_is_asked_after_its_thoughts(vocabulary):
    harmony = next(family for family in FAMILIES if family.name == "harmony")
    reader = AnswerReader(AnswerForm(None, harmony), {})
    asked, before = JsonSchema({"type": "integer"}), reader.may_begin_with()
    plain = Constraint(reader.content(asked), "part").compiled(before)
    thought = "<|channel|>analysis<|message|>Hm, <3.<|end|><|start|>assistant"
    final = "<|channel|>final<|message|>"
    call = '<|channel|>commentary to=functions.now <|constrain|>json<|message|>{"a": 1}'
    given = harmony.shape, harmony.markers, TOOLS, None
    forced = ToolGrammar(*given, is_forced=True, is_strict=False).constraint(None)
    either = ToolGrammar(*given, is_forced=False, is_strict=True).constraint(None)
    grammars = [plain, forced.compiled(before), either.compiled(before)]
    for text, taken in (
        (f"{final}3", (True, False, True)),
        (f"{thought}{thought}{final}3", (True, False, True)),
        (f"{thought}{call}", (False, True, True)),
        (f"{final}three", (False, False, True)),
        (f"{thought}3", (False, False, False)),
        (f"{call[:-1]}", (False, False, False)),
    ):
        found = tuple(takes(Automaton(vocabulary, grammar), text) for grammar in grammars)
        assert found == taken, text


@each_family
def test_what_a_grammar_lets_a_model_write_reads_back_as_calls(vocabulary, family):
    tools = {**TOOLS, "weather": dict(SCHEMA, properties=dict(SCHEMA["properties"]))}
    if "gemma" in family.name:  # it has no way to say that one of two types is meant
        tools["weather"]["properties"].pop("note")
    automaton = automaton_of(vocabulary, family, tools=tools)
    answers = [text for seed in range(12) if (text := written(automaton, seed)) is not None]
    assert len(answers) >= 4
    names = set()
    for text in answers:
        found = calls_of(family, text)
        assert found, text
        for name, arguments in found:
            names.add(name)
            if name == "weather":
                assert arguments["kind"] in ("sun", "rain"), text
                assert 1 <= arguments["days"] <= 99, text
                assert set(arguments) <= {"kind", "days", "note"}
    assert names <= {"weather", "now"}


@each_family
def test_a_strict_tool_leaves_words_free_and_binds_calls(vocabulary, family):
    tools = {"now": TOOLS["now"]}
    automaton = automaton_of(vocabulary, family, tools=tools, is_forced=False, is_strict=True)
    assert takes(automaton, "") and takes(automaton, "It is < noon, said [he].\n")
    forced = automaton_of(vocabulary, family, tools=tools)
    call = next(text for seed in range(50) if (text := written(forced, seed)) is not None)
    assert takes(automaton, call)
    assert not takes(automaton, call.replace("now", "new"))
    if family.shape.between is not None:
        assert takes(automaton, f"I look. {call}")
        assert not takes(automaton, "I look. " + call.replace("now", "new"))


def test_an_answer_in_a_format_may_be_a_call_instead(vocabulary):
    hermes = next(family for family in FAMILIES if family.name == "hermes")
    asked = Constraint(JsonSchema({"type": "object", "properties": {"a": {"const": 1}}}), "format")
    automaton = automaton_of(vocabulary, hermes, asked, is_forced=False)
    assert takes(automaton, '{"a": 1}')
    assert takes(automaton, '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>')
    assert not takes(automaton, '{"a": 2}') and not takes(automaton, "Hello")


BOUNDED = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$", "maxLength": 6},
        "day": {"type": ["string", "null"], "format": "date"},
    },
    "required": ["code", "day"],
}


@pytest.mark.parametrize("name", ["glm", "qwen_coder", "minimax", "gemma", "dsml tool_calls"])
def test_a_string_between_tags_is_one_of_its_schema(vocabulary, name):
    family = next(family for family in FAMILIES if family.name == name)
    automaton = automaton_of(vocabulary, family, tools={"f": BOUNDED})
    answers = [text for seed in range(12) if (text := written(automaton, seed)) is not None]
    assert len(answers) >= 6
    for text in answers:
        reader = AnswerReader(AnswerForm(None, family), {"f": BOUNDED})
        parts = reader.push(text) + reader.finish(False)
        arguments = json.loads(
            "".join(p.text for p in parts if p.kind == "arguments" and not p.call)
        )
        assert re.fullmatch("[A-Z]{2}-[0-9]{1,3}", arguments["code"]), text
        assert date.fromisoformat(arguments["day"])
    first = answers[0]
    assert takes(automaton, first)
    code = re.search("[A-Z]{2}-[0-9]+", first)[0]
    for other in (code + "0000", code.lower(), "", f" {code}"):
        assert not takes(automaton, first.replace(code, other))


TRIP = {
    "type": "object",
    "properties": {
        "stops": {
            "type": "array", "minItems": 1, "maxItems": 2, "items": {"$ref": "#/$defs/stop"},
        },
        "note": {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]},
    },
    "required": ["stops", "note"],
    "$defs": {
        "stop": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "pattern": "^[A-Z][a-z]{1,4}$"},
                "on": {"type": "boolean"},
                "of": {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}},
            },
            "required": ["city"],
        }
    },
}  # fmt: skip
ODD_VALUES = (
    {"type": "object"},
    {"type": "object", "properties": {}, "required": True},
    {"type": "object", "properties": {}, "required": ["a"]},
    {"type": "array", "items": {"type": "object", "properties": {"a": True}}},
    {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    {"type": "array", "items": {"type": "integer"}, "minItems": "1"},
    {"$ref": "#/properties/a"},
)


@pytest.mark.parametrize("name", ["gemma", "functiongemma"])
def test_gemmas_values_within_values_are_as_their_schemas_say(vocabulary, name):
    family = next(family for family in FAMILIES if family.name == name)
    automaton = automaton_of(vocabulary, family, tools={"f": TRIP})
    answers = [text for seed in range(16) if (text := written(automaton, seed)) is not None]
    assert len(answers) >= 4
    for text in answers:
        reader = AnswerReader(AnswerForm(None, family), {"f": TRIP})
        parts = reader.push(text) + reader.finish(False)
        first_call = [p.text for p in parts if p.kind == "arguments" and p.call == 0]
        arguments = json.loads("".join(first_call))
        assert 1 <= len(arguments["stops"]) <= 2, text
        assert arguments["note"] is None or all(type(n) is int for n in arguments["note"])
        for stop in arguments["stops"]:
            assert re.fullmatch("[A-Z][a-z]{1,4}", stop["city"]), text
            assert type(stop.get("on", True)) is bool
            assert stop.get("of", {}).get("n", 0) <= 9
    for schema in ODD_VALUES:
        with pytest.raises(RequestError, match="cannot be held to its schema"):
            automaton_of(vocabulary, family, tools={"f": {"properties": {"a": schema}}})
