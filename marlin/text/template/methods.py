"""What can be read of a value: METHODS of strings, lists, tuples and dicts, and how `value.name`,
`value[key]` and `value[start:stop:step]` read. Nothing here changes a value.

No attribute of a Python object is ever looked up by a name from a template: `a.b` is an entry of a
dict, a method of METHODS, or a member that an object of the interpreter lists. What is not listed
does not exist.
"""

from typing import Any

from marlin.text.origin import plain
from marlin.text.template.limits import (
    ITEMS,
    LONG_KEY_CHARS,
    PADDING,
    PATH,
    REFERENCES,
    TEXT,
    Fault,
)
from marlin.text.template.operators import contains, format_braces
from marlin.text.template.values import (
    MISSING,
    SEQUENCES,
    Function,
    Owned,
    Safe,
    Undefined,
    alike,
    kind_name,
    listing,
    to_text,
)

_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def _reading(method):
    """A str method that makes at most a few times its text: it may compare each character with the
    whole of its arguments."""

    def call(budget, text, /, *args, **kwargs):
        num_compared = 0
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, tuple):  # prefixes or suffixes, compared one by one
                budget.weigh(argument)
            elif isinstance(argument, str):
                num_compared += len(argument)
        budget.scan(len(text), num_compared)
        if (bare := plain(text)) == text:
            return method(text, *map(_plain, args), **kwargs)
        found = method(bare, *map(_plain, args), **kwargs)
        return _part(text, bare, method, found) if isinstance(found, (str, tuple)) else found

    return call


def _plain(value):
    return plain(value) if type(value) is str else value


def _part(text, bare, method, found):
    """What a method found of a text without marks, of the text with its marks (text/origin.py): a
    mark is as long as what it stands for."""
    if isinstance(found, tuple):
        before, mark = len(found[0]), len(found[0]) + len(found[1])
        return text[:before], text[before:mark], text[mark:]
    if method in _ENDS:
        start = len(bare) - len(found) if method in (str.lstrip, str.removeprefix) else 0
        if method is str.strip:
            start = bare.find(found)
        return text[start : start + len(found)]
    return method(text)  # another case of it, in which marks are what they were


def _padded(method):
    def call(budget, text, width, /, *args):
        budget.check(PADDING, width)
        budget.take(TEXT, max(len(text), width))
        return method(text, width, *args)

    return call


def _splitting(method):
    def call(budget, text, /, sep=None, maxsplit=-1):
        budget.scan(len(text), len(sep or ""))
        most = maxsplit if 0 <= maxsplit <= ITEMS.most else ITEMS.most
        parts = method(text if sep is None else plain(text), _plain(sep), most)
        budget.take(ITEMS, len(parts))
        return parts if sep is None or text.isascii() else _cut(text, parts, len(sep))

    return call


def _cut(text, parts, num_between):
    """A text in parts of these lengths, with so much left out between two."""
    cuts, at = [], 0
    for part in parts:
        cuts.append(text[at : at + len(part)])
        at += len(part) + num_between
    return cuts


def _split_lines(budget, text, keepends=False):
    budget.take(ITEMS, sum(text.count(end) for end in _LINE_ENDS))
    budget.scan(len(text) * len(_LINE_ENDS))
    return text.splitlines(keepends)


def replace(budget, text, old, new, count=-1):
    """`text.replace(old, new, count)`, measured first."""
    budget.scan(len(text))
    bare, old = plain(text), plain(old)
    found = bare.count(old) if count < 0 else min(count, bare.count(old))
    budget.take(TEXT, len(text) + found * max(0, len(new) - len(old)))
    if bare == text or not old:
        return text.replace(old, new, count)
    return new.join(_cut(text, bare.split(old, found), len(old)))


def join(budget, separator, items):
    """`separator.join(items)`, measured first; the items are strings."""
    parts = listing(budget, items)
    for part in parts:
        if not isinstance(part, str):
            raise Fault(f"join needs strings, not {kind_name(part)}")
    budget.take(TEXT, sum(map(len, parts)) + len(separator) * len(parts))
    return separator.join(parts)


def _expand_tabs(budget, text, tabsize=8):
    budget.check(PADDING, tabsize)
    budget.take(TEXT, len(text) + text.count("\t") * max(0, tabsize))
    return text.expandtabs(tabsize)


def _searching(method):
    def call(budget, items, value, *bounds):
        contains(budget, value, items)
        return method(items, value, *bounds)

    return call


def _get(budget, entries, key, default=None):
    budget.key(key, entries)
    return entries.get(key, default)


