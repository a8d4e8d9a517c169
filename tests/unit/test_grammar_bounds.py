"""Each limit of grammars: the most that a refusal speaks of is taken, and one more is refused."""

import pytest

from marlin.errors import RequestError
from marlin.text.grammar.constraint import Ebnf, JsonSchema, Regex, compile_grammar

pytestmark = pytest.mark.native


def nested(count):
    schema = {"type": "integer"}
    for _ in range(count):
        schema = {"anyOf": [schema]}
    return schema


def named(count):
    return {"type": "object", "properties": {f"p{i}": True for i in range(count)}}


# (what has n of something, the largest n, what the refusal says)
LIMITS = {
    "characters": (lambda n: Regex("a" * n), 4096, "4096 characters"),
    "groups": (lambda n: Regex("(" * n + "a" + ")" * n), 64, "more than 64 deep"),
    "repeats": (lambda n: Regex(f"a{{{n}}}"), 100_000, "more than 100000 times"),
    "repeats at most": (lambda n: Regex(f"a{{2,{n}}}"), 100_000, "more than 100000 times"),
    "repeats at least": (lambda n: Regex(f"a{{{n},}}"), 100_000, "more than 100000 times"),
    "groups of a grammar": (
        lambda n: Ebnf("root ::= " + "(" * n + '"a"' + ")" * n),
        *(64, "more than 64 deep"),
    ),
    "unique values": (
        lambda n: JsonSchema(
            {"type": "array", "items": {"enum": [*map(str, range(n))]}, "uniqueItems": True}
        ),
        *(8, "up to 8 values, not 9"),
    ),
    "patterns of names": (
        lambda n: JsonSchema({"patternProperties": {"abcde"[i]: True for i in range(n)}}),
        *(4, "up to 4 patterns"),
    ),
    "alternatives": (
        lambda n: JsonSchema({"anyOf": [{"minimum": i} for i in range(n)]}),
        *(256, "more than 256 alternatives"),
    ),
    "schemas within each other": (lambda n: JsonSchema(nested(n)), 64, "nested too deeply"),
    "digits": (lambda n: JsonSchema({"minimum": 10**n}), 60, "more than 60 digits"),
    "digits behind the point": (
        lambda n: JsonSchema({"maximum": float(f"1e-{n}")}),
        *(60, "more than 60 digits"),
    ),
    "steps of a multiple": (
        lambda n: JsonSchema({"type": "integer", "multipleOf": n}),
        *(1000, "more than 1000 steps"),
    ),
    "counted properties": (
        lambda n: JsonSchema({"type": "object", "maxProperties": n}),
        *(10_000, "counts too many properties"),
    ),
    "counted properties with names": (
        lambda n: JsonSchema(named(10) | {"maxProperties": n}),
        *(1000, "counts too many properties"),
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_the_most_that_is_allowed_is_taken_and_one_more_refused(name):
    make, most, says = LIMITS[name]
    compile_grammar(make(most), "part")
    with pytest.raises(RequestError) as caught:
        compile_grammar(make(most + 1), "part")
    assert says in caught.value.message
