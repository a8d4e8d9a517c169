"""FILTERS and TESTS (what may follow `is`): every name to function(budget, value, *args, **kwargs).

As in jinja2, most filters of text take any value and read it as the text it prints; those that
jinja2 makes lazy give a Stream here too: it is true even when empty, and has no length.
"""

import math
import re
from collections.abc import Sized

from marlin.text.template.limits import (
    DIGITS,
    ITEM_WORK,
    ITEMS,
    LONG_KEY_CHARS,
    PADDING,
    PATH,
    TEXT,
    Fault,
)
from marlin.text.template.methods import METHODS, attribute, join, path_getter, replace
from marlin.text.template.operators import ARITHMETIC, compare, escape, printf, to_json
from marlin.text.template.values import (
    ITERABLES,
    SEQUENCES,
    Function,
    Loop,
    Safe,
    Stream,
    Undefined,
    alike,
    iterate,
    kind_name,
    listing,
    to_text,
)

_WORD_START = re.compile(r"([-\s({\[<]+)")
# A float has about 308 decimal digits on either side of its point.
_MAX_PRECISION = 308


def _string_method(name):
    method = METHODS[str][name]
    return lambda budget, value: alike(value, method(budget, to_text(budget, value)))


def _trim(budget, value, chars=None):
    return alike(value, METHODS[str]["strip"](budget, to_text(budget, value), chars))


def _title(budget, value):
    text = to_text(budget, value)
    budget.take(ITEMS, len(text))
    return "".join(part[:1].upper() + part[1:].lower() for part in _WORD_START.split(text))


def _replace(budget, value, old, new, count=None):
    text, old, new = (to_text(budget, part) for part in (value, old, new))
    return replace(budget, text, old, new, -1 if count is None else count)


def _indent(budget, value, width=4, first=False, blank=False):
    """Indent lines but the first and blank ones, by `width` spaces or by the text `width`."""
    if not isinstance(value, str):
        raise Fault(f"indent needs a string, not {kind_name(value)}")
    budget.check(PADDING, len(width) if isinstance(width, str) else width)
    margin = width if isinstance(width, str) else " " * width
    lines = METHODS[str]["splitlines"](budget, value + "\n")
    budget.take(TEXT, len(value) + len(lines) * (len(margin) + 1))
    head, tail = lines[0], lines[1:]
    rest = [margin + line if line or blank else line for line in tail]
    return alike(value, "\n".join([margin + head if first else head, *rest]))


def _format(budget, value, *args, **kwargs):
    if args and kwargs:
        raise Fault("format takes positional or keyword arguments, not both")
    if type(value) is Safe:
        raise Fault("format is not for text that is marked safe here")
    return printf(budget, to_text(budget, value), kwargs or args)


def _number(compute):
    """A filter of a value that has to be there."""

    def apply(budget, value, *args, **kwargs):
        if type(value) is Undefined:
            value.fail()
        budget.weigh(value)
        return compute(budget, value, *args, **kwargs)

    return apply


def _to_int(budget, value, default=0, base=10):
    budget.check(DIGITS, len(value) if isinstance(value, str) else 0)
    try:
        return int(value, base) if isinstance(value, str) else int(value)
    except (TypeError, ValueError):
        try:
            return int(float(value))
        except (TypeError, ValueError, OverflowError):
            return default


def _to_float(_budget, value, default=0.0):
    try:
        return float(value)
    except (TypeError, ValueError):
        return default


def _round(budget, value, precision=0, method="common"):
    if method not in ("common", "ceil", "floor"):
        raise Fault("round takes the methods 'common', 'ceil' and 'floor'")
    if abs(precision) > _MAX_PRECISION:
        raise Fault(f"round takes a precision of at most {_MAX_PRECISION}")
    if method == "common":
        return round(value, precision)
    scaled = ARITHMETIC["*"](budget, value, 10**precision)
    return (math.ceil(scaled) if method == "ceil" else math.floor(scaled)) / 10**precision


def _default(_budget, value, default="", boolean=False):
    return default if type(value) is Undefined or (boolean and not value) else value


def _length(budget, value):
    if isinstance(value, Loop):
        return value.member(budget, "length")
    if isinstance(value, Stream) or not isinstance(value, Sized):
        raise Fault(f"{kind_name(value)} has no length")
    return len(value)


