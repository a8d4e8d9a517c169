"""Numbers as JSON spells them, within bounds and multiples of another: digit by digit.

Owns the arithmetic of decimal digits. Bounds are exact: what JSON wrote, not what a float holds.
Bounded numbers have no exponent.
"""

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from marlin.errors import RequestError
from marlin.text.grammar.automaton import Automaton, Rule

# Digits of a bound; 64-bit numbers and times in microseconds have 20.
MAX_DIGITS = 60
# A multiple is a remainder for each state, ten edges each.
MAX_REMAINDERS = 1000


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound above 0 or at it: `digits` of its whole part and of its fraction."""

    value: Decimal
    is_open: bool = False

    @property
    def digits(self) -> tuple[str, str]:
        whole, _, fraction = format(self.value, "f").partition(".")
        return whole, fraction.rstrip("0")


def decimal(value: int | float) -> Decimal:
    """A number of a schema, exactly as it was written."""
    try:
        found = Decimal(repr(value))
    except (InvalidOperation, ValueError):  # an int of thousands of digits
        raise RequestError("is a number of too many digits") from None
    if not found.is_finite() or abs(found.adjusted()) > MAX_DIGITS:
        raise RequestError(f"is a number of more than {MAX_DIGITS} digits")
    return found


def number(automaton: Automaton) -> Rule:
    """Any number."""

    def build(start, end):
        whole, point, fraction, exponent = (automaton.state() for _ in range(4))
        _sign(automaton, start, whole)
        after = automaton.state()
        _whole(automaton, whole, after)
        automaton.empty(after, end)
        automaton.byte(after, 0x2E, 0x2E, point)
        _digits(automaton, point, 1, None, fraction)
        automaton.empty(fraction, end)
        for source in (after, fraction):
            for letter in b"eE":
                automaton.byte(source, letter, letter, exponent)
        signed = automaton.state()
        automaton.empty(exponent, signed)
        for sign in b"+-":
            automaton.byte(exponent, sign, sign, signed)
        _digits(automaton, signed, 1, 2, end)  # a double has no more, with a digit before them

    return automaton.rule("number", build)


def integer(automaton: Automaton) -> Rule:
    """Any whole number, without point or exponent."""

    def build(start, end):
        whole = automaton.state()
        _sign(automaton, start, whole)
        _whole(automaton, whole, end)

    return automaton.rule("integer", build)


def _sign(automaton, source, target):
    automaton.empty(source, target)
    automaton.byte(source, 0x2D, 0x2D, target)


def _whole(automaton, source, target):
    automaton.byte(source, 0x30, 0x30, target)
    rest = automaton.state()
    automaton.byte(source, 0x31, 0x39, rest)
    _digits(automaton, rest, 0, None, target)


def _digits(automaton, source, low, high, target):
    rule = automaton.rule("digit", lambda start, end: automaton.byte(start, 0x30, 0x39, end))
    automaton.call(source, rule, target, low, high)


# ---- bounds ----


def bounded(
    automaton: Automaton,
    low: Bound | None,
    high: Bound | None,
    is_integer: bool,
) -> Rule:
    """Numbers from low to high, None for no bound; Bounds of any sign."""

    def build(start, end):
        zero = Bound(Decimal(0))
        if high is None or high.value >= 0:
            least = low if low is not None and low.value >= 0 else zero
            _at_least_0(automaton, start, least, high, is_integer, end)
        if low is None or low.value < 0:
            negative = automaton.state()
            automaton.byte(start, 0x2D, 0x2D, negative)
            least = _mirrored(high) if high is not None and high.value < 0 else zero
            if is_integer and least.value == 0:  # 0 has no sign
                least = Bound(Decimal(1))
            _at_least_0(automaton, negative, least, low and _mirrored(low), is_integer, end)

    key = ("bounded", low, high, is_integer)
    return automaton.rule(key, build)


def _mirrored(bound):
    return Bound(-bound.value, bound.is_open)


def _at_least_0(automaton, source, low, high, is_integer, target):
    if is_integer:
        first = int(low.value) + (low.value != int(low.value) or low.is_open)
        last = None
        if high is not None:
            last = int(high.value) - (high.value == int(high.value) and high.is_open)
        return _whole_range(automaton, source, first, last, target)
    after, (low_whole, low_fraction) = automaton.state(), low.digits
    free_from = int(low_whole) + 1
    if high is None:
        _whole_range(automaton, source, free_from, None, after)
        _fraction(automaton, source, low_whole, (low_fraction, low.is_open), None, target)
    else:
        high_whole, high_fraction = high.digits
        upper = (high_fraction, high.is_open)
        _whole_range(automaton, source, free_from, int(high_whole) - 1, after)
        lower = (low_fraction, low.is_open)
        if low_whole == high_whole:
            _fraction(automaton, source, low_whole, lower, upper, target)
        elif int(low_whole) < int(high_whole):
            _fraction(automaton, source, low_whole, lower, None, target)
            _fraction(automaton, source, high_whole, None, upper, target)
    automaton.empty(after, target)
    point = automaton.state()
    automaton.byte(after, 0x2E, 0x2E, point)
    _digits(automaton, point, 1, None, target)


def _whole_range(automaton, source, first, last, target):
    """Whole numbers from first to last, without leading zeros."""
    if last is not None and last < first:
        return
    shortest = len(str(first))
    longest = len(str(last)) if last is not None else shortest
    if shortest == longest and last is not None:
        return _same_length(automaton, source, str(first), str(last), target)
    _same_length(automaton, source, str(first), "9" * shortest, target)
    if last is not None:
        _same_length(automaton, source, "1" + "0" * (longest - 1), str(last), target)
    if last is None or longest - shortest > 1:
        rest = automaton.state()
        automaton.byte(source, 0x31, 0x39, rest)
        most = None if last is None else longest - 2
        _digits(automaton, rest, shortest, most, target)


def _same_length(automaton, source, low, high, target):
    """Digits from low to high, which are as long."""
    states = {(True, True): source}
    for place, (least, most) in enumerate(zip(low, high, strict=True)):
        following: dict[tuple[bool, bool], int] = {}
        for (at_low, at_high), state in states.items():
            begin, end = int(least) if at_low else 0, int(most) if at_high else 9
            for first, last in _runs(begin, end, at_low, at_high):
                key = (at_low and first == begin, at_high and last == end)
                if place == len(low) - 1:
                    following[key] = target
                elif key not in following:
                    following[key] = automaton.state()
                automaton.byte(state, 0x30 + first, 0x30 + last, following[key])
        states = following


def _runs(begin, end, at_low, at_high):
    """The digits from begin to end, cut where the first or the last stays at its bound."""
    if begin > end:
        return []
    if begin == end:
        return [(begin, end)]
    cuts = [(begin, begin)] if at_low else []
    middle = (begin + at_low, end - at_high)
    cuts += [middle] if middle[0] <= middle[1] else []
    return [*cuts, (end, end)] if at_high else cuts


def _fraction(automaton, source, whole, lower, upper, target):
    """A whole part and the fractions within bounds, (digits, is open) or None each."""
    after = automaton.state()
    automaton.text(source, whole.encode(), after)
    low, low_open = lower or ("", False)
    high, high_open = upper or ("", False)
    length = max(len(low), len(high))
    states: dict[tuple[int, bool, bool], int] = {}
    pending = []

    def state_of(place, at_low, at_high):
        key = (min(place, length), at_low, at_high)
        if key not in states:
            states[key] = automaton.state()
            pending.append(key)
        return states[key]

    def ends(place, at_low, at_high):
        is_low = not at_low or (place >= len(low) and not low_open)
        is_high = not at_high or place < len(high) or not high_open
        return is_low and is_high

    at_low, at_high = lower is not None, upper is not None
    if ends(0, at_low, at_high):
        automaton.empty(after, target)
    automaton.byte(after, 0x2E, 0x2E, state_of(0, at_low, at_high))
    while pending:
        key = place, at_low, at_high = pending.pop()
        for digit in range(10):
            least = int(low[place : place + 1] or 0) if at_low else 0
            most = int(high[place : place + 1] or 0) if at_high else 9
            if not least <= digit <= most:
                continue
            rest = (at_low and digit == least, at_high and digit == most)
            following = state_of(place + 1, *rest)
            automaton.byte(states[key], 0x30 + digit, 0x30 + digit, following)
            if ends(place + 1, *rest):
                automaton.byte(states[key], 0x30 + digit, 0x30 + digit, target)


# ---- multiples ----


def multiple(automaton: Automaton, of: Decimal) -> Rule:
    """Multiples of a number above 0, with no more digits behind the point than it has."""
    exponent = of.normalize().as_tuple().exponent
    assert isinstance(exponent, int), "decimal() gives finite numbers"
    places = max(0, -exponent)
    step = int(Fraction(of) * 10**places)
    # Zeros at its end are digits of the number, not remainders.
    if step > MAX_REMAINDERS:
        raise RequestError(f"has more than {MAX_REMAINDERS} steps between whole numbers")

    def build(start, end):
        whole = automaton.state()
        _sign(automaton, start, whole)
        states = [[automaton.state() for _ in range(step)] for _ in range(places + 1)]
        point = [automaton.state() for _ in range(step)] if places else []
        for digit in range(10):
            following = states[0][digit % step] if digit else automaton.state()
            automaton.byte(whole, 0x30 + digit, 0x30 + digit, following)
            if not digit:
                automaton.empty(following, end)
                if places:
                    automaton.byte(following, 0x2E, 0x2E, point[0])
        for place, row in enumerate(states):
            for rest, state in enumerate(row):
                automaton.check_size()
                if rest * 10 ** (places - place) % step == 0:
                    automaton.empty(state, end)
                if place == 0 and places:
                    automaton.byte(state, 0x2E, 0x2E, point[rest])
                sources = [state] if place == 0 else []
                _multiply(automaton, sources, rest, step, states[place])
                if place < places:
                    source = point[rest] if place == 0 else state
                    _multiply(automaton, [source], rest, step, states[place + 1])

    return automaton.rule(("multiple", of), build)


def _multiply(automaton, sources, rest, step, targets):
    for source in sources:
        for digit in range(10):
            target = targets[(rest * 10 + digit) % step]
            automaton.byte(source, 0x30 + digit, 0x30 + digit, target)
