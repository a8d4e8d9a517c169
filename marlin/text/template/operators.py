"""The operators of the template language on plain values, and formats and JSON of them; each is
bounded before it is carried out.

Only pairs of kinds that the language defines are accepted, so no operator method of a foreign type
runs. Formatting never reaches into a value: a brace field is a number or a plain name, without
dots, brackets, a conversion or a format.
"""

import json
import operator
import re
from collections.abc import Callable
from functools import partial
from string import Formatter

from marlin.text.origin import plain
from marlin.text.template.limits import INTEGER, PADDING, REFERENCES, TEXT, Fault
from marlin.text.template.values import (
    CONTAINERS,
    KEYS,
    NUMBERS,
    VALUES,
    Safe,
    Undefined,
    kind_name,
    to_text,
)

_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&#39;", '"': "&#34;"})


def escape(budget, text):
    """Safe text with the marks of HTML spelled out; what is Safe stays as it is."""
    if type(text) is Safe:
        return text
    budget.take(TEXT, 6 * len(text))
    return Safe(plain(text).translate(_ESCAPES))


def _add(budget, left, right):
    if isinstance(left, str) and isinstance(right, str):
        kind = str
        if type(left) is Safe or type(right) is Safe:
            left, right, kind = escape(budget, left), escape(budget, right), Safe
        budget.take(TEXT, len(left) + len(right))
        return kind(str.__add__(left, right))
    if type(left) is type(right) and type(left) in (list, tuple):
        budget.take(REFERENCES, len(left) + len(right))
        return left + right
    return _computed("+", budget, left, right)


def _multiply(budget, left, right):
    if isinstance(left, int):
        left, right = right, left
    if isinstance(right, int) and type(left) in (str, list, tuple):
        budget.take(TEXT if type(left) is str else REFERENCES, len(left) * max(0, right))
        return left * right
    return _computed("*", budget, left, right)


_COMPUTE = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
}


def _computed(symbol, budget, left, right):
    """An operator of numbers."""
    if type(left) not in NUMBERS or type(right) not in NUMBERS:
        for operand in (left, right):
            if type(operand) is Undefined:
                operand.fail()
        raise Fault(f"{symbol!r} is not defined for {kind_name(left)} and {kind_name(right)}")
    if symbol in ("*", "**") and isinstance(left, int) and isinstance(right, int):
        num_bits = left.bit_length()
        budget.take(INTEGER, num_bits * right if symbol == "**" else num_bits + right.bit_length())
    number = _COMPUTE[symbol](left, right)
    if isinstance(number, complex):
        raise Fault("the power of a negative number to a fraction")
    if isinstance(number, int):
        budget.take(INTEGER, number.bit_length())
    return number


def _modulo(budget, left, right):
    if type(left) is str:
        return printf(budget, left, right)
    return _computed("%", budget, left, right)


def _concatenate(budget, left, right):
    return _add(budget, str(to_text(budget, left)), str(to_text(budget, right)))


# Each is called with (budget, left, right).
ARITHMETIC: dict[str, Callable] = {
    **{symbol: partial(_computed, symbol) for symbol in _COMPUTE},
    "+": _add,
    "*": _multiply,
    "%": _modulo,
    "~": _concatenate,
}


def appended(budget, symbols, values):
    """The texts that `symbol value symbol value ...` puts to the end of a plain text; None where
    that is not all that the operators do."""
    for symbol, value in zip(symbols, values, strict=True):
        if symbol != "~" and (symbol != "+" or type(value) is not str):
            return None
    return [str(to_text(budget, value)) for value in values]


def fold(budget, left, symbols, values):
    """`left symbol value symbol value ...`, from left to right; text is put together once."""
    texts = appended(budget, symbols, values) if type(left) is str else None
    if texts is not None:
        budget.take(TEXT, len(left) + sum(map(len, texts)))
        return left + "".join(texts)
    for symbol, value in zip(symbols, values, strict=True):
        left = ARITHMETIC[symbol](budget, left, value)
    return left


