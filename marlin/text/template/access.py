"""How `value.name`, `value[key]` and `value[start:stop:step]` read.

No attribute of a Python object is ever looked up by a name from a template: `a.b` is an entry of a
dict, a method from the fixed table, or a member that an object of the interpreter lists. Nothing
here changes a value.
"""

from marlin.text.template.limits import LONG_KEY_CHARS, MAX_PATH_CHARS, Fault
from marlin.text.template.methods import METHODS
from marlin.text.template.values import (
    MISSING,
    Function,
    Owned,
    Safe,
    Undefined,
    kind_name,
    to_text,
    whole,
)

_SEQUENCES = (str, list, tuple, range)


def attribute(value, name):
    """`value.name`, or an Undefined. As in jinja2, a method hides a dict's entry of its name."""
    kind = type(value)
    if kind is Safe:
        raise Fault(f"text that is marked safe has no {name!r} here")
    methods = METHODS.get(kind)
    if methods is not None and name in methods:
        if methods[name] is None:
            return Undefined(f"{name!r} of a {kind_name(value)} is not allowed in a template")
        return Function(methods[name], value)
    if kind is dict:
        found = value.get(name, MISSING)
    else:
        found = _member(value, name)
    return Undefined(f"{kind_name(value)} has no {name!r}") if found is MISSING else found


def item(budget, value, key):
    """`value[key]`: an entry or element; else, for a string key, `value.key`; else Undefined."""
    if isinstance(value, dict):
        budget.key(key, value)
        if not isinstance(key, (list, dict)) and key in value:
            return value[key]
    elif isinstance(value, _SEQUENCES) and isinstance(key, int):
        if -len(value) <= key < len(value):
            return Safe(value[key]) if type(value) is Safe else value[key]
    if isinstance(key, str) and len(key) <= LONG_KEY_CHARS:
        return attribute(value, key)
    if type(value) is Undefined:
        value.fail()
    shown = to_text(budget, key) if isinstance(key, (int, float)) else kind_name(key)
    return Undefined(f"{kind_name(value)} has no item {shown}")


def cut(budget, value, bounds):
    """`value[bounds]` for a Python slice."""
    if type(value) is Undefined:
        value.fail()
    if not isinstance(value, _SEQUENCES):
        raise Fault(f"{kind_name(value)} cannot be sliced")
    part = Safe(str(value)[bounds]) if type(value) is Safe else value[bounds]
    if isinstance(part, str):
        budget.chars(len(part))
    elif not isinstance(part, range):
        budget.references(len(part))
    return part


def path_getter(budget, path, default=None):
    """A function that reads `path` ("a.b.0", an integer, or None for the value itself) from a
    value.

    Where a step gives an Undefined and `default` is not None, it reads as `default`.
    """
    if path is None:
        return lambda value: value
    if isinstance(path, str):
        parts = check_path(path).split(".")
        keys = [int(part) if part.isdecimal() else part for part in parts]
    else:
        keys = [path]

    def get(value):
        budget.spend(len(keys))
        for key in keys:
            value = whole(budget, item(budget, value, key))
            if default is not None and type(value) is Undefined:
                value = default
        return value

    return get


def check_path(path):
    """`path`, when it is of an acceptable length."""
    if len(path) > MAX_PATH_CHARS:
        raise Fault(f"path limit: an attribute path of more than {MAX_PATH_CHARS} characters")
    return path


def _member(value, name):
    if isinstance(value, Owned):
        return value.member(name)
    if type(value) is Undefined:
        value.fail()
    return MISSING
