"""The sampling parameters, one row each: name, type, default, range, and whether a kernel reads it.

From a row come the check of a request's field (parse_sampling), the place in the next token's
SampleRow (batch.py) and the option of `generate` (cli.py). Also edit, for what a kernel reads,
SampleRow in device/abi.py and shaders/params.h, and for any the table in docs/serving.md;
tests/unit/test_sampling.py compares them. Knows no device.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from marlin.files.fields import Fields
from marlin.text.grammar.automaton import Grammar
from marlin.text.grammar.constraint import Constraint

# Entries of one request's logit_bias; a batch keeps room for so many a sequence. Users of the
# API ban word lists; 1,024 is past what the largest APIs take.
MAX_LOGIT_BIASES = 1024
MAX_LOGPROBS = 20

# A nucleus of mass 0 holds the likeliest token alone; so does one of any mass this small.
_SMALLEST_TOP_P = 1e-6


@dataclass(frozen=True, slots=True)
class Parameter:
    """One row.

    Attributes:
        name: in the API, in SamplingParams, and with dashes on the command line.
        kind: float, int or bool.
        default: None where the engine chooses.
        low, high: what may be asked for, both included unless above_low; None is no bound.
        help: for --help.
        in_row: SampleRow has a column of this name.
        adjust: from what may be asked for to what SamplingParams holds.
    """

    name: str
    kind: type
    default: Any
    low: float | None
    high: float | None
    help: str
    in_row: bool = True
    above_low: bool = False
    adjust: Callable[[Any], Any] = lambda value: value

    def read(self, given: Fields) -> Any:
        """What SamplingParams holds for an object with API names; its refusal of a wrong value."""
        return self.adjust(self._checked(given))

    def _checked(self, given):
        if self.kind is bool:
            return given.flag(self.name, self.default)
        if self.kind is int:
            return given.count(self.name, self.default, minimum=self.low, maximum=self.high)
        bound = "above" if self.above_low else "minimum"
        return given.number(self.name, self.default, maximum=self.high, **{bound: self.low})


def _row(default: Any, low: float | None, high: float | None, help: str, **more: Any) -> Any:
    """A field of SamplingParams that is a Parameter, but for its name and kind."""
    return field(default=default, metadata={"low": low, "high": high, "help": help, **more})


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request chooses tokens: the table, and what each API spells its own way.

    Attributes:
        logit_bias: (token id, added to its logit after the penalties) pairs, each id once, at most
            MAX_LOGIT_BIASES.
        constraint, grammar: what the answer must be, and that compiled; None for anything.
        thought_tokens: that a thought may have. thought: the same, as a ThoughtLimit, or None.
        score_prompt: report the prompt's tokens, too (Request.prompt_logprobs); with num_logprobs
            alone. With a max_tokens of 0 the prompt is computed, and nothing generated.
        num_logprobs: report each token's log-probability and those of this many of the likeliest
            tokens, 0 to MAX_LOGPROBS; None reports none.
    """

    temperature: float = _row(0.7, 0, 2, "0 always takes the likeliest token")
    top_p: float = _row(
        *(0.9, 0, 1, "sample among the likeliest tokens that have this probability together"),
        adjust=lambda value: max(value, _SMALLEST_TOP_P),
    )
    top_k: int = _row(
        *(0, -1, 2**31 - 1, "sample among so many of the likeliest tokens; 0 is off"),
        adjust=lambda value: max(value, 0),  # -1 is another common spelling of "off"
    )
    min_p: float = _row(0.0, 0, 1, "drop tokens below this share of the likeliest's probability")
    frequency_penalty: float = _row(0.0, -2, 2, "off a token's logit for each time it was output")
    presence_penalty: float = _row(0.0, -2, 2, "off a token's logit once it was output")
    repetition_penalty: float = _row(
        *(1.0, 0, 2, "divides positive, multiplies negative logits of tokens seen so far"),
        above_low=True,
    )
    seed: int | None = _row(
        *(None, -(2**63), 2**63 - 1, "repeats the same tokens; drawn anew by default"),
        in_row=False,
        adjust=lambda value: None if value is None else value % 2**64,
    )
    max_tokens: int = _row(512, 1, None, "output tokens at most", in_row=False)
    ignore_eos: bool = _row(False, None, None, "go on past an end-of-sequence token", in_row=False)
    logit_bias: tuple[tuple[int, float], ...] = ()
    num_logprobs: int | None = None
    score_prompt: bool = False
    constraint: Constraint | None = None
    grammar: Grammar | None = None
    thought_tokens: int | None = None
    thought: Any = None


PARAMETERS = tuple(
    Parameter(row.name, (get_args(row.type) or (row.type,))[0], row.default, **row.metadata)
    for row in fields(SamplingParams)
    if row.metadata
)
_ROWS = {row.name: row for row in PARAMETERS}


def parse_sampling(given: Fields, **settled: Any) -> SamplingParams:
    """What an object with API names asks for; absent parameters have their defaults.

    Args:
        settled: fields of SamplingParams that are not read from it.
    """
    names = (name for name in given.values if name in _ROWS and name not in settled)
    return SamplingParams(**{name: _ROWS[name].read(given) for name in names}, **settled)
