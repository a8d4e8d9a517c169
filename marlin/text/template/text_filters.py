"""Filters that make text or a number of one value: TEXT_FILTERS maps a name to function(budget,
value, ...).

As in jinja2, most of them take any value and read it as the text it prints.
"""

import math
import re

from marlin.text.template.formatting import check_padding, printf, to_json
from marlin.text.template.limits import MAX_NUMBER_CHARS, Fault
from marlin.text.template.methods import METHODS
from marlin.text.template.methods import replace as replace_text
from marlin.text.template.operators import ARITHMETIC, escape
from marlin.text.template.values import Safe, Undefined, kind_name, to_text

_WORD_START = re.compile(r"([-\s({\[<]+)")
# A float has about 308 decimal digits on either side of its point.
_MAX_PRECISION = 308


def _alike(value, text):
    """text, as safe as the value that it was made of."""
    return Safe(text) if type(value) is Safe else text


def _string_method(name):
    method = METHODS[str][name]
    return lambda budget, value: _alike(value, method(budget, to_text(budget, value)))


def _trim(budget, value, chars=None):
    return _alike(value, METHODS[str]["strip"](budget, to_text(budget, value), chars))


def _title(budget, value):
    text = to_text(budget, value)
    budget.items(len(text))
    return "".join(part[:1].upper() + part[1:].lower() for part in _WORD_START.split(text))


def _replace(budget, value, old, new, count=None):
    text, old, new = (to_text(budget, part) for part in (value, old, new))
    return replace_text(budget, text, old, new, -1 if count is None else count)


def _escape(budget, value):
    return escape(budget, to_text(budget, value))


def _force_escape(budget, value):
    return escape(budget, str(to_text(budget, value)))


def _mark_safe(budget, value):
    return Safe(to_text(budget, value))


def _indent(budget, value, width=4, first=False, blank=False):
    """Indent lines but the first and blank ones, by `width` spaces or by the text `width`."""
    if not isinstance(value, str):
        raise Fault(f"indent needs a string, not {kind_name(value)}")
    margin = width if isinstance(width, str) else " " * check_padding(width)
    check_padding(len(margin))
    lines = METHODS[str]["splitlines"](budget, value + "\n")
    budget.chars(len(value) + len(lines) * (len(margin) + 1))
    head, tail = lines[0], lines[1:]
    rest = [margin + line if line or blank else line for line in tail]
    return _alike(value, "\n".join([margin + head if first else head, *rest]))


def _format(budget, value, *args, **kwargs):
    if args and kwargs:
        raise Fault("format takes positional or keyword arguments, not both")
    if type(value) is Safe:
        raise Fault("format is not for text that is marked safe here")
    return printf(budget, to_text(budget, value), kwargs or args)


def _to_int(budget, value, default=0, base=10):
    _need_value(budget, value)
    if isinstance(value, str) and len(value) > MAX_NUMBER_CHARS:
        raise Fault(f"integer limit: more than {MAX_NUMBER_CHARS} characters to read as an integer")
    try:
        return int(value, base) if isinstance(value, str) else int(value)
    except (TypeError, ValueError):
        try:
            return int(float(value))
        except (TypeError, ValueError, OverflowError):
            return default


def _to_float(budget, value, default=0.0):
    _need_value(budget, value)
    try:
        return float(value)
    except (TypeError, ValueError):
        return default


def _absolute(budget, value):
    _need_value(budget, value)
    return abs(value)


def _round(budget, value, precision=0, method="common"):
    _need_value(budget, value)
    if method not in ("common", "ceil", "floor"):
        raise Fault("round takes the methods 'common', 'ceil' and 'floor'")
    if abs(precision) > _MAX_PRECISION:
        raise Fault(f"round takes a precision of at most {_MAX_PRECISION}")
    if method == "common":
        return round(value, precision)
    scaled = ARITHMETIC["*"](budget, value, 10**precision)
    whole = math.ceil(scaled) if method == "ceil" else math.floor(scaled)
    return whole / 10**precision


def _need_value(budget, value):
    if type(value) is Undefined:
        value.fail()
    budget.weigh(value)


def _default(_budget, value, default="", boolean=False):
    return default if type(value) is Undefined or (boolean and not value) else value


TEXT_FILTERS = {
    "abs": _absolute,
    "capitalize": _string_method("capitalize"),
    "d": _default,
    "default": _default,
    "e": _escape,
    "escape": _escape,
    "float": _to_float,
    "forceescape": _force_escape,
    "format": _format,
    "indent": _indent,
    "int": _to_int,
    "lower": _string_method("lower"),
    "replace": _replace,
    "round": _round,
    "safe": _mark_safe,
    "string": to_text,
    "title": _title,
    "tojson": to_json,
    "trim": _trim,
    "upper": _string_method("upper"),
}
