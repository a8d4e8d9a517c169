"""Gemma 4 and FunctionGemma: objects with bare keys, and marks of their own around strings."""

import json

from marlin.errors import RequestError
from marlin.text.grammar.constraint import InOrder, Text
from marlin.text.tool_calls.family import Family
from marlin.text.tool_calls.pythonic import MAX_DEPTH, bare_word
from marlin.text.tool_calls.scanner import Reading, Scanner, drop
from marlin.text.tool_calls.shape import Shape, listed, text_value
from marlin.text.tool_calls.tagged import escaped


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


def _family(name, opening, closing, quote):
    read, markers = _reader(opening, closing, quote), (opening, closing, quote)

    def argument(key, value, write):
        text = text_value(key, value, quote)
        if text is not None:
            return InOrder([write(f"{key}:{quote}"), text])
        said = value.schema.get("type") if isinstance(value.schema, dict) else None
        if said not in ("integer", "number", "boolean", "null"):
            refusal = f"argument {key!r:.80} of a tool cannot be held to its schema by this model"
            raise RequestError(refusal, param="tools")
        return InOrder([Text(f"{key}:"), value])

    call = listed(lambda name: f"{opening}call:{name}{{", argument, "}" + closing)
    return Family(name, (f"{opening}call:",), read, markers, Shape(call))


FAMILY = _family("gemma", "<|tool_call>", "<tool_call|>", '<|"|>')
FUNCTION = _family(
    *("functiongemma", "<start_function_call>", "<end_function_call>", "<escape>"),
)
