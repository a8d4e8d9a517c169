"""Filters over several items, and FILTERS: every filter's name to function(budget, value, *args,
**kwargs).

Filters that jinja2 makes lazy give a Stream here too: it is true even when empty, and has no
length.
"""

from marlin.text.template.access import attribute, check_path, path_getter
from marlin.text.template.limits import LONG_KEY_CHARS, Fault
from marlin.text.template.methods import join as join_text
from marlin.text.template.operators import ARITHMETIC
from marlin.text.template.tests import TESTS
from marlin.text.template.text_filters import TEXT_FILTERS
from marlin.text.template.values import (
    Loop,
    Safe,
    Stream,
    Undefined,
    is_iterable,
    iterate,
    kind_name,
    listing,
    to_text,
    whole,
)

# Work units for each item that a filter takes, above what the filter's own function spends.
_ITEM_WORK = 3


def _length(_budget, value):
    if isinstance(value, Stream) or not (is_iterable(value) or isinstance(value, Loop)):
        raise Fault(f"{kind_name(value)} has no length")
    return value.member("length") if isinstance(value, Loop) else len(value)


def _join(budget, value, separator="", attribute=None):
    get = path_getter(budget, attribute)
    parts = [to_text(budget, get(part)) for part in listing(budget, value)]
    return join_text(budget, to_text(budget, separator), parts)


def _first(_budget, value):
    return next(iterate(value), Undefined("no first item: the list is empty"))


def _last(_budget, value):
    if isinstance(value, Stream):
        raise Fault("a stream has no last item; make it a list first")
    iterate(value)
    return next(reversed(value), Undefined("no last item: the list is empty"))


def _reverse(budget, value):
    if isinstance(value, str):
        budget.chars(len(value))
        return Safe(str(value)[::-1]) if type(value) is Safe else value[::-1]
    return Stream(reversed(listing(budget, value)))


def _items(_budget, value):
    if type(value) is Undefined:
        return Stream(())
    if not isinstance(value, dict):
        raise Fault(f"items needs a dict, not {kind_name(value)}")
    return Stream(value.items())


def _call(table, kind, name, budget, args, kwargs):
    function = table.get(name) if isinstance(name, str) else None
    if function is None:
        raise Fault(f"no {kind} named {name!r}" if isinstance(name, str) else f"no such {kind}")

    def apply(value):
        budget.spend(_ITEM_WORK)
        return function(budget, value, *args, **kwargs)

    return apply


def _map(budget, value, /, *args, **kwargs):
    if not value:  # none and false, too, have nothing to map
        return Stream(())
    if not args and "attribute" in kwargs:
        path, default = kwargs.pop("attribute"), kwargs.pop("default", None)
        if kwargs:
            raise Fault(f"map takes no argument {next(iter(kwargs))!r}")
        apply = path_getter(budget, path, default)
    elif args:
        apply = _call(FILTERS, "filter", args[0], budget, args[1:], kwargs)
    else:
        raise Fault("map needs the name of a filter, or attribute=")
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
        test = _call(TESTS, "test", args[0], budget, args[1:], kwargs) if args else bool
        return Stream(part for part in _walk(budget, value) if bool(test(get(part))) is wanted)

    return select


def _walk(budget, value):
    for part in iterate(value):
        budget.spend(_ITEM_WORK)
        yield part


def _sort_key(budget, path, case_sensitive):
    get = path_getter(budget, path)

    def key(value):
        budget.spend(_ITEM_WORK)
        value = get(value)
        budget.weigh(value)  # the key is what Python compares; an item may hide more than it weighs
        return value.lower() if isinstance(value, str) and not case_sensitive else value

    return key


def _sort(budget, value, reverse=False, case_sensitive=False, attribute=None):
    paths = check_path(attribute).split(",") if isinstance(attribute, str) else [attribute]
    keys = [_sort_key(budget, path, case_sensitive) for path in paths]
    items = listing(budget, value)
    return sorted(items, key=lambda item: [key(item) for key in keys], reverse=bool(reverse))


def _dictsort(budget, value, case_sensitive=False, by="key", reverse=False):
    if by not in ("key", "value") or not isinstance(value, dict):
        raise Fault("dictsort needs a dict, and by='key' or by='value'")
    budget.items(len(value))
    key = _sort_key(budget, 0 if by == "key" else 1, case_sensitive)
    return sorted(value.items(), key=key, reverse=bool(reverse))


def _unique(budget, value, case_sensitive=False, attribute=None):
    key = _sort_key(budget, attribute, case_sensitive)
    seen = set()

    def walk():
        for part in _walk(budget, value):
            mark = key(part)
            budget.key(mark, seen)
            if mark not in seen:
                seen.add(mark)
                yield part

    return Stream(walk())


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
    return whole(budget, attribute(value, name))


FILTERS = {
    **TEXT_FILTERS,
    "attr": _attr,
    "count": _length,
    "dictsort": _dictsort,
    "first": _first,
    "items": _items,
    "join": _join,
    "last": _last,
    "length": _length,
    "list": listing,
    "map": _map,
    "max": _extreme(max),
    "min": _extreme(min),
    "reject": _selector(False, by_attribute=False),
    "rejectattr": _selector(False, by_attribute=True),
    "reverse": _reverse,
    "select": _selector(True, by_attribute=False),
    "selectattr": _selector(True, by_attribute=True),
    "sort": _sort,
    "sum": _sum,
    "unique": _unique,
}