def _join(budget, value, separator="", attribute=None):
    get = path_getter(budget, attribute)
    parts = [to_text(budget, get(part)) for part in listing(budget, value)]
    return join(budget, to_text(budget, separator), parts)


def _first(_budget, value):
    return next(iterate(value), Undefined("no first item: the list is empty"))


def _last(_budget, value):
    if isinstance(value, Stream):
        raise Fault("a stream has no last item; make it a list first")
    iterate(value)
    return next(reversed(value), Undefined("no last item: the list is empty"))


def _reverse(budget, value):
    if isinstance(value, str):
        budget.take(TEXT, len(value))
        return alike(value, value[::-1])
    return Stream(reversed(listing(budget, value)))


def _items(_budget, value):
    if not isinstance(value, (dict, Undefined)):
        raise Fault(f"items needs a dict, not {kind_name(value)}")
    return Stream(value.items() if isinstance(value, dict) else ())


def _named(table, kind, name, budget, args, kwargs):
    """A filter or test with its arguments, as a function of the value alone."""
    function = table.get(name) if isinstance(name, str) else None
    if function is None:
        raise Fault(f"no {kind} named {name!r}" if isinstance(name, str) else f"no such {kind}")
    return lambda value: function(budget, value, *args, **kwargs)


def _map(budget, value, /, *args, **kwargs):
    if not value:  # none and false, too, have nothing to map
        return Stream(())
    if args:
        apply = _named(FILTERS, "filter", args[0], budget, args[1:], kwargs)
    elif "attribute" in kwargs and kwargs.keys() <= {"attribute", "default"}:
        apply = path_getter(budget, kwargs["attribute"], kwargs.get("default"))
    else:
        raise Fault("map needs the name of a filter, or attribute= and perhaps default=")
    return Stream(apply(part) for part in _walk(budget, value))


def _selector(wanted, by_attribute):
    def select(budget, value, /, *args, **kwargs):
        if not value:
            return Stream(())
        get = path_getter(budget, None)
        if by_attribute:
            if not args:
                raise Fault("selectattr and rejectattr need the name of an attribute")
            get, args = path_getter(budget, args[0]), args[1:]
        test = _named(TESTS, "test", args[0], budget, args[1:], kwargs) if args else bool
        return Stream(part for part in _walk(budget, value) if bool(test(get(part))) is wanted)

    return select


def _walk(budget, value):
    for part in iterate(value):
        budget.spend(2 * ITEM_WORK)
        yield part


def _sort_key(budget, path, case_sensitive):
    get = path_getter(budget, path)

    def key(value):
        budget.spend(ITEM_WORK)
        value = get(value)
        budget.weigh(value)  # the key is what Python compares; an item may hide more than it weighs
        return value.lower() if isinstance(value, str) and not case_sensitive else value

    return key


def _sort(budget, value, reverse=False, case_sensitive=False, attribute=None):
    budget.check(PATH, len(attribute) if isinstance(attribute, str) else 0)
    paths = attribute.split(",") if isinstance(attribute, str) else [attribute]
    keys = [_sort_key(budget, path, case_sensitive) for path in paths]
    items = listing(budget, value)
    return sorted(items, key=lambda item: [key(item) for key in keys], reverse=bool(reverse))


def _dictsort(budget, value, case_sensitive=False, by="key", reverse=False):
    if by not in ("key", "value") or not isinstance(value, dict):
        raise Fault("dictsort needs a dict, and by='key' or by='value'")
    key = _sort_key(budget, 0 if by == "key" else 1, case_sensitive)
    return sorted(listing(budget, value.items()), key=key, reverse=bool(reverse))


def _unique(budget, value, case_sensitive=False, attribute=None):
    key = _sort_key(budget, attribute, case_sensitive)
    seen = set()

    def is_new(part):
        mark = key(part)
        budget.key(mark, seen)
        size = len(seen)
        seen.add(mark)
        return len(seen) > size

    return Stream(filter(is_new, _walk(budget, value)))


