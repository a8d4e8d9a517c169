"""The operators of the template language on plain values, each bounded before it is carried out.

Only pairs of kinds that the language defines are accepted, so no operator method of a foreign type
runs.
"""

import operator

from marlin.text.template.formatting import printf
from marlin.text.template.limits import Fault
from marlin.text.template.values import (
    TAIL_CHARS,
    Joined,
    Safe,
    Undefined,
    kind_name,
    to_text,
    whole,
)

_NUMBERS = (bool, int, float)
_CONTAINERS = (list, tuple, dict, type({}.keys()), type({}.items()))
_HASHED = (dict, type({}.keys()))
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&#39;", '"': "&#34;"})
_SEARCHED = (list, tuple, range, type({}.values()))


def _refuse(symbol, left, right):
    for operand in (left, right):
        if type(operand) is Undefined:
            operand.fail()
    raise Fault(f"{symbol!r} is not defined for {kind_name(left)} and {kind_name(right)}")


def _are_numbers(left, right):
    return type(left) in _NUMBERS and type(right) in _NUMBERS


def _add(budget, left, right):
    if type(left) in (str, Joined) and type(right) is str:
        return _join(budget, left, right)
    left = whole(budget, left)
    kind = type(left)
    if isinstance(left, str) and isinstance(right, str):
        return _add_safe(budget, left, right)
    if _are_numbers(left, right):
        return _bounded(budget, left + right)
    if kind is type(right) and kind in (list, tuple):
        budget.references(len(left) + len(right))
        return left + right
    return _refuse("+", left, right)


def _join(budget, left, right):
    """Text to the end of a str or a Joined."""
    if type(left) is Joined:
        budget.grown(left.num_chars + len(right), len(right) + TAIL_CHARS)
        return left.plus(right)
    num_chars = len(left) + len(right)
    if num_chars <= TAIL_CHARS:
        budget.chars(num_chars)
        return left + right
    budget.grown(num_chars, len(right))
    return Joined(left, right)


def escape(budget, text):
    """Safe text with the marks of HTML spelled out; what is Safe stays as it is."""
    if type(text) is Safe:
        return text
    budget.scan(len(text))
    budget.chars(6 * len(text))
    return Safe(text.translate(_ESCAPES))


def _add_safe(budget, left, right):
    left, right = escape(budget, left), escape(budget, right)
    budget.chars(len(left) + len(right))
    return Safe(str(left) + str(right))


def _subtract(budget, left, right):
    if not _are_numbers(left, right):
        return _refuse("-", left, right)
    return _bounded(budget, left - right)


def _multiply(budget, left, right):
    if _are_numbers(left, right):
        if isinstance(left, int) and isinstance(right, int):
            budget.bits(left.bit_length() + right.bit_length())
        return left * right
    if isinstance(left, int):
        left, right = right, left
    if isinstance(right, int) and type(left) in (str, list, tuple):
        num_items = len(left) * max(0, right)
        budget.chars(num_items) if type(left) is str else budget.references(num_items)
        return left * right
    return _refuse("*", left, right)


def _power(budget, left, right):
    if not _are_numbers(left, right):
        return _refuse("**", left, right)
    if isinstance(left, int) and isinstance(right, int) and right > 0:
        budget.bits(left.bit_length() * right)
    return _bounded(budget, left**right)


def _dividing(operate, symbol):
    def divide(budget, left, right):
        if not _are_numbers(left, right):
            return _refuse(symbol, left, right)
        return _bounded(budget, operate(_bounded(budget, left), right))

    return divide


_remainder = _dividing(operator.mod, "%")


def _modulo(budget, left, right):
    return (printf if type(left) is str else _remainder)(budget, left, right)


def _concatenate(budget, left, right):
    right = str(to_text(budget, right))
    return _join(budget, left if type(left) is Joined else str(to_text(budget, left)), right)


def _bounded(budget, number):
    if isinstance(number, complex):
        raise Fault("the power of a negative number to a fraction")
    if isinstance(number, int):
        budget.bits(number.bit_length())
    return number


ARITHMETIC = {
    "+": _add,
    "-": _subtract,
    "*": _multiply,
    "/": _dividing(operator.truediv, "/"),
    "//": _dividing(operator.floordiv, "//"),
    "%": _modulo,
    "**": _power,
    "~": _concatenate,
}


# Those whose left side may be a Joined.
JOINING = ("+", "~")


def signed(budget, sign, operand):
    """`+operand` or `-operand`."""
    if type(operand) is Undefined:
        operand.fail()
    if type(operand) not in _NUMBERS:
        raise Fault(f"{sign!r} is not defined for {kind_name(operand)}")
    return _bounded(budget, -operand if sign == "-" else +operand)


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
    if symbol == "in":
        return contains(budget, left, right)
    if symbol == "not in":
        return not contains(budget, left, right)
    if isinstance(left, str) and isinstance(right, str):
        budget.scan(min(len(left), len(right)))
    elif isinstance(left, _CONTAINERS) and isinstance(right, _CONTAINERS):
        budget.weigh(left)
        budget.weigh(right)
    return _ORDER[symbol](left, right)


def contains(budget, needle, container):
    """`needle in container`."""
    if isinstance(needle, _CONTAINERS):
        budget.weigh(needle)
        budget.weigh(container)
    elif isinstance(container, str):
        budget.scan(len(container))
    elif isinstance(container, _HASHED):
        budget.key(needle, container)
    elif isinstance(container, range) and isinstance(needle, int):
        pass  # computed, not searched
    elif isinstance(container, _SEARCHED):
        # Equal lengths make Python compare every character, for every item.
        scanned = len(needle) if isinstance(needle, str) else 1
        budget.scan(len(container) * (scanned + 1))
    return needle in container
