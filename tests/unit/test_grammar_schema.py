"""JSON Schemas as automata: what they take, and what is refused by its pointer."""

import json
import re
import time
from fractions import Fraction
from itertools import count, product
from types import SimpleNamespace

import numpy as np
import pytest
from json_texts import Taker, byte_vocabulary

from marlin.device.grammar import DEAD, START, Vocabulary
from marlin.errors import DeviceError, RequestError
from marlin.text.grammar import automaton
from marlin.text.grammar.constraint import JsonSchema, compile_grammar

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def vocabulary():
    return byte_vocabulary()


def closed(**properties):
    return {"type": "object", "properties": properties, "additionalProperties": False}


INTEGER, STRING = {"type": "integer"}, {"type": "string"}
DRAFT_4 = "http://json-schema.org/draft-04/schema#"
TREE = {"$defs": {"t": closed(v=INTEGER, c={"type": "array", "items": {"$ref": "#/$defs/t"}})}}
# (schema, texts that it takes, texts that it does not)
CASES = [
    ({"type": "null"}, ["null"], ["nul", " null", "null ", "0"]),
    ({"type": "boolean"}, ["true", "false"], ["True", "tru"]),
    (INTEGER, ["0", "-7", "120"], ["01", "1.0", "1e2", "+1", "-"]),
    ({"type": "number"}, ["0", "-0.5", "1e9", "1.25E-3"], ["01", ".5", "1.", "1e", "1e999"]),
    (STRING, ['""', '"a b"', '"ä\\n\\u00e4\\ud83d\\ude00"'], ['"', '"\n"', '"\\x"', '"\\ud83d"']),
    ({"enum": [1, "a", None, [1, {"b": 2}]]}, ["1", '"a"', "null", '[1, {"b": 2}]'], ["2", '"b"']),
    ({"const": {"a": 1.0}}, ['{"a": 1}'], ['{"a":1}', "{}"]),
    ({"type": ["string", "null"], "enum": ["x", None, 3]}, ['"x"', "null"], ["3"]),
    ({"enum": ["a", "abc", "b"], "minLength": 2}, ['"abc"'], ['"a"', '"b"']),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"äö\\""'], ['"a"', '"abcd"']),
    ({"pattern": "^a", "maxLength": 2, "type": "string"}, ['"a"', '"ab"'], ['"b"', '"abc"', '""']),
    ({"type": "integer", "minimum": -5, "maximum": 112},
     ["-5", "-1", "0", "9", "10", "99", "112"], ["-6", "-10", "113", "200", "1000", "-0"]),
    ({"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 1000},
     ["10", "999", "500"], ["9", "1000", "0", "-10"]),
    ({"type": "integer", "minimum": 95}, ["95", "100", "123456789"], ["94", "9", "-95"]),
    ({"type": "integer", "maximum": -3}, ["-3", "-10"], ["-2", "3", "0"]),
    ({"type": "number", "minimum": -1.5, "exclusiveMaximum": 2.25},
     ["-1.5", "-1.49", "-0.7", "0", "2", "2.2", "2.249", "-1.50"],
     ["-1.51", "2.25", "2.250", "2.3", "3", "-2"]),
    ({"type": "number", "exclusiveMinimum": 0}, ["0.001", "1", "10.5"], ["0", "0.0", "-1", "0.00"]),
    ({"type": "number", "minimum": 0.5, "maximum": 0.75},
     ["0.5", "0.75", "0.6", "0.500"], ["0.4", "0.76", "0.751", "1", "0"]),
    ({"type": "integer", "multipleOf": 7}, ["0", "7", "-14", "693"], ["1", "15"]),
    ({"type": "number", "multipleOf": 0.25}, ["0.25", "1", "-3.5", "2.75"], ["0.3", "1.125"]),
    ({"type": "integer", "multipleOf": 5, "minimum": 12}, ["15", "100"], ["10", "16"]),
    ({"type": "array", "items": INTEGER}, ["[]", "[1]", "[1, 2,3]"], ["[1,]", "[1,  2]", "[ 1]"]),
    ({"type": "array", "items": INTEGER, "minItems": 2, "maxItems": 3},
     ["[1, 2]", "[1, 2, 3]"], ["[]", "[1]", "[1, 2, 3, 4]"]),
    ({"type": "array", "prefixItems": [INTEGER, STRING], "items": False},
     ["[]", "[1]", '[1, "a"]'], ['["a"]', '[1, "a", 2]']),
    ({"type": "array", "items": [INTEGER], "additionalItems": STRING, "minItems": 2},
     ['[1, "a"]', '[1, "a", "b"]'], ["[1]", "[1, 2]"]),
    ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
    ({"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True, "minItems": 1},
     ['["b", "a"]', '["a"]'], ["[]", '["a", "a"]', '["a", "b", "a"]']),
    (closed(a=INTEGER, b=STRING), ["{}", '{"a": 1}', '{"a":1,"b":""}', '{"b": ""}'],
     ['{"b": "", "a": 1}', '{"c": 1}', '{"a": "x"}', '{"a": 1, "a": 1}', '{"a": 1,}']),
    (closed(a=INTEGER, b=INTEGER, c=INTEGER) | {"required": ["b"]},
     ['{"b": 1}', '{"a": 1, "b": 2, "c": 3}', '{"b": 1, "c": 2}'], ["{}", '{"a": 1, "c": 2}']),
    ({"type": "object", "properties": {"a": INTEGER}, "additionalProperties": STRING},
     ['{"a": 1}', '{"a": 1, "b": ""}', '{"x": "", "y": ""}'], ['{"a": ""}', '{"x": 1}']),
    ({"type": "object", "additionalProperties": INTEGER, "maxProperties": 2, "minProperties": 1},
     ['{"x": 1}', '{"x": 1, "y": 2}'], ["{}", '{"x": 1, "y": 2, "z": 3}']),
    (closed(a=INTEGER, b=INTEGER, c=INTEGER) | {"minProperties": 2, "maxProperties": 2},
     ['{"a": 1, "b": 2}', '{"b": 1, "c": 2}'], ['{"a": 1}', '{"a": 1, "b": 2, "c": 3}', "{}"]),
    ({"type": "object", "patternProperties": {"^x": INTEGER, "y$": {"minimum": 5}},
      "additionalProperties": False, "properties": {"xa": {"maximum": 9}}},
     ['{"xa": 3}', '{"xb": 1}', '{"xy": 7}', '{"ay": "s"}'],
     ['{"xa": 10}', '{"xa": 1.5}', '{"xy": 4}', '{"z": 1}', '{"xb": "s"}']),
    ({"type": "object", "propertyNames": {"maxLength": 2}, "additionalProperties": INTEGER},
     ['{"ab": 1}', "{}"], ['{"abc": 1}']),
    ({"type": "object", "required": ["z"], "additionalProperties": INTEGER}, ['{"z": 1}'], ["{}"]),
    ({"anyOf": [INTEGER, {"type": "array", "items": INTEGER}]}, ["1", "[1]"], ['"a"', '["a"]']),
    ({"type": "object", "properties": {"a": INTEGER, "b": INTEGER}, "additionalProperties": False,
      "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, ['{"a": 1}', '{"b": 1}'], ["{}"]),
    ({"oneOf": [closed(k={"const": "x"}, v=INTEGER) | {"required": ["k"]},
                closed(k={"const": "y"}, v=STRING) | {"required": ["k"]}]},
     ['{"k": "x", "v": 1}', '{"k": "y", "v": "s"}'], ['{"k": "x", "v": "s"}', '{"k": "z"}']),
    ({"oneOf": [{"type": "integer", "minimum": 5}, {"type": "integer", "maximum": 9}]},
     ["4", "10"], ["5", "7", "9"]),
    ({"type": "object", "additionalProperties": False, "properties": {"a": {}, "b": {}},
      "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
     ['{"a": 1}', '{"b": 1}'], ["{}", '{"a": 1, "b": 1}']),
    ({"allOf": [{"properties": {"a": INTEGER}, "required": ["a"]},
                {"type": "object", "properties": {"a": {"maximum": 5}, "b": STRING}}]},
     ['{"a": 5}', '{"a": 1, "b": ""}'], ["{}", '{"a": 6}', '{"a": 1, "b": 1}', "3"]),
    ({"not": {"type": ["string", "object", "array", "number"]}}, ["true", "null"], ["1", '""']),
    ({"type": "string", "not": {"enum": ["no", "nö"]}}, ['"n"', '"noo"'], ['"no"', '"nö"']),
    ({"if": {"type": "integer"}, "then": {"minimum": 3}, "else": {"type": "null"}},
     ["3", "null"], ["2", '"a"']),
    ({"type": "object", "dependentRequired": {"a": ["b"]}, "additionalProperties": False,
      "properties": {"a": {}, "b": {}}}, ["{}", '{"b": 1}', '{"a": 1, "b": 1}'], ['{"a": 1}']),
    ({"$ref": "#/$defs/t", **TREE}, ['{"v": 1, "c": [{}, {"c": []}]}'], ['{"c": [{"v": ""}]}']),
    ({"$defs": {"x": {"$anchor": "here", "const": 3}}, "$ref": "#here"}, ["3"], ["4"]),
    ({"$id": "http://a/b.json", "definitions": {"p~/q": {"const": 1}},
      "$ref": "b.json#/definitions/p~0~1q"}, ["1"], ["2"]),
    ({"oneOf": [{"type": "object", "properties": {name: STRING}, "required": [name],
                 "additionalProperties": False} for name in "ab"]},
     ['{"a": "x"}', '{"b": ""}'], ["{}", '{"a": "", "b": ""}', '{"c": ""}']),
    ({"$defs": {"l": {"anyOf": [{"const": 1}, {"const": 2}]}}, "$ref": "#/$defs/l/anyOf/1"},
     ["2"], ["1"]),
    ({"type": "string", "format": "date"}, ['"2024-02-29"', '"1999-12-31"'],
     ['"2023-02-29"', '"2024-13-01"', '"24-01-01"']),
    ({"type": "string", "format": "date-time"}, ['"2024-01-02T03:04:05Z"'], ['"2024-01-02 03:04"']),
    ({"type": "string", "format": "ipv6"}, ['"::1"', '"1:2:3:4:5:6:7:8"', '"fe80::1:2"'],
     ['"1::2::3"', '"12345::"', '":"']),
    ({"type": "string", "format": "uri-reference"}, ['"a/b:c"', '"//h/x?q"', '"http:a"', '""'],
     ['"://"', '"1:b"', '"a b"']),
    ({"type": "string", "format": "byte"}, ['"no base64"'], ["1"]),
    ({"$schema": DRAFT_4, "$ref": "#/definitions/a", "maximum": 2,
      "definitions": {"a": INTEGER}}, ["3"], ["1.5"]),
    ({"$ref": "#/$defs/a", "maximum": 2, "$defs": {"a": INTEGER}}, ["1"], ["3", "1.5"]),
    ({"$ref": "#/$defs/a", "$defs": {"a": closed(a=INTEGER) | {"additionalProperties": True,
      "unevaluatedProperties": False}}}, ['{"a": 1}', '{"b": 1}'], ['{"a": ""}']),
    ({"allOf": [{"properties": {"a": INTEGER}}], "unevaluatedProperties": False, "type": "object"},
     ['{"a": 1}', "{}"], ['{"b": 1}']),
    ({"type": "string", "format": "email"}, ['"a.b@example.org"'], ['"a@"', '"@b"', '"a b@c.d"']),
    ({"type": "string", "format": "uuid"}, ['"01234567-89ab-cdef-0123-456789ABCDEF"'], ['"0123"']),
    ({"type": "integer", "format": "int32"}, ["2147483647", "-2147483648"], ["2147483648"]),
    (True, ["1", '{"a": [null, "b"]}', "[]"], ["", " 1", "{a: 1}"]),
    ({"type": "object"}, ["{}", '{"a": {"b": 1}}'], ["[]", "1", '{"a": 1} ']),
    ({"title": "t", "default": 3, "x-order": 1, "markup": "m", **INTEGER}, ["3"], ["x"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "taken", "others"), CASES, ids=lambda case: json.dumps(case)[:60]
)
def test_a_schema_takes_what_satisfies_it(vocabulary, schema, taken, others):
    taker = Taker(JsonSchema(schema), vocabulary)
    assert [text for text in taken if not taker.takes(text)] == []
    assert [text for text in others if taker.takes(text)] == []


@pytest.mark.parametrize(
    ("schema", "fits"),
    [
        (INTEGER, lambda value: value % 1 == 0),
        ({"type": "number"}, lambda _value: True),
        ({"type": "integer", "multipleOf": 5}, lambda value: value % 5 == 0),
        ({"type": "number", "multipleOf": 0.5}, lambda value: value * 2 % 1 == 0),
        ({"type": "integer", "minimum": -9, "maximum": 50}, lambda value: -9 <= value <= 50),
    ],
    ids=lambda case: "" if callable(case) else json.dumps(case),
)
def test_of_all_short_texts_numbers_that_fit_are_taken(vocabulary, schema, fits):
    """And none beside; `/` and `:` are the bytes next to the digits."""
    taker = Taker(JsonSchema(schema), vocabulary)
    for size in (1, 2, 3):
        for text in map("".join, product("/0159:.-e", repeat=size)):
            is_whole = re.fullmatch("0|-?[1-9][0-9]*", text) is not None
            if taker.takes(text):
                assert fits(Fraction(repr(json.loads(text)))), text
            else:
                assert not (is_whole and fits(int(text))), text


REFUSED = [
    ({"properties": {"a": {"contains": {}}}}, "#/properties/a/contains"),
    ({"items": {"minLenght": 3}}, "#/items/minLenght"),
    ({"type": "strng"}, "#/type"),
    ({"minLength": -1}, "#/minLength"),
    ({"minLength": "3"}, "#/minLength"),
    ({"pattern": "(?=a)"}, "#/pattern"),
    ({"type": "string", "format": "colour"}, "#/format"),
    ({"$ref": "#/$defs/gone"}, "#/$ref"),
    ({"$ref": "http://elsewhere/x"}, "#/$ref"),
    ({"$defs": {"l": {"anyOf": [{}]}}, "$ref": "#/$defs/l/anyOf/1"}, "#/$ref"),
    ({"$defs": {"l": {"anyOf": [{}]}}, "$ref": "#/$defs/l/anyOf/x"}, "#/$ref"),
    ({"$ref": "#"}, "#"),
    ({"allOf": []}, "#/allOf"),
    ({"anyOf": [3]}, "#/anyOf/0"),
    ({"required": True}, "#/required"),
    ({"type": "array", "uniqueItems": True}, "#/uniqueItems"),
    ({"type": "object", "minProperties": 3}, "#/minProperties"),
    ({"not": {"items": {}}}, "#/not/items"),
    ({"multipleOf": 0}, "#/multipleOf"),
    ({"multipleOf": 1234.5}, "#/multipleOf"),
    ({"maximum": 10**400}, "#/maximum"),
    ({"$schema": DRAFT_4, "items": {"const": 3}}, "#/items/const"),
    ({"allOf": [{"properties": {"a": {}}}, {"unevaluatedProperties": False}]}, "#/allOf/1/unev"),
    ({"if": {"required": ["a"]}, "unevaluatedProperties": False}, "#/if"),
    ({"$ref": "b/s.json", "$defs": {"a": {"$id": "a/s.json"}, "b": {"$id": "c/s.json"}}}, "#/$ref"),
    ({"a/b": {}, "properties": {"x~/y": {"type": 3}}}, "#/properties/x~0~1y/type"),
    ({"allOf": [{"anyOf": [{"minimum": i} for i in range(20)]} for _ in range(3)]}, "#"),
]


@pytest.mark.parametrize(("schema", "pointer"), REFUSED, ids=lambda case: json.dumps(case)[:60])
def test_what_is_not_supported_is_refused_by_its_pointer(schema, pointer):
    with pytest.raises(RequestError) as caught:
        compile_grammar(JsonSchema(schema), "schema")
    assert caught.value.param.startswith("schema" + pointer)
    assert caught.value.status == 422


def test_what_nothing_satisfies_is_refused(vocabulary):
    for schema in (False, closed(a=False) | {"required": ["a"]}, {"type": "string", "enum": [1]}):
        with pytest.raises(DeviceError, match="nothing satisfies"):
            Taker(JsonSchema(schema), vocabulary)
    schema = {"type": "string", "pattern": "^a{5}$", "maxLength": 4}
    with pytest.raises(DeviceError, match="nothing satisfies"):
        Taker(JsonSchema(schema), vocabulary)


def test_a_property_that_nothing_satisfies_is_left_out(vocabulary):
    never = {"type": "string", "pattern": "^a{5}$", "maxLength": 4}
    taker = Taker(JsonSchema(closed(a=never, b=INTEGER)), vocabulary)
    assert taker.takes('{"b": 1}') and not taker.automaton.advance(1, b'{"a')


def test_a_schema_that_refers_to_itself_is_no_larger_than_it_is_long():
    deep = {"$ref": "#/$defs/t", **TREE}
    assert compile_grammar(JsonSchema(deep), "schema").num_edges < 200


def test_hostile_schemas_end_in_refusals_and_soon():
    doubled = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(60)}
    nested: dict = {"type": "integer"}
    for _ in range(900):
        nested = {"type": "array", "items": nested}
    lists = {"enum": [f"{i * 7919 % 20011:05}" * 8 for i in range(20_000)]}
    for schema in (
        {"$ref": "#/$defs/d0", "$defs": {**doubled, "d60": {}}},
        {"allOf": [{"$ref": "#/$defs/d0"}], "$defs": {**doubled, "d60": {"not": {"$ref": "#"}}}},
        lists,
    ):
        with pytest.raises(RequestError):
            compile_grammar(JsonSchema(schema), "schema")
    compile_grammar(JsonSchema(nested), "schema")


def test_patterns_that_would_take_minutes_to_tell_apart_are_refused_by_their_limit(vocabulary):
    patterns = ("^a.*b.{5}$", "c.{4}d", "e.{6}f", "(gh|hg){3}.{5}g")
    several = {"type": "object", "patternProperties": dict.fromkeys(patterns, INTEGER)}
    started = time.process_time()
    with pytest.raises(DeviceError, match="takes more than 4000000 steps to look at"):
        Taker(JsonSchema(several), vocabulary)
    assert time.process_time() - started < 1.5, "6 s without the limit"


def test_a_large_schema_leaves_others_their_turn(monkeypatch):
    """As if each look at the clock were a thousandth of a second later than the last one."""
    looks, turns = count(), []
    clock = SimpleNamespace(monotonic=lambda: next(looks) / 1000, sleep=turns.append)
    monkeypatch.setattr(automaton, "time", clock)
    compile_grammar(JsonSchema(closed(**{f"p{i}": STRING for i in range(50)})), "schema")
    assert len(turns) > 20 and max(turns) < 0.001


NAMES = {"ab": INTEGER, "abc": STRING, "x" * 40: INTEGER}
OPEN_OBJECTS = (
    {"type": "object", "properties": NAMES},
    {"type": "object", "properties": NAMES, "propertyNames": {"maxLength": 20}},
    {"type": "object", "properties": NAMES, "patternProperties": {"^ab": INTEGER, "d$": STRING}},
    {"type": "string", "not": {"enum": ["ab", "abc"]}},
    {"type": "string", "not": {"enum": ["ab", "abc"]}, "maxLength": 18},
    {"type": "string", "not": {"pattern": "^(ab|x{16,})"}},
)


@pytest.mark.parametrize("schema", OPEN_OBJECTS, ids=lambda schema: json.dumps(schema)[:60])
def test_a_mask_says_of_each_token_what_its_bytes_say_one_by_one(schema):
    """Among the tokens are those that are looked at once a vocabulary, and names of properties."""
    texts = ["ab", "abc", "c", "bc", "x" * 16, "xx", 'ab"', '": 1', 'd": "', "\\n", "ä", '"}']
    tokens = [bytes([i]) for i in range(256)] + [text.encode() for text in texts]
    vocabulary = Vocabulary(byte_vocabulary().library, [*tokens, b""], [len(tokens)])
    taker = Taker(JsonSchema(schema), vocabulary)
    mask = np.zeros(vocabulary.num_words, np.uint32)
    beginnings = ['{"ab', '{"abc', '{"' + "x" * 40, '{"zä', '"ab', '"abcabcabcabcabcabcabcabc']
    for text in beginnings:
        for size in range(len(text) + 1):
            position = taker.automaton.advance(START, text[:size].encode())
            if position == DEAD:
                break
            taker.automaton.mask(position, mask)
            for token_id, token in enumerate(tokens):
                may_come = mask[token_id // 32] >> (token_id % 32) & 1
                assert may_come == (taker.automaton.advance(position, token) != DEAD), token
