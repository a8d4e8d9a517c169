"""The names of JSON Schema, and what their values may be.

A name that is none, in any draft, is an annotation, as JSON Schema says; one that was most likely
meant to be a keyword is refused, as is a keyword that is not supported.
"""

import re
from collections.abc import Iterable
from typing import Any, NoReturn

from marlin.errors import RequestError
from marlin.files.fields import shown, type_name
from marlin.text.grammar.automaton import json_text

Schema = dict[Any, Any]  # by names, and by what negation() adds to them
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "example", "deprecated", "readOnly")
    + ("writeOnly", "$schema", "$id", "id", "$comment", "$anchor", "$defs", "definitions")
    + ("contentEncoding", "contentMediaType", "contentSchema", "$dynamicAnchor", "$vocabulary")
)
# Of some draft, and refused; other names are annotations by every draft.
UNSUPPORTED = frozenset(
    ("contains", "minContains", "maxContains", "unevaluatedItems", "$dynamicRef", "$recursiveRef")
    + ("$recursiveAnchor", "extends", "disallow", "divisibleBy")
)
# The first draft of what is no keyword in draft 4; 2019-09 counts as 8.
FIRST_DRAFT = {"const": 6, "contains": 6, "propertyNames": 6, "if": 7, "then": 7, "else": 7}
FIRST_DRAFT |= dict.fromkeys(("dependentRequired", "dependentSchemas", "unevaluatedProperties"), 8)
FIRST_DRAFT |= {"prefixItems": 9}
# Keywords of schemas that negation makes; no JSON has names like these.
NOT_IN = ("not", "enum")
NOT_PATTERN = ("not", "pattern")
APPLICATORS = ("$ref", "allOf", "anyOf", "oneOf", "not", "if", "then", "else")
DEPENDENCIES = ("dependentRequired", "dependentSchemas", "dependencies")
# Keyword to the JSON type of its value; None: any.
SIMPLE: dict[Any, type | tuple[type, ...] | None] = {
    NOT_IN: list,
    NOT_PATTERN: str,
    "type": (str, list),
    "enum": list,
    "const": None,
    "properties": dict,
    "patternProperties": dict,
    "additionalProperties": (dict, bool),
    "propertyNames": (dict, bool),
    "unevaluatedProperties": (dict, bool),
    "required": list,
    "minProperties": int,
    "maxProperties": int,
    "items": (dict, bool, list),
    "prefixItems": list,
    "additionalItems": (dict, bool),
    "minItems": int,
    "maxItems": int,
    "uniqueItems": bool,
    "minLength": int,
    "maxLength": int,
    "pattern": str,
    "format": str,
    "minimum": (int, float),
    "maximum": (int, float),
    "exclusiveMinimum": (int, float),
    "exclusiveMaximum": (int, float),
    "multipleOf": (int, float),
}
KNOWN = ANNOTATIONS | UNSUPPORTED | {*APPLICATORS, *DEPENDENCIES, *SIMPLE}
_LONGEST_KEYWORD = 24


class Part:
    """One schema without its applicators: keywords, and where they stand."""

    __slots__ = ("keywords", "pointer")

    def __init__(self, keywords: Schema, pointer: str):
        self.keywords = keywords
        self.pointer = pointer

    def refuse(self, keyword: str, why: str = "is not supported here") -> NoReturn:
        refuse(f"{self.pointer}/{escaped(keyword)}", why)

    def types(self) -> set[str]:
        given = self.keywords.get("type")
        names = set(TYPES) if given is None else {given} if isinstance(given, str) else set(given)
        return names | {"integer"} if "number" in names else names


def refuse(pointer: str, why: str) -> NoReturn:
    raise RequestError(f"{pointer} {why}", param=pointer)


