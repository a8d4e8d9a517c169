"""A thought that has had its tokens is closed with the model's own words.

Owns where an answer is in its thought, token by token, and the Guide that forces the closing text;
what grammars say of the rest is another Guide's. Knows no API and no steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from marlin.engine.constraint import Guide
from marlin.engine.sampling import SamplingParams
from marlin.text.answer import AnswerReader
from marlin.text.grammar.constraint import SPECIAL

_WAITING, _OPEN, _FORCING, _OVER = range(4)


@dataclass(frozen=True, slots=True)
class ThoughtLimit:
    """How long an answer's thought may be.

    Attributes:
        num_tokens: after which the thought is closed.
        opening, closing: the texts around a thought.
        forced: the text that closes one.
        is_open: the answer begins inside a thought.
        repeats: an answer may have several thoughts, anywhere; else one, at its beginning.
    """

    num_tokens: int
    opening: str
    closing: str
    forced: str
    is_open: bool
    repeats: bool = False


def limited(sampling: SamplingParams, reader: AnswerReader | None) -> SamplingParams:
    """The same with what bounds the thoughts of answers that are read so, where anything does."""
    found = reader and reader.thoughts()
    if sampling.thought_tokens is None or not found:
        return sampling
    thought, is_open, repeats = found
    texts = thought.opening, thought.closing, thought.forced
    limit = ThoughtLimit(sampling.thought_tokens, *texts, is_open, repeats)
    return replace(sampling, thought=limit)


class _State(NamedTuple):
    """Attributes:
    phase: before a thought, in one, closing it, or past the only one.
    num_thought: tokens of thoughts so far.
    tail: bytes in which a marker may have begun.
    num_forced: tokens of the closing text.
    """

    phase: int
    num_thought: int = 0
    tail: bytes = b""
    num_forced: int = 0


class ThoughtGuide:
    """A Guide of one request: every token may come but where its thought has to end.

    Args:
        forced: the closing text's tokens.
        tokens: the vocabulary's, as constraint.Grammars has them.
        inner: what the request's grammar says; None without one.
    """

    def __init__(
        self,
        limit: ThoughtLimit,
        forced: Sequence[int],
        tokens: Sequence[bytes],
        inner: Guide | None,
    ):
        self._limit, self._forced = limit, forced
        self._tokens, self._inner = tokens, inner
        self._opening, self._closing = limit.opening.encode(), limit.closing.encode()
        self._state = self._opened(0, b"") if limit.is_open else _State(_WAITING)

    @property
    def error(self) -> Exception | None:
        """As Guide.error."""
        return None if self._inner is None else self._inner.error

    def advance(self, token_ids: Sequence[int]) -> None:
        """As Guide.advance()."""
        self._state = self._after(token_ids)
        if self._inner is not None:
            self._inner.advance(token_ids)

    def allowed(self, draft: Sequence[int]) -> list[int]:
        """As Guide.allowed()."""
        kept, state = [], self._state
        for token_id in draft if self._inner is None else self._inner.allowed(draft):
            if state.phase == _FORCING and token_id != self._forced[state.num_forced]:
                break
            kept.append(token_id)
            state = self._next(state, token_id)
        return kept

    def mask(self, draft: Sequence[int], out: np.ndarray, known: bool = False) -> bool:
        """As Guide.mask()."""
        state = self._after(draft)
        if state.phase == _FORCING:
            token_id = self._forced[state.num_forced]
            out[:] = 0
            out[token_id // 32] = np.uint32(1 << token_id % 32)
            return True
        if self._inner is not None:
            return self._inner.mask(draft, out, known)
        out[:] = 0xFFFFFFFF
        return True

    def _after(self, token_ids):
        state = self._state
        for token_id in token_ids:
            state = self._next(state, token_id)
        return state

    def _next(self, state, token_id):
        if state.phase == _OVER:
            return state
        if state.phase == _FORCING:
            if state.num_forced + 1 == len(self._forced):
                return self._closed(state.num_thought)
            return state._replace(num_forced=state.num_forced + 1)
        text = state.tail + self._tokens[token_id].removeprefix(SPECIAL)
        if state.phase == _WAITING:
            return self._waited(state.num_thought, text)
        if self._closing in text:
            return self._closed(state.num_thought + 1)
        return self._opened(state.num_thought + 1, text)

    def _waited(self, count, text):
        if self._limit.repeats:
            _, found, rest = text.rpartition(self._opening)
            kept = text[-len(self._opening) :]
        else:
            text = text.lstrip()
            found, rest, kept = text.startswith(self._opening), text[len(self._opening) :], text
            if not found and not self._opening.startswith(text):
                return _State(_OVER)
        return self._opened(count, rest) if found else _State(_WAITING, count, kept)

    def _opened(self, count, text):
        if count >= self._limit.num_tokens:
            return _State(_FORCING, count)
        return _State(_OPEN, count, text[-len(self._closing) :])

    def _closed(self, count):
        return _State(_WAITING if self._limit.repeats else _OVER, count)
