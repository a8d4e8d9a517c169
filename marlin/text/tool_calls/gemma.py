"""Gemma 4 and FunctionGemma: objects with bare keys, and marks of their own around strings."""

import json
from typing import Any

from marlin.errors import RequestError
from marlin.text.grammar.constraint import Either, InOrder, JsonSchema, Part, Repeated, Text
from marlin.text.grammar.keywords import ANNOTATIONS
from marlin.text.tool_calls.family import Family
from marlin.text.tool_calls.pythonic import MAX_DEPTH, bare_word
from marlin.text.tool_calls.scanner import Reading, Scanner, drop
from marlin.text.tool_calls.shape import Shape, listed, properties, text_value
from marlin.text.tool_calls.tagged import escaped, resolved

# Values within values that are held to their schemas, and what is kept to of each kind.
MAX_HELD = 8
_CHOICES = {"anyOf", "oneOf"}
_OF_OBJECTS = {"type", "properties", "required", "additionalProperties"}
_OF_ARRAYS = {"type", "items", "minItems", "maxItems"}


def _reader(opening, closing, quote):
    def read(scan: Scanner) -> Reading[None]:
        while (yield from scan.content(opening)):
            yield from scan.take("call:")
            name = yield from scan.text("{")
            if name is not None:
                scan.begin_call(name.strip())
                if (yield from _object(scan, quote, MAX_DEPTH)):
                    scan.end_call()
            yield from scan.until((closing,), drop)

    return read


def _object(scan, quote, depth):
    """The rest of an object, as JSON; whether it was whole."""
    before = "{"
    while not (yield from scan.take("}")):
        key = yield from scan.text(":")
        if key is None:
            return False
        bare = key.strip().removeprefix(quote).removesuffix(quote).strip('"')
        scan.arguments(f"{before}{json.dumps(bare, ensure_ascii=False)}: ")
        before = ", "
        if not (yield from _value(scan, quote, depth)):
            return False
        yield from scan.take(",")
    scan.arguments("{}" if before == "{" else "}")
    return True


def _array(scan, quote, depth):
    before = "["
    while not (yield from scan.take("]")):
        if not (yield from scan.peek()):
            return False
        scan.arguments(before)
        before = ", "
        if not (yield from _value(scan, quote, depth)):
            return False
        yield from scan.take(",")
    scan.arguments("[]" if before == "[" else "]")
    return True


def _value(scan, quote, depth):
    if (yield from scan.take(quote)):
        scan.arguments('"')
        found = yield from scan.until((quote,), lambda text: scan.arguments(escaped(text)))
        if found:
            scan.arguments('"')
        return found is not None
    if (yield from scan.take("{")):
        return depth > 0 and (yield from _object(scan, quote, depth - 1))
    if (yield from scan.take("[")):
        return depth > 0 and (yield from _array(scan, quote, depth - 1))
    word = yield from scan.text(*",}]", keep=True)
    if word is None or not word.strip():
        return False
    scan.arguments(bare_word(word.strip()))
    return True


class _Held:
    """Values of schemas, for one argument.

    Args:
        key: the argument's name.
    """

    def __init__(self, key, quote, write):
        self._key, self._quote, self._write = key, quote, write

    def value(self, schema: Any, depth: int) -> Part:
        """One of a schema."""
        if not isinstance(schema, dict) or not depth:
            self._refuse()
        text = text_value(self._key, JsonSchema(schema), self._quote)
        if text is not None:
            return InOrder([self._write(self._quote), text])
        options = schema.get("anyOf", schema.get("oneOf"))
        if isinstance(options, list) and options and set(schema) - ANNOTATIONS <= _CHOICES:
            return Either([self.value(_inner(schema, option), depth - 1) for option in options])
        said = schema.get("type")
        if (
            said == "object"
            and set(schema) - ANNOTATIONS <= _OF_OBJECTS
            and type(schema.get("properties")) is dict
        ):
            return self._object(schema, depth)
        if said == "array" and set(schema) - ANNOTATIONS <= _OF_ARRAYS and "items" in schema:
            return self._array(schema, depth)
        if said not in ("integer", "number", "boolean", "null"):
            self._refuse()
        return JsonSchema(schema)

    def _object(self, schema, depth):
        required = schema.get("required", [])
        if type(required) is not list or not all(name in schema["properties"] for name in required):
            self._refuse()
        given = sorted(properties(schema), key=lambda each: not each[2])
        members: list[Part] = [Text("{")]
        for index, (name, value, is_required) in enumerate(given):
            member = [Text(f"{',' if index else ''}{name}:"), self.value(value.schema, depth - 1)]
            must = is_required or not index
            members.append(InOrder(member) if must else Repeated(InOrder(member), 0, 1))
        whole = InOrder([*members, Text("}")])
        return whole if given and given[0][2] else Either([InOrder([Text("{}")]), whole])

    def _array(self, schema, depth):
        low, high = schema.get("minItems", 0), schema.get("maxItems")
        if type(low) is not int or type(high) not in (int, type(None)):
            self._refuse()
        empty = InOrder([Text("[]")])
        if high == 0:
            return empty
        item = self.value(_inner(schema, schema["items"]), depth - 1)
        most = None if high is None else high - 1
        more = Repeated(InOrder([Text(","), item]), max(0, low - 1), most)
        whole = InOrder([Text("["), item, more, Text("]")])
        return whole if low else Either([empty, whole])

    def _refuse(self):
        refusal = f"argument {self._key!r:.80} of a tool cannot be held to its schema by this model"
        raise RequestError(refusal, param="tools")


def _inner(schema, value):
    """A schema within another, with the definitions that it may refer to."""
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    return shared | resolved(schema, value)


def _family(name, opening, closing, quote):
    read, markers = _reader(opening, closing, quote), (opening, closing, quote)

    def argument(key, value, write):
        held = _Held(key, quote, write)
        return InOrder([Text(f"{key}:"), held.value(value.schema, MAX_HELD)])

    call = listed(lambda name: f"{opening}call:{name}{{", argument, "}" + closing)
    return Family(name, (f"{opening}call:",), read, markers, Shape(call))


FAMILY = _family("gemma", "<|tool_call>", "<tool_call|>", '<|"|>')
FUNCTION = _family(
    *("functiongemma", "<start_function_call>", "<end_function_call>", "<escape>"),
)