def escaped(name: str) -> str:
    """A name as a part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")[:100]


def branches(value: Any, pointer: str) -> list[tuple[Any, str]]:
    """The schemas of an array, with their pointers."""
    if type(value) is not list or not value:
        refuse(pointer, "must be an array of schemas, at least one")
    return [(item, f"{pointer}/{index}") for index, item in enumerate(value)]


def draft_of(root: Any) -> int:
    """The draft that a document says it is of; the newest, where it names none that is known."""
    said = root.get("$schema") if type(root) is dict else None
    found = re.search(r"/draft-0([3-7])/", said) if type(said) is str else None
    return int(found[1]) if found else 9


def checked_part(schema: Schema, pointer: str, draft: int) -> Part:
    """A schema's own keywords, after a look at each. What came after the document's draft means
    nothing in it, though whoever wrote it there meant something: it is refused."""
    keywords = {}
    for name, value in schema.items():
        if FIRST_DRAFT.get(name, 0) > draft:
            why = f"is no keyword of draft {draft}, which the schema's $schema names"
            refuse(f"{pointer}/{escaped(name)}", why)
        if name in SIMPLE:
            _check_value(f"{pointer}/{name}", name, value)
            keywords[name] = value
        elif name in UNSUPPORTED:
            refuse(f"{pointer}/{escaped(name)}", "is a keyword that is not supported")
        elif name not in KNOWN and (meant := _misspelt(name)):
            refuse(f"{pointer}/{escaped(name)}", f"is no keyword; is {meant} meant?")
    for name in ("minimum", "maximum"):  # draft 4
        exclusive = "exclusive" + name.capitalize()
        if keywords.get(exclusive) is True and name in keywords:
            keywords[exclusive] = keywords.pop(name)
        elif type(keywords.get(exclusive)) is bool:
            del keywords[exclusive]
    return Part(keywords, pointer)


def _misspelt(name):
    """The keyword that a name differs from by a letter or by capitals, or two letters' order."""
    if len(name) > _LONGEST_KEYWORD or not name[:1].isalpha():
        return None
    for known in KNOWN - ANNOTATIONS:
        if type(known) is str and len(known) > 2 and abs(len(known) - len(name)) <= 1:
            if _is_near(name.lower(), known.lower()):
                return known
    return None


def _is_near(one, other):
    pairs = list(zip(one, other, strict=False))
    begin = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    for skip, skip_other in ((1, 1), (1, 0), (0, 1)):
        if one[begin + skip :] == other[begin + skip_other :]:
            return True
    swapped = one[begin : begin + 2] == other[begin : begin + 2][::-1]
    return swapped and one[begin + 2 :] == other[begin + 2 :]


def values_of(keywords):
    """The values of enum and const, as JSON; None where any will do."""
    if "const" in keywords:
        return [json_text(keywords["const"])]
    if "enum" in keywords:
        return [json_text(value) for value in keywords["enum"]]
    return None


def _check_value(pointer, name, value):
    kind = SIMPLE[name]
    if kind is None:
        return
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if type(value) is bool and name in ("exclusiveMinimum", "exclusiveMaximum"):
        return
    if type(value) is float and kind is int and value.is_integer():
        return
    if type(value) not in kinds:
        refuse(pointer, f"must not be {type_name(value)}")
    if kind is int and value < 0:
        refuse(pointer, f"must be at least 0, got {shown(value)}")
    if name in ("type", "required"):
        names = [value] if type(value) is str else value
        known = TYPES if name == "type" else None
        for item in names:
            if type(item) is not str or (known and item not in known):
                refuse(
                    pointer,
                    f"holds {shown(item)}, which is none of {', '.join(TYPES)}"
                    if known
                    else f"must hold strings, got {shown(item)}",
                )


def limits(parts: Iterable[Part], least: str, most: str) -> tuple[int, int | None]:
    """What two keywords that count come to in parts that hold at once."""
    lows = [int(part.keywords[least]) for part in parts if least in part.keywords]
    highs = [int(part.keywords[most]) for part in parts if most in part.keywords]
    return max(lows, default=0), min(highs, default=None)


def excluded(parts: Iterable[Part]) -> list[Any]:
    """Values that parts rule out."""
    return [value for part in parts for value in part.keywords.get(NOT_IN, ())]


def refuse_excluded(parts: Iterable[Part], kind: type) -> None:
    """Refuse to rule out values of a kind."""
    for part in parts:
        if any(type(value) is kind for value in part.keywords.get(NOT_IN, ())):
            part.refuse("not", "is not supported with arrays or objects as values")
