"""The functions and constants that every template can name."""

from marlin.errors import TemplateError
from marlin.text.template.limits import MAX_BOUND_BITS, MAX_PADDING, MAX_RANGE, Fault
from marlin.text.template.values import Function, Namespace, listing, to_text

# strftime gives up on a text this many times as long as its format.
_STRFTIME_GROWTH = 256


def _range(_budget, *bounds):
    if any(isinstance(bound, int) and bound.bit_length() > MAX_BOUND_BITS for bound in bounds):
        raise Fault(f"range limit: a bound of more than {MAX_BOUND_BITS} bits")
    numbers = range(*bounds)
    if numbers and len(numbers[: MAX_RANGE + 1]) > MAX_RANGE:
        raise Fault(f"range limit: a range of more than {MAX_RANGE} numbers")
    return numbers


def _dict(budget, /, *args, **kwargs):
    entries = {}
    if args:
        (source,) = args
        if isinstance(source, dict):
            budget.items(len(source))
            entries.update(source)
        else:
            for pair in listing(budget, source):
                key, value = listing(budget, pair)
                budget.key(key, entries)
                entries[key] = value
    entries.update(kwargs)
    return entries


def _namespace(budget, /, *args, **kwargs):
    return Namespace(_dict(budget, *args, **kwargs))


def _raise_exception(budget, message):
    raise TemplateError(to_text(budget, message))


def _strftime(now):
    def strftime_now(budget, format):
        if len(format) > MAX_PADDING:
            raise Fault(f"text limit: a date format of more than {MAX_PADDING} characters")
        budget.chars(_STRFTIME_GROWTH * len(format))
        return now().strftime(format)

    return Function(strftime_now)


def make_globals(now):
    """The names that a template can use beside its variables.

    Args:
        now: function without arguments giving a datetime, the clock of strftime_now.
    """
    return {
        "dict": Function(_dict),
        "namespace": Function(_namespace),
        "raise_exception": Function(_raise_exception),
        "range": Function(_range),
        "strftime_now": _strftime(now),
    }
