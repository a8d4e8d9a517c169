"""The functions and constants that every template can name."""

from marlin.errors import TemplateError
from marlin.text.template.limits import BOUND, RANGE, TEXT
from marlin.text.template.values import Function, Namespace, listing, to_text

# strftime gives up on a text this many times as long as its format.
_STRFTIME_GROWTH = 256


def _range(budget, *bounds):
    for bound in bounds:
        budget.check(BOUND, bound.bit_length() if isinstance(bound, int) else 0)
    numbers = range(*bounds)
    budget.take(RANGE, len(numbers[: RANGE.most + 1]))
    return numbers


def _dict(budget, source=(), /, **kwargs):
    entries = {}
    for pair in listing(budget, source.items() if isinstance(source, dict) else source):
        key, value = listing(budget, pair)
        budget.key(key, entries)
        entries[key] = value
    return entries | kwargs


def _namespace(budget, source=(), /, **kwargs):
    return Namespace(_dict(budget, source, **kwargs))


def _raise_exception(budget, message):
    raise TemplateError(to_text(budget, message))


def _strftime(now):
    def strftime_now(budget, format):
        budget.take(TEXT, _STRFTIME_GROWTH * len(format))
        return now().strftime(format)

    return strftime_now


def make_globals(now):
    """The names that a template can use beside its variables.

    Args:
        now: function without arguments giving a datetime, the clock of strftime_now.
    """
    functions = {
        "dict": _dict,
        "namespace": _namespace,
        "raise_exception": _raise_exception,
        "range": _range,
        "strftime_now": _strftime(now),
    }
    return {name: Function(function) for name, function in functions.items()}