def _extreme(choose):
    def extreme(budget, value, case_sensitive=False, attribute=None):
        items = listing(budget, value)
        if not items:
            return Undefined("no smallest or largest item: the list is empty")
        return choose(items, key=_sort_key(budget, attribute, case_sensitive))

    return extreme


def _sum(budget, value, attribute=None, start=0):
    get = path_getter(budget, attribute)
    for part in _walk(budget, value):
        start = ARITHMETIC["+"](budget, start, get(part))
    return start


def _attr(budget, value, name):
    if not isinstance(name, str) or len(name) > LONG_KEY_CHARS:
        return Undefined(f"{kind_name(value)} has no such attribute")
    if type(value) is Undefined or (isinstance(value, dict) and name in value):
        return Undefined(f"{kind_name(value)} has no attribute {name!r}")
    return attribute(budget, value, name)


FILTERS = {
    "abs": _number(lambda _budget, value: abs(value)),
    "attr": _attr,
    "capitalize": _string_method("capitalize"),
    "count": _length,
    "d": _default,
    "default": _default,
    "dictsort": _dictsort,
    "e": lambda budget, value: escape(budget, to_text(budget, value)),
    "escape": lambda budget, value: escape(budget, to_text(budget, value)),
    "first": _first,
    "float": _number(_to_float),
    "forceescape": lambda budget, value: escape(budget, str(to_text(budget, value))),
    "format": _format,
    "indent": _indent,
    "int": _number(_to_int),
    "items": _items,
    "join": _join,
    "last": _last,
    "length": _length,
    "list": listing,
    "lower": _string_method("lower"),
    "map": _map,
    "max": _extreme(max),
    "min": _extreme(min),
    "reject": _selector(False, by_attribute=False),
    "rejectattr": _selector(False, by_attribute=True),
    "replace": _replace,
    "reverse": _reverse,
    "round": _number(_round),
    "safe": lambda budget, value: Safe(to_text(budget, value)),
    "select": _selector(True, by_attribute=False),
    "selectattr": _selector(True, by_attribute=True),
    "sort": _sort,
    "string": to_text,
    "sum": _sum,
    "title": _title,
    "tojson": to_json,
    "trim": _trim,
    "unique": _unique,
    "upper": _string_method("upper"),
}


def _is_kind(*kinds):
    return lambda _budget, value: isinstance(value, kinds)


def _is_same(constant):
    return lambda _budget, value: value is constant


def _compared(symbol):
    return lambda budget, value, other: compare(budget, symbol, value, other)


def _is_divisible(budget, value, divisor):
    return ARITHMETIC["%"](budget, value, divisor) == 0


def _has_case(is_case):
    def test(budget, value):
        text = to_text(budget, value)
        budget.scan(len(text))
        return is_case(text)

    return test


TESTS = {
    "boolean": _is_kind(bool),
    "callable": _is_kind(Function, Undefined),
    "defined": lambda _budget, value: type(value) is not Undefined,
    "divisibleby": _is_divisible,
    "even": lambda budget, value: _is_divisible(budget, value, 2),
    "false": _is_same(False),
    "float": _is_kind(float),
    "in": _compared("in"),
    "integer": lambda _budget, value: isinstance(value, int) and not isinstance(value, bool),
    "iterable": _is_kind(*ITERABLES),
    "lower": _has_case(str.islower),
    "mapping": _is_kind(dict),
    "none": _is_same(None),
    "number": _is_kind(int, float),
    "odd": lambda budget, value: ARITHMETIC["%"](budget, value, 2) == 1,
    "sameas": lambda _budget, value, other: value is other,
    "sequence": _is_kind(*SEQUENCES, dict, Undefined),
    "string": _is_kind(str),
    "true": _is_same(True),
    "undefined": _is_kind(Undefined),
    "upper": _has_case(str.isupper),
    **dict.fromkeys(("==", "eq", "equalto"), _compared("==")),
    **dict.fromkeys(("!=", "ne"), _compared("!=")),
    **dict.fromkeys(("<", "lt", "lessthan"), _compared("<")),
    **dict.fromkeys(("<=", "le"), _compared("<=")),
    **dict.fromkeys((">", "gt", "greaterthan"), _compared(">")),
    **dict.fromkeys((">=", "ge"), _compared(">=")),
}
