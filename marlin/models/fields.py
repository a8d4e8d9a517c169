"""Reads typed fields out of a model's own description, with errors that name field and value.

Serves config.json and GGUF metadata alike; refuses to know what a field means.
"""

import math

from marlin.errors import ModelFileError


class Fields:
    """Typed access to one dict read from a model file.

    Args:
        path: the file, named in errors.
        values: {field: value}; a value of None counts as absent.
        prefix: put before every field name (`llama.` in GGUF metadata).

    Every getter takes a `default` for an absent field; without one, absence is a ModelFileError,
    as is a value of the wrong type or out of range.
    """

    def __init__(self, path, values, prefix=""):
        self.path = path
        self.values = values
        self.prefix = prefix

    def fail(self, name, expected):
        """Raise a ModelFileError that quotes the field as it stands."""
        value = self.values.get(self.prefix + name)
        raise ModelFileError(
            self.path, f"{self.prefix + name} is {_quoted(value)}; expected {expected}"
        )

    def raw(self, name):
        """The value as read, or None."""
        return self.values.get(self.prefix + name)

    def count(self, name, *default, minimum=1, maximum):
        """An int within [minimum, maximum]."""
        value = self._present(name, default)
        if value is None or (type(value) is int and minimum <= value <= maximum):
            return value
        self.fail(name, f"an integer from {minimum} to {maximum}")

    def number(self, name, *default, minimum=0.0, maximum=math.inf):
        """A finite float within (minimum, maximum]."""
        value = self._present(name, default)
        if value is None:
            return None
        if type(value) in (int, float) and math.isfinite(value) and minimum < value <= maximum:
            return float(value)
        bound = "" if math.isinf(maximum) else f" and at most {maximum:g}"
        self.fail(name, f"a finite number above {minimum:g}{bound}")

    def flag(self, name, *default):
        """A bool."""
        value = self._present(name, default)
        if value is None or type(value) is bool:
            return value
        self.fail(name, "true or false")

    def choice(self, name, choices, *default):
        """One of the strings `choices`."""
        value = self._present(name, default)
        if value is None or (isinstance(value, str) and value in choices):
            return value
        self.fail(name, "one of " + ", ".join(choices))

    def section(self, name):
        """Fields of a nested object, or None when the field is absent."""
        value = self.raw(name)
        if value is None or isinstance(value, dict):
            return None if value is None else Fields(self.path, value)
        self.fail(name, "an object")

    def _present(self, name, default):
        value = self.raw(name)
        if value is not None:
            return value
        if default:
            return default[0]
        raise ModelFileError(self.path, f"{self.prefix + name} is missing")


def _quoted(value):
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
