"""What does not satisfy a schema, as schemas: for `not`, `oneOf` and `if`.

What is said of a value's parts in ways that cannot be turned round is refused.
"""

from collections.abc import Callable
from typing import Any

from marlin.text.grammar.keywords import (
    ANNOTATIONS,
    NOT_IN,
    NOT_PATTERN,
    TYPES,
    Part,
    Schema,
    branches,
    escaped,
)

# Of a number, with the keyword that says the opposite.
_BOUNDS = {
    "minimum": "exclusiveMaximum",
    "maximum": "exclusiveMinimum",
    "exclusiveMinimum": "maximum",
    "exclusiveMaximum": "minimum",
}
# Of a count, with the opposite keyword, how far beyond it begins, and the type of what is counted.
_COUNTS = {
    "minLength": ("maxLength", -1, "string"),
    "maxLength": ("minLength", 1, "string"),
    "minItems": ("maxItems", -1, "array"),
    "maxItems": ("minItems", 1, "array"),
    "minProperties": ("maxProperties", -1, "object"),
}

Negate = Callable[[Any, str], tuple[Any, str]]


def negations(part: Part, name: str, value: Any, negate: Negate) -> list[Schema]:
    """Schemas of the values that break one keyword of a part; they may break others.

    Args:
        negate: the schema of what does not satisfy one.
    """
    if name in _BOUNDS:
        return [{"type": "number", _BOUNDS[name]: value}]
    if name in _COUNTS:
        opposite, step, kind = _COUNTS[name]
        return [{"type": kind, opposite: value + step}] if value + step >= 0 else []
    if name in ("enum", "const"):
        return [{NOT_IN: value if name == "enum" else [value]}]
    if name == "pattern":
        return [{"type": "string", NOT_PATTERN: value}]
    if name == "type":
        left = set(TYPES) - part.types()
        if "integer" in part.types():
            left.discard("number")  # fractions are left out
        return [{"type": sorted(left)}] if left else []
    if name == "required":
        return [{"type": "object", "properties": {each: False}} for each in value]
    if name == "properties":
        return list(_of_properties(part, value, negate))
    if name == "not":
        return [value]
    if name in ("anyOf", "allOf"):
        negated = [negate(*branch)[0] for branch in branches(value, f"{part.pointer}/{name}")]
        return negated if name == "allOf" else [{"allOf": negated}]
    if name in ANNOTATIONS or name.startswith("x-"):
        return []
    part.refuse(name, "is not supported where it must not hold (not, oneOf, if)")


def _of_properties(part, properties, negate):
    for name, schema in properties.items():
        negated, _ = negate(schema, f"{part.pointer}/properties/{escaped(name)}")
        if negated is not False:
            yield {"type": "object", "properties": {name: negated}, "required": [name]}
