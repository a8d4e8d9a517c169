"""The methods that a template can call on strings, lists, tuples and dicts. What is not listed does
not exist.

Methods that change their value are listed as None: they hide a dict's entry of that name, as in
jinja2, and calling one fails.
"""

from typing import Any

from marlin.text.template.formatting import check_padding, format_braces
from marlin.text.template.limits import MAX_ITEMS, STEPS_PER_WORK, Fault
from marlin.text.template.operators import contains
from marlin.text.template.values import kind_name, listing

_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def _linear(method):
    """A str method that reads its text once and returns at most a few times as much."""

    def call(budget, text, /, *args, **kwargs):
        budget.scan(len(text))
        if args and isinstance(args[0], tuple):  # prefixes or suffixes, compared one by one
            budget.weigh(args[0])
        return method(text, *args, **kwargs)

    return call


def _nested(method):
    """A str method that compares each character with the whole of its first argument, at worst."""

    def call(budget, text, /, *args, **kwargs):
        pattern = args[0] if args else kwargs.get("sep")
        if isinstance(pattern, str):
            budget.spend(len(text) * len(pattern) // STEPS_PER_WORK)
        budget.scan(len(text))
        return method(text, *args, **kwargs)

    return call


def _padded(method):
    def call(budget, text, width, /, *args):
        budget.chars(len(text) + check_padding(width))
        return method(text, width, *args)

    return call


def _splitting(method):
    def call(budget, text, /, sep=None, maxsplit=-1):
        budget.scan(len(text))
        if isinstance(sep, str):
            budget.spend(len(text) * len(sep) // STEPS_PER_WORK)
        parts = method(text, sep, maxsplit if 0 <= maxsplit <= MAX_ITEMS else MAX_ITEMS)
        budget.items(len(parts))
        return parts

    return call


def _split_lines(budget, text, keepends=False):
    budget.items(sum(text.count(end) for end in _LINE_ENDS))
    budget.scan(len(text) * len(_LINE_ENDS))
    return text.splitlines(keepends)


def replace(budget, text, old, new, count=-1):
    """`text.replace(old, new, count)`, measured first."""
    budget.scan(len(text))
    found = text.count(old) if count < 0 else min(count, text.count(old))
    budget.chars(len(text) + found * max(0, len(new) - len(old)))
    return text.replace(old, new, count)


def join(budget, separator, items):
    """`separator.join(items)`, measured first; the items are strings."""
    parts = listing(budget, items)
    for part in parts:
        if not isinstance(part, str):
            raise Fault(f"join needs strings, not {kind_name(part)}")
    budget.chars(sum(map(len, parts)) + len(separator) * len(parts))
    return separator.join(parts)


def _expand_tabs(budget, text, tabsize=8):
    budget.chars(len(text) + text.count("\t") * check_padding(tabsize))
    return text.expandtabs(tabsize)


def _count_items(budget, items, value):
    contains(budget, value, items)
    return items.count(value)


def _index_of(budget, items, value, *bounds):
    contains(budget, value, items)
    return items.index(value, *bounds)


def _get(budget, entries, key, default=None):
    budget.key(key, entries)
    return entries.get(key, default)


def _copy(budget, value):
    budget.items(len(value))
    return value.copy()


_LINEAR: tuple[Any, ...] = (str.capitalize, str.casefold, str.count, str.endswith, str.find)
_LINEAR += (str.index, str.lower)
_LINEAR += (str.partition, str.removeprefix, str.removesuffix, str.startswith, str.swapcase)
_LINEAR += (str.title, str.upper, str.isalnum, str.isalpha, str.isascii, str.isdecimal, str.isdigit)
_LINEAR += (str.isidentifier, str.islower, str.isnumeric, str.isprintable, str.isspace, str.istitle)
_LINEAR += (str.isupper,)
_NESTED = (str.lstrip, str.rfind, str.rindex, str.rpartition, str.rstrip, str.strip)
_PADDED = (str.ljust, str.rjust, str.zfill)

_STRING = {
    **{method.__name__: _linear(method) for method in _LINEAR},
    **{method.__name__: _nested(method) for method in _NESTED},
    **{method.__name__: _padded(method) for method in _PADDED},
    "expandtabs": _expand_tabs,
    "format": format_braces,
    "join": join,
    "replace": replace,
    "rsplit": _splitting(str.rsplit),
    "split": _splitting(str.split),
    "splitlines": _split_lines,
}
_LIST_CHANGES = ("append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort")
_DICT_CHANGES = ("clear", "pop", "popitem", "setdefault", "update")

METHODS: dict[type, dict[str, Any]] = {
    str: _STRING,
    list: {
        "copy": _copy,
        "count": _count_items,
        "index": _index_of,
        **dict.fromkeys(_LIST_CHANGES),
    },
    tuple: {"count": _count_items, "index": _index_of},
    dict: {
        "copy": _copy,
        "get": _get,
        "items": lambda _budget, entries: entries.items(),
        "keys": lambda _budget, entries: entries.keys(),
        "values": lambda _budget, entries: entries.values(),
        **dict.fromkeys(_DICT_CHANGES),
    },
}
