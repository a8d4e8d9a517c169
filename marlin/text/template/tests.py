"""What may follow `is`: TESTS maps a name to function(budget, value, *args) -> bool."""

from marlin.text.template.operators import ARITHMETIC, compare, contains
from marlin.text.template.values import Invocable, Undefined, is_iterable, is_sequence, to_text


def _is_kind(*kinds):
    return lambda _budget, value: isinstance(value, kinds)


def _ordered(symbol):
    return lambda budget, value, other: compare(budget, symbol, value, other)


def _is_integer(_budget, value):
    return isinstance(value, int) and not isinstance(value, bool)


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
    "callable": _is_kind(Invocable, Undefined),
    "defined": lambda _budget, value: type(value) is not Undefined,
    "divisibleby": _is_divisible,
    "even": lambda budget, value: _is_divisible(budget, value, 2),
    "false": lambda _budget, value: value is False,
    "float": _is_kind(float),
    "in": contains,
    "integer": _is_integer,
    "iterable": lambda _budget, value: is_iterable(value),
    "lower": _has_case(str.islower),
    "mapping": _is_kind(dict),
    "none": lambda _budget, value: value is None,
    "number": _is_kind(int, float),
    "odd": lambda budget, value: ARITHMETIC["%"](budget, value, 2) == 1,
    "sameas": lambda _budget, value, other: value is other,
    "sequence": lambda _budget, value: is_sequence(value),
    "string": _is_kind(str),
    "true": lambda _budget, value: value is True,
    "undefined": lambda _budget, value: type(value) is Undefined,
    "upper": _has_case(str.isupper),
    **dict.fromkeys(("==", "eq", "equalto"), _ordered("==")),
    **dict.fromkeys(("!=", "ne"), _ordered("!=")),
    **dict.fromkeys(("<", "lt", "lessthan"), _ordered("<")),
    **dict.fromkeys(("<=", "le"), _ordered("<=")),
    **dict.fromkeys((">", "gt", "greaterthan"), _ordered(">")),
    **dict.fromkeys((">=", "ge"), _ordered(">=")),
}