def _copy(budget, value):
    budget.take(ITEMS, len(value))
    return value.copy()


# Those that give a part of a text from one of its ends.
_ENDS = (str.lstrip, str.rstrip, str.strip, str.removeprefix, str.removesuffix)
_READING = (
    *(str.capitalize, str.casefold, str.count, str.endswith, str.find, str.index, str.isalnum),
    *(str.isalpha, str.isascii, str.isdecimal, str.isdigit, str.isidentifier, str.islower),
    *(str.isnumeric, str.isprintable, str.isspace, str.istitle, str.isupper, str.lower),
    *(str.lstrip, str.partition, str.removeprefix, str.removesuffix, str.rfind, str.rindex),
    *(str.rpartition, str.rstrip, str.startswith, str.strip, str.swapcase, str.title, str.upper),
)
# Those that change their value: they hide a dict's entry of that name, as in jinja2, and fail.
_LIST_CHANGES = ("append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort")
_DICT_CHANGES = ("clear", "pop", "popitem", "setdefault", "update")

# {type: {name: function(budget, value, *args, **kwargs), or None}}
METHODS: dict[type, dict[str, Any]] = {
    str: {
        **{method.__name__: _reading(method) for method in _READING},
        **{method.__name__: _padded(method) for method in (str.ljust, str.rjust, str.zfill)},
        **{method.__name__: _splitting(method) for method in (str.rsplit, str.split)},
        "expandtabs": _expand_tabs,
        "format": format_braces,
        "join": join,
        "replace": replace,
        "splitlines": _split_lines,
    },
    list: {
        "copy": _copy,
        "count": _searching(list.count),
        "index": _searching(list.index),
        **dict.fromkeys(_LIST_CHANGES),
    },
    tuple: {"count": _searching(tuple.count), "index": _searching(tuple.index)},
    dict: {
        "copy": _copy,
        "get": _get,
        "items": lambda _budget, entries: entries.items(),
        "keys": lambda _budget, entries: entries.keys(),
        "values": lambda _budget, entries: entries.values(),
        **dict.fromkeys(_DICT_CHANGES),
    },
}


def attribute(budget, value, name):
    """`value.name`, or an Undefined. As in jinja2, a method hides a dict's entry of its name."""
    kind = type(value)
    methods = METHODS.get(kind)
    if methods is not None and name in methods:
        if methods[name] is None:
            return Undefined(f"{name!r} of a {kind_name(value)} is not allowed in a template")
        return Function(methods[name], value)
    found = MISSING
    if kind is dict:
        found = value.get(name, MISSING)
    elif isinstance(value, Owned):
        found = value.member(budget, name)
    elif kind is Undefined:
        value.fail()
    elif kind is Safe:
        raise Fault(f"text that is marked safe has no {name!r} here")
    return Undefined(f"{kind_name(value)} has no {name!r}") if found is MISSING else found


def item(budget, value, key):
    """`value[key]`: an entry or element; else, for a string key, `value.key`; else Undefined."""
    if isinstance(value, dict):
        budget.key(key, value)
        if not isinstance(key, (list, dict)) and key in value:
            return value[key]
    elif isinstance(value, SEQUENCES) and isinstance(key, int):
        if -len(value) <= key < len(value):
            return alike(value, value[key])
    if isinstance(key, str) and len(key) <= LONG_KEY_CHARS:
        return attribute(budget, value, key)
    if type(value) is Undefined:
        value.fail()
    shown = to_text(budget, key) if isinstance(key, (int, float)) else kind_name(key)
    return Undefined(f"{kind_name(value)} has no item {shown}")


def cut(budget, value, bounds):
    """`value[bounds]` for a Python slice."""
    if type(value) is Undefined:
        value.fail()
    if not isinstance(value, SEQUENCES):
        raise Fault(f"{kind_name(value)} cannot be sliced")
    part = value[bounds]
    if not isinstance(part, range):
        budget.take(TEXT if isinstance(part, str) else REFERENCES, len(part))
    return alike(value, part)


def path_getter(budget, path, default=None):
    """A function that reads `path` ("a.b.0", an integer, or None for the value itself) from a
    value.

    Where a step gives an Undefined and `default` is not None, it reads as `default`.
    """
    if path is None:
        return lambda value: value
    keys = [path]
    if isinstance(path, str):
        budget.check(PATH, len(path))
        keys = [int(part) if part.isdecimal() else part for part in path.split(".")]

    def get(value):
        budget.spend(len(keys))
        for key in keys:
            value = item(budget, value, key)
            if default is not None and type(value) is Undefined:
                value = default
        return value

    return get
