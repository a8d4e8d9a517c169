"""What one request keeps of its tokens' last hidden states: a vector, or a reranker's score.

The engine thread gives it the states of each chunk as they are computed, in order and from the
first token on. Sums are in float64 and token by token, so that chunks change no bit.
"""

import math
from collections.abc import Callable

import numpy as np

from marlin.models.pooling import CLS, LAST, MEAN, RANK, Pooling


class Pooler:
    """The states of one text.

    Args:
        pooling: the model's.
        ranked: (the token of yes, that of no) where the model ranks.
        is_whole: its tokens see those behind them, so that all of it is computed in one step.

    Attributes:
        needs_all: it needs the states of all tokens, so that none may be taken from a cache.
        reads_logits: it needs the last token's logits.
    """

    def __init__(
        self,
        pooling: Pooling,
        ranked: tuple[int, int] | None = None,
        is_whole: bool = False,
    ):
        self._pooling = pooling
        self._ranked = ranked
        self.is_whole = is_whole
        self.needs_all = is_whole or pooling.kind in (MEAN, CLS)
        self.reads_logits = pooling.kind == RANK
        self._num_tokens = 0
        self._vector = np.zeros(0)

    def add(self, start: int, states: np.ndarray) -> None:
        """Take float32 [num_tokens, dim], of the tokens that begin at position `start`: 0 begins
        anew."""
        _TAKE[self._pooling.kind](self, start, states)
        self._num_tokens = start + len(states)

    def _take_first(self, start, states):
        if start == 0:
            self._vector = states[0].astype(np.float64)

    def _take_last(self, _start, states):
        self._vector = states[-1].astype(np.float64)

    def _take_sum(self, start, states):
        if start == 0:
            self._vector = np.zeros(states.shape[1])
        for row in states:
            self._vector += row

    def _take_nothing(self, _start, _states):
        pass

    def take_logits(self, logits: np.ndarray) -> None:
        """Take the last token's, float32 [vocab_size]: the share of yes among yes and no."""
        assert self._ranked is not None
        yes, no = (float(logits[token_id]) for token_id in self._ranked)
        self._vector = np.array([sigmoid(yes - no)])

    def result(self) -> np.ndarray | None:
        """float32 [dim], or [1] of a score; None when it is not all numbers."""
        vector = self._vector
        if self._pooling.kind == MEAN:
            vector = vector / self._num_tokens
        if self._pooling.normalised and self._pooling.kind != RANK:
            vector = unit(vector)
        return vector.astype(np.float32) if np.isfinite(vector).all() else None


_TAKE: dict[str, Callable] = {
    CLS: Pooler._take_first,
    LAST: Pooler._take_last,
    MEAN: Pooler._take_sum,
    RANK: Pooler._take_nothing,
}


def unit(vector: np.ndarray) -> np.ndarray:
    """A vector at length 1; one of zeros stays."""
    length = math.sqrt(float(np.dot(vector, vector)))
    return vector / length if length else vector


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x), however large x is."""
    e = math.exp(-abs(x))
    return 1 / (1 + e) if x >= 0 else e / (1 + e)
