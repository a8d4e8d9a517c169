"""Arguments written as Python's: read as a language of its own, and never run."""

import json

from marlin.text.tool_calls.scanner import Reading, Scanner, decoded
from marlin.text.tool_calls.tagged import escaped

MAX_DEPTH = 32  # of values within each other; schemas of tools have a handful
_WORDS = {"True": "true", "False": "false", "None": "null"}
_ESCAPES = {**{char: f"\\{char}" for char in 'nrtbfu\\"'}, "'": "'", "\n": "", "x": "\\u00"}
_NO_JSON = object()


def python_arguments(scan: Scanner) -> Reading[bool]:
    """Read `key=value, …)` as an object; whether it was whole."""
    before = "{"
    while not (yield from scan.take(")")):
        key = yield from scan.text("=")
        if key is None:
            return False
        scan.arguments(f"{before}{json.dumps(key.strip(), ensure_ascii=False)}: ")
        before = ", "
        if not (yield from _value(scan, MAX_DEPTH)):
            return False
        yield from scan.take(",")
    if before != "{":
        scan.arguments("}")
    return True


def _value(scan, depth):
    quote = yield from scan.take('"""', "'''", '"', "'")
    if quote:
        return (yield from _string(scan, quote))
    for opening, closing in ("{}", "[]", "()"):
        if (yield from scan.take(opening)):
            written = "{" if opening == "{" else "["
            return depth > 0 and (yield from _items(scan, written, closing, depth - 1))
    word = yield from scan.text(*",)]}:", keep=True)
    if word is None:
        return False
    word = word.strip()
    scan.arguments(bare_word(word))
    return bool(word)


def bare_word(word: str) -> str:
    """A value without quotes as JSON: a number, one of its words, or else a string."""
    text = _WORDS.get(word, word)
    is_json = decoded(text, _NO_JSON) is not _NO_JSON
    return text if is_json else json.dumps(text, ensure_ascii=False)


def _items(scan, opening, closing, depth):
    """The rest of a list or dict, as JSON."""
    before = opening
    while not (yield from scan.take(closing)):
        if not (yield from scan.peek()):
            return False
        scan.arguments(before)
        before = ", "
        if not (yield from _value(scan, depth)):
            return False
        if opening == "{":
            if not (yield from scan.take(":")):
                return False
            scan.arguments(": ")
            if not (yield from _value(scan, depth)):
                return False
        yield from scan.take(",")
    if before == opening:
        scan.arguments(opening)
    scan.arguments("}" if opening == "{" else "]")
    return True


def _string(scan, quote):
    scan.arguments('"')
    while True:
        marker = yield from scan.until((quote, "\\"), lambda text: scan.arguments(escaped(text)))
        if marker != "\\":
            break
        char = yield from scan.char()
        if not char:
            return False
        scan.arguments(_ESCAPES.get(char, f"\\\\{escaped(char)}"))
    if marker is None:
        return False
    scan.arguments('"')
    return True
