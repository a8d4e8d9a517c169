"""How many guesses of a draft model are worth their time: from what steps took, and what was right.

A token that is guessed right saves its share of a step; a guess costs a row more of a step, and a
step of the draft model. Both are measured. What guessing has cost beyond what it saved is kept to a
small share of all steps' time, whatever is asked. Knows no requests' tokens and no device.
"""

from collections.abc import Sequence

from marlin.engine.draft import MAX_DRAFT_TOKENS

# Tokens a draft: with the row of the token before it 2, 4 or 8 rows, as ngram guesses have them.
DRAFT_LENGTHS = (1, 3, MAX_DRAFT_TOKENS)
# Of all steps' time, what guesses may take that save nothing; and seconds of it that are there at
# the start, and that may be saved up: a prompt has to be computed before anything is guessed.
MAX_LOSS = 0.02
MAX_CREDIT_S = 1.0
# A row more of a step as a share of a step of one row, until it is measured (docs/performance.md).
_ROW_COST = 0.2
# What a guess is believed to be right by, before any is; counted as so many guesses.
_PRIOR, _PRIOR_WEIGHT = 0.7, 2.0
# An outcome counts this much less after each that follows, and after each step: of a request, and
# of all together, by which one that begins is judged.
_DECAYS, _DECAYS_OF_ALL = (0.85, 0.98), (0.95, 0.999)
_DECAY_A_MEASUREMENT = 0.95


class Trust:
    """The share of guesses that are right, lately.

    Args:
        prior: of those whose outcomes this one begins with; None is a number.
    """

    def __init__(self, prior: "Trust | None" = None):
        self._prior = prior
        self._decays = _DECAYS_OF_ALL if prior is None else _DECAYS
        self._right = self._tried = 0.0

    @property
    def value(self) -> float:
        prior = _PRIOR if self._prior is None else self._prior.value
        return (self._right + prior * _PRIOR_WEIGHT) / (self._tried + _PRIOR_WEIGHT)

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """A step had so many guesses, perhaps none, and so many were right."""
        a_draft, a_step = self._decays
        decay = a_step * (a_draft if num_drafted else 1.0)
        self._right = self._right * decay + num_accepted
        # What follows a wrong guess says nothing.
        self._tried = self._tried * decay + min(num_accepted + 1, num_drafted)


class _Line:
    """Seconds by rows, a line through the last measurements."""

    def __init__(self):
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def add(self, rows, seconds):
        for name, new in (
            *(("_weight", 1.0), ("_x", rows), ("_y", seconds)),
            *(("_xx", rows * rows), ("_xy", rows * seconds)),
        ):
            setattr(self, name, getattr(self, name) * _DECAY_A_MEASUREMENT + new)

    @property
    def slope(self):
        """Seconds a row; by _ROW_COST where all steps had nearly as many."""
        if not self._weight:
            return 0.0
        x, y = self._x / self._weight, self._y / self._weight
        variance = max(0.0, self._xx / self._weight - x * x)
        covariance = self._xy / self._weight - x * y
        assumed, weight = _ROW_COST * y / (1 + _ROW_COST * (x - 1)), 0.1
        return max(0.0, (covariance + weight * assumed) / (variance + weight))

    def at(self, rows):
        """Seconds of a step of so many rows; 0 before any was measured."""
        if not self._weight:
            return 0.0
        return max(0.0, (self._y + self.slope * (rows * self._weight - self._x)) / self._weight)


class Pace:
    """What guessing costs and saves in one engine.

    Attributes:
        trust: Trust in the guesses of all requests.
        credit_s: seconds that guessing may lose before it has to stop.
    """

    def __init__(self):
        self.trust = Trust()
        self.credit_s = MAX_CREDIT_S
        self._step_s = _Line()
        self._draft_step_s = 0.0

    def note_step(
        self, num_rows: int, num_drafts: int, num_accepted: int, seconds: float, is_decode: bool
    ) -> None:
        """The model's step took so long.

        Args:
            num_rows: tokens computed, num_drafts guesses among them, of which num_accepted were
                right.
            is_decode: each of the others was its request's last token.
        """
        if is_decode:
            self._step_s.add(num_rows, seconds)
        rest = num_rows - num_drafts
        saved = num_accepted * self._step_s.at(rest) / rest - num_drafts * self._step_s.slope
        self._earn(MAX_LOSS * seconds + saved)

    def note_drafting(self, seconds: float, is_decode: bool) -> None:
        """A step of the draft model took so long; is_decode: it had a token or two a request."""
        if is_decode:
            before = self._draft_step_s or seconds
            self._draft_step_s = before + (1 - _DECAY_A_MEASUREMENT) * (seconds - before)
        self._earn(-seconds)

    def _earn(self, seconds):
        self.credit_s = min(MAX_CREDIT_S, self.credit_s + seconds)

    def lengths(self, trusts: Sequence[float], limits: Sequence[int], num_rows: int) -> list[int]:
        """How many tokens to guess for each request, so that a step saves most; all 0 where none
        would save anything, or too much was lost.

        Args:
            trusts, limits: of each request, how far its guesses are trusted and how many it takes.
            num_rows: tokens in the step besides.
        """
        chosen = [0] * len(limits)
        if self.credit_s <= 0:
            return chosen
        token_s, row_s, most = self._step_s.at(num_rows) / max(1, num_rows), self._step_s.slope, 0.0
        for longest in DRAFT_LENGTHS:
            lengths, gain = [], -longest * self._draft_step_s
            for trust, limit in zip(trusts, limits, strict=True):
                chances = [trust**i for i in range(1, min(longest, limit) + 1)]
                worth = [chance for chance in chances if chance * token_s > row_s]
                gain += sum(worth) * token_s - len(worth) * row_s
                lengths.append(len(worth))
            if gain > most:
                chosen, most = lengths, gain
        return chosen
