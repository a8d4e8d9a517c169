"""Typed fields of an object that comes from outside; a refusal names field, value and expectation.

For requests, model configs and GGUF metadata alike. Refuses to know what a field means, and which
error its refusal is: whoever opens an object says so.
"""

import json
import math
from collections.abc import Callable, Collection
from typing import Any, NoReturn

from marlin.errors import ModelFileError

_SHOWN_CHARACTERS = 80  # of a wrong value in a message: enough to recognise it
_TYPE_NAMES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    type(None): "null",
}


class Fields:
    """Typed access to one object.

    Args:
        values: {field: value}; a value of None counts as absent.
        refuse: called as refuse(field, value, expected) to raise the error of a wrong value (None
            for a field that is absent); `expected` reads on from "must be".
        prefix: put before every field name (`llama.` in GGUF metadata).
        path: of the file, for callers that have an error of their own to raise.

    Every getter takes a `default` for an absent field; without one, absence is refused, as is a
    value of the wrong type or out of range.
    """

    def __init__(
        self,
        values: dict[str, Any],
        refuse: Callable[[str, Any, str], NoReturn],
        prefix: str = "",
        path: str = "",
    ):
        self.values = values
        self.prefix = prefix
        self.path = path
        self._refuse = refuse

    def with_defaults(self, defaults: dict[str, Any]) -> "Fields":
        """The same fields, with values for those that are absent."""
        present = self.values.items()
        said = {name: value for name, value in present if not (value is None and name in defaults)}
        return Fields(defaults | said, self._refuse, self.prefix, self.path)

    def fail(self, name: str, expected: str) -> NoReturn:
        """Refuse a field as it stands."""
        self._refuse(self.prefix + name, self.raw(name), expected)
        raise AssertionError("refuse() must raise")

    def raw(self, name: str) -> Any:
        """The value as it is, or None."""
        return self.values.get(self.prefix + name)

    def count(self, name, *default, minimum=1, maximum=None):
        """An int within [minimum, maximum]; a maximum of None is no bound."""
        value = self.raw(name)
        if value is None and default:
            return default[0]
        high = math.inf if maximum is None else maximum
        if type(value) is int and minimum <= value <= high:
            return value
        bound = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        self.fail(name, f"an integer {bound}")

    def counts(self, name: str, minimum: int = 1, maximum: int | None = None) -> list[int]:
        """One such int, or an array of them; none when it is absent."""
        if type(self.raw(name)) is list:
            items = self.elements(name)
            return [items.count(place, minimum=minimum, maximum=maximum) for place in items.values]
        found = self.count(name, None, minimum=minimum, maximum=maximum)
        return [] if found is None else [found]

    def number(self, name, *default, above=None, minimum=None, maximum=math.inf):
        """A finite float within [minimum, maximum], or (above, maximum]; above 0 if neither is
        said."""
        value = self.raw(name)
        if value is None and default:
            return default[0]
        if above is None and minimum is None:
            above = 0.0
        known = type(value) in (int, float) and _is_finite(value) and value <= maximum
        if known and (value > above if minimum is None else value >= minimum):
            return float(value)
        self.fail(name, _number_range(above, minimum, maximum))

    def flag(self, name, *default):
        """A bool."""
        return self.of_type(bool, name, *default, expected="true or false")

    def text(self, name, *default):
        """A string."""
        return self.of_type(str, name, *default)

    def texts(self, name, *default):
        """A list of strings."""
        value = self.of_type(list, name, *default, expected="an array of strings")
        if type(value) is list and not all(type(item) is str for item in value):
            self.fail(name, "an array of strings")
        return value

    def choice(self, name: str, choices: Collection[str], *default):
        """One of the strings `choices`."""
        value = self.raw(name)
        if value is None and default:
            return default[0]
        if isinstance(value, str) and value in choices:
            return value
        self.fail(name, "one of " + ", ".join(choices))

    def elements(self, name: str) -> "Fields":
        """The items of an array as fields `name[0]`, `name[1]`, ...; none when it is absent."""
        values = self.of_type(list, name, [])
        outer = f"{self.prefix}{name}"
        items = {f"{outer}[{index}]": value for index, value in enumerate(values)}
        return Fields(items, self._refuse, path=self.path)

    def section(self, name: str) -> "Fields | None":
        """Fields of a nested object, or None when the field is absent."""
        return None if self.raw(name) is None else self.object(name)

    def object(self, name: str) -> "Fields":
        """Fields of a nested object."""
        value = self.of_type(dict, name)
        outer = f"{self.prefix}{name}."
        return Fields(
            value,
            lambda field, value, expected: self._refuse(outer + field, value, expected),
            path=self.path,
        )

    def of_type(self, kind, name, *default, expected=None):
        """A value of one JSON type: dict, list, str, bool."""
        value = self.raw(name)
        if value is None and default:
            return default[0]
        if type(value) is kind:
            return value
        self.fail(name, expected or _TYPE_NAMES[kind])


def file_fields(path: str, values: dict[str, Any], prefix: str = "") -> Fields:
    """Fields of a model file; what is refused is a ModelFileError."""

    def refuse(name, value, expected):
        found = "is missing" if value is None else f"is {_quoted(value)}"
        raise ModelFileError(path, f"{name} {found}; expected {expected}")

    return Fields(values, refuse, prefix, path)


def _is_finite(number):
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer past a double's range
        return False


def _number_range(above, minimum, maximum):
    if minimum is None:
        bound = "" if math.isinf(maximum) else f" and at most {maximum:g}"
        return f"a finite number above {above:g}{bound}"
    return f"a number from {minimum:g}" + ("" if math.isinf(maximum) else f" to {maximum:g}")


def type_name(value: Any) -> str:
    """The JSON type of a decoded value, with its article."""
    return _TYPE_NAMES[type(value)]


def shown(value: Any) -> str:
    """A decoded value as it may stand in an error message: ASCII JSON, shortened."""
    if isinstance(value, (dict, list)):
        return type_name(value)
    if isinstance(value, str):
        value = value[: _SHOWN_CHARACTERS + 1]
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def _quoted(value):
    # Not JSON: GGUF metadata holds numpy arrays and lists of 10^5 strings as well.
    text = " ".join(repr(value[:20] if isinstance(value, (str, list)) else value).split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
