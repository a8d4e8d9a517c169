"""Calls whose arguments are texts between tags, each with its name: what these families share.

The tags are a family's. Such a text has no type: the tool's schema says what it becomes in JSON.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from marlin.text.tool_calls.scanner import Reading, Scanner, decoded, drop

_TYPES: dict[type, tuple[str, ...]] = {
    str: ("string",),
    bool: ("boolean",),
    int: ("integer", "number"),
    float: ("number",),
    dict: ("object",),
    list: ("array",),
    type(None): ("null",),
}
_WORDS = {"True": True, "False": False, "None": None}
_NO_JSON = object()


@dataclass(frozen=True, slots=True)
class Tags:
    """What is around the parts of a call, in the order of the text.

    Attributes:
        name_ends: after its name; it may be missing where a parameter or the end follows.
        value: after key_end, where there is something.
        trims: one line end at either end of a value belongs to the tags.
    """

    name_ends: tuple[str, ...]
    key: str
    key_end: str
    value_end: str
    call_ends: tuple[str, ...]
    value: str = ""
    trims: bool = False


def tagged_call(scan: Scanner, tags: Tags) -> Reading[bool]:
    """Read a call from its name on; whether it was whole."""
    name: list[str] = []
    following = (tags.key, *tags.call_ends)
    marker = yield from scan.until((*tags.name_ends, *following), name.append)
    if marker is None:
        return False
    arguments = _Arguments(scan, "".join(name).strip())
    if marker in tags.name_ends:
        marker = yield from scan.until(following, drop)
    while marker == tags.key:
        if not (yield from arguments.read(tags)):
            return False
        marker = yield from scan.until(following, drop)
    if marker is not None:
        arguments.end()
    return marker is not None


class _Arguments:
    """A call's arguments, written as the JSON of an object while they are read."""

    def __init__(self, scan, name):
        self._scan, self._schema = scan, scan.tools.get(name)
        self._before = "{"
        self._is_first = False
        scan.begin_call(name)

    def read(self, tags):
        """One parameter; whether it was whole."""
        key = yield from self._scan.text(tags.key_end)
        if key is None or (tags.value and not (yield from self._scan.take(tags.value))):
            return False
        # DeepSeek says of a value whether it is a string.
        key, _, said = key.partition('" string="')
        types = {"string"} if said == "true" else schema_types(self._schema, key)
        types = types - {"string"} if types and said == "false" else types
        self._scan.arguments(f"{self._before}{json.dumps(key, ensure_ascii=False)}: ")
        self._before, self._is_first = ", ", tags.trims
        ends = (f"\n{tags.value_end}", tags.value_end) if tags.trims else (tags.value_end,)
        if types == {"string"}:
            return (yield from self._string(ends))
        text: list[str] = []
        if (yield from self._scan.until(ends, lambda more: text.append(self._trimmed(more)))):
            self._scan.arguments(json.dumps(typed("".join(text), types), ensure_ascii=False))
            return True
        return False

    def _string(self, ends):
        """A string is passed on while it comes."""
        self._scan.arguments('"')
        found = yield from self._scan.until(
            ends, lambda more: self._scan.arguments(escaped(self._trimmed(more)))
        )
        if found is not None:
            self._scan.arguments('"')
        return found is not None

    def _trimmed(self, text):
        is_first, self._is_first = self._is_first, False
        return text.removeprefix("\n") if is_first else text

    def end(self):
        if self._before != "{":
            self._scan.arguments("}")
        self._scan.end_call()


def escaped(text: str) -> str:
    """Text as it stands within the quotes of JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def schema_types(schema: Any, key: str) -> set[str] | None:
    """JSON types that a parameter may have; None where its schema does not say."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    parameter = properties.get(key) if isinstance(properties, dict) else None
    return _types(resolved(schema, parameter), 4)


def resolved(schema: Any, parameter: Any) -> dict[str, Any]:
    """A parameter's schema, where it is a reference to a definition of the tool's."""
    for _ in range(4):
        reference = parameter.get("$ref") if isinstance(parameter, dict) else None
        if not isinstance(reference, str):
            break
        _, _, name = reference.rpartition("/")
        where = "$defs" if reference.startswith("#/$defs/") else "definitions"
        parameter = schema.get(where, {}).get(name)
    return parameter if isinstance(parameter, dict) else {}


def _types(schema, depth):
    if not isinstance(schema, dict) or not depth:
        return None
    said = schema.get("type")
    if said is not None:
        return {said} if isinstance(said, str) else set(map(str, said))
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list):
        return {name for value in values for name in _TYPES[type(value)]}
    for word in ("anyOf", "oneOf"):
        if isinstance(schema.get(word), list):
            found = [_types(option, depth - 1) for option in schema[word]]
            return None if None in found else set().union(*filter(None, found))
    return None


def typed(text: str, types: Collection[str] | None) -> Any:
    """The value that a text without a type stands for: of one of the types, or else itself."""
    stripped = text.strip()
    value = _WORDS[stripped] if stripped in _WORDS else decoded(stripped, _NO_JSON)
    if value is _NO_JSON or isinstance(value, str):
        return text
    if types is None or any(name in types for name in _TYPES[type(value)]):
        return value
    return text
