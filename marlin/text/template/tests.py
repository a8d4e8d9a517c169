"""What may follow `is`: TESTS maps a name to function(budget, value, *args) -> bool."""

from marlin.text.template.operators import ARITHMETIC, compare
from marlin.text.template.values import ITERABLES, SEQUENCES, Function, Undefined, to_text


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
