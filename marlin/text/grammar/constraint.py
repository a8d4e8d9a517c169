"""What an answer must be: parts put together, compiled to a Grammar.

The interface of this package: whoever takes requests makes a Part and has it compiled; whoever
samples has the Grammar. Knows no API and no tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from marlin.errors import RequestError
from marlin.text.grammar import ebnf, regex
from marlin.text.grammar.automaton import ANYTHING, Automaton, Grammar
from marlin.text.grammar.json_rules import JsonRules

# The byte before a special token's text, which is in no text: see SpecialToken.
SPECIAL = b"\xff"


class Part:
    """A part of an answer: one of the classes below."""


@dataclass(frozen=True, slots=True)
class Text(Part):
    """This text, as it stands."""

    text: str


@dataclass(frozen=True, slots=True)
class SpecialToken(Part):
    """A token that a tokenizer calls special (is_special), by its text. Other tokens, added ones
    such as `<tool_call>` of Qwen among them, are Text."""

    text: str


@dataclass(frozen=True, slots=True)
class JsonSchema(Part):
    """A value of a schema; {"type": "object"} is any object."""

    schema: Any


@dataclass(frozen=True, slots=True)
class Regex(Part):
    """A text that the expression matches as a whole, or somewhere."""

    pattern: str
    is_searched: bool = False


@dataclass(frozen=True, slots=True)
class Ebnf(Part):
    """A text of the grammar's rule `root`, in GBNF."""

    source: str


@dataclass(frozen=True, slots=True)
class InOrder(Part):
    """Parts one after another."""

    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Either(Part):
    """One of several parts."""

    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class AllOf(Part):
    """A text that is each of several parts."""

    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Repeated(Part):
    """A part low to high times; None: without end."""

    part: Part
    low: int = 0
    high: int | None = None


@dataclass(frozen=True, slots=True)
class Until(Part):
    """Any text up to the first `end`, and that, as text or as a special token."""

    end: str


@dataclass(frozen=True, slots=True)
class Without(Part):
    """Any text that this one is not in; no special tokens."""

    text: str


@dataclass(frozen=True, slots=True)
class AnyText(Part):
    """Any text at all, special tokens apart."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a request says of its answer.

    Attributes:
        place: the field that says it, for errors.
    """

    part: Part
    place: str

    def compiled(self, before: Part | None = None) -> Grammar:
        """Its grammar, behind another part; as compile_grammar()."""
        return compile_grammar(InOrder((before, self.part)) if before else self.part, self.place)


def marker(text: str) -> Part:
    """A text that may be a special token."""
    return Either((InOrder((Text(text),)), SpecialToken(text)))


def thought(opening: str, closing: str, is_open: bool) -> Part:
    """What may come before an answer: a thought, begun in the prompt or not, and line breaks."""
    rest = InOrder((Until(closing), Regex(r"\n{0,2}")))
    if is_open:
        return rest
    return Repeated(InOrder((marker(opening.strip()), rest)), 0, 1)


def compile_grammar(part: Part, place: str) -> Grammar:
    """The grammar of an answer.

    Args:
        place: what errors call it: a field of the request.

    Raises:
        RequestError: something is not supported or too large; its `param` is the place and, within
            a schema, a JSON pointer.
    """
    automaton = Automaton()
    end = automaton.new_rule()[1]
    try:
        _add(automaton, part, automaton.start, end)
        return automaton.finish()
    except RequestError as error:
        raise RequestError(f"{place}: {error.message}", param=place + (error.param or "")) from None
    except UnicodeEncodeError:
        raise RequestError(f"{place} holds an unpaired surrogate", param=place) from None


def _add(automaton, part, source, target):
    if isinstance(part, Text):
        automaton.text(source, part.text.encode(), target)
    elif isinstance(part, SpecialToken):
        automaton.text(source, SPECIAL + part.text.encode(), target)
    elif isinstance(part, JsonSchema):
        rules = JsonRules(automaton, part.schema)
        rules.add([(part.schema, "#")], source, target)
    elif isinstance(part, Regex):
        _regex(automaton, part, source, target)
    elif isinstance(part, Ebnf):
        ebnf.build(automaton, part.source, source, target)
    elif isinstance(part, AnyText):
        rule = automaton.rule("any", lambda start, end: automaton.characters(start, ANYTHING, end))
        automaton.call(source, rule, target, 0, None)
    elif isinstance(part, Until):
        _until(automaton, part.end.encode(), source, target)
        _add(automaton, InOrder((AnyText(), SpecialToken(part.end))), source, target)
    elif isinstance(part, Without):
        _without(automaton, part.text.encode(), source, target)
    elif isinstance(part, AllOf):
        _all_of(automaton, part.parts, source, target)
    elif isinstance(part, Repeated):
        rule = automaton.new_rule()
        _add(automaton, part.part, *rule)
        automaton.call(source, rule, target, part.low, part.high)
    elif isinstance(part, Either):
        texts = [one.text.encode() for one in part.parts if isinstance(one, Text)]
        if len(texts) == len(part.parts):
            automaton.texts(source, texts, target)
        else:
            for one in part.parts:
                _add(automaton, one, source, target)
    else:
        for one in part.parts[:-1]:
            state = automaton.state()
            _add(automaton, one, source, state)
            source = state
        _add(automaton, part.parts[-1], source, target)


def _regex(automaton, part, source, target):
    node = regex.parse(part.pattern)
    node = regex.searched(node) if part.is_searched else regex.whole(node)
    regex.build(automaton, node, source, target, automaton.characters)


def _all_of(automaton, parts, source, target):
    rules = [automaton.new_rule() for _ in parts]
    for one, rule in zip(parts, rules, strict=True):
        _add(automaton, one, *rule)
    for other in rules[1:]:
        both = automaton.new_rule()
        automaton.both(both[0], rules[0], other, both[1])
        rules[0] = both
    automaton.call(source, rules[0], target)


def _without(automaton, text, source, target):
    first, dead = automaton.state(), automaton.state()
    automaton.empty(source, first)
    for state in _until(automaton, text, first, dead):
        automaton.empty(state, target)


def _until(automaton, end, source, target):
    """Bytes up to the first `end`: a state for each beginning of it (Knuth, Morris, Pratt 1977),
    which are returned."""
    states = [source, *(automaton.state() for _ in end[1:]), target]
    for length, state in enumerate(states[:-1]):
        following = {
            byte: next(
                size
                for size in range(length + 1, -1, -1)
                if (end[:length] + bytes([byte])).endswith(end[:size])
            )
            for byte in set(end)
        }
        others = sorted({-1, *following, 0xF5})
        for low, high in pairwise(others):
            if low + 1 < high:
                automaton.byte(state, low + 1, high - 1, source)
        for byte, size in following.items():
            automaton.byte(state, byte, byte, states[size])
    return states[:-1]