def signed(budget, sign, value):
    """`+value` or `-value`."""
    number = _computed(sign, budget, 0, value)
    return number or (-value if sign == "-" else +value)  # a zero has a sign of its own


_ORDER = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def compare(budget, symbol, left, right):
    """`left symbol right` for the comparison operators, `in` and `not in`; true or false."""
    if symbol in ("in", "not in"):
        return contains(budget, left, right) is (symbol == "in")
    if isinstance(left, str) and isinstance(right, str):
        budget.scan(min(len(left), len(right)))
        left, right = plain(left), plain(right)
    elif isinstance(left, CONTAINERS) and isinstance(right, CONTAINERS):
        budget.weigh(left)
        budget.weigh(right)
    return _ORDER[symbol](left, right)


def contains(budget, needle, container):
    """`needle in container`."""
    if isinstance(needle, CONTAINERS):
        budget.weigh(needle)
        budget.weigh(container)
    elif isinstance(container, str):
        budget.scan(len(container))
        if isinstance(needle, str):
            return plain(needle) in plain(container)
    elif isinstance(container, (dict, KEYS)):
        budget.key(needle, container)
    elif isinstance(container, (list, tuple, range, VALUES)):
        # Equal lengths make Python compare every character, for every item.
        budget.scan(len(container) * (1 + len(needle) if isinstance(needle, str) else 1))
    return needle in container


_DIRECTIVE = re.compile(r"%(?:\([^()]*\))?[#0\- +]*(\*|[0-9]*)(?:\.(\*|[0-9]*))?[hlL]?(.?)", re.S)
# Directives that print a float with all of its digits before the point, 309 at most.
_LONG_DIRECTIVES, _FLOAT_CHARS = "diufF", 320

# Work units for each field of a brace format, found and formatted.
_FIELD_WORK = 8


def printf(budget, template, values):
    """`template % values`; widths and precisions are numbers of at most four digits."""
    num_values, _, num_chars = budget.printed(values)
    num_directives = padding = 0
    for match in _DIRECTIVE.finditer(template):
        width, precision, kind = match.groups()
        if kind == "(" or "*" in (width, precision):
            raise Fault("this form of % formatting is not allowed in a template")
        for digits in (width, precision):
            # Nine digits are enough to see that a number is too large, but zeros before it are not.
            wanted = int((digits or "").lstrip("0")[:9] or 0)
            budget.check(PADDING, wanted)
            padding += wanted
        padding += _FLOAT_CHARS if kind in _LONG_DIRECTIVES else 0
        num_directives += 1
    budget.take(TEXT, len(template) + padding + num_directives * (num_chars + num_values))
    return template % values


def format_braces(budget, template, /, *args, **kwargs):
    """`template.format(*args, **kwargs)` for plain fields: {}, {0} and {name}."""
    budget.take(TEXT, len(template))
    pieces, next_index, num_chars = [], 0, 0
    for literal, field, spec, conversion in Formatter().parse(template):
        budget.spend(_FIELD_WORK)
        pieces.append(literal)
        if field is None:
            continue
        if spec or conversion or not (field.isidentifier() or field.isdecimal() or not field):
            raise Fault(f"format field {field[:40]!r} is more than a plain name or number")
        if not field:
            field, next_index = str(next_index), next_index + 1
        piece = to_text(budget, args[int(field)] if field.isdecimal() else kwargs[field])
        num_chars += len(piece)
        budget.take(TEXT, num_chars)
        pieces.append(piece)
    return "".join(pieces)


def to_json(budget, value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """json.dumps, with the defaults that `transformers` gives the tojson filter."""
    num_values, depth, _ = budget.printed(value)
    indent_chars = len(indent) if isinstance(indent, str) else indent or 0
    budget.check(PADDING, indent_chars)
    if separators is not None:
        item_separator, key_separator = separators
        indent_chars += len(item_separator) + len(key_separator)
    budget.check(TEXT, num_values * depth * indent_chars)
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    budget.take(TEXT, len(text))
    return text
