"""A request: what was asked for, its tokens so far, and the queue its tokens leave by.

The engine thread writes `output_token_ids` and publishes events; the thread that submitted the
request reads events and may abort. Text (detokenizing, stop strings) belongs to the reader, not to
the engine.
"""

import math
import queue
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from marlin.engine.bounds import Bounds, check_biases, check_prompt, check_text
from marlin.engine.sampling import SamplingParams

if TYPE_CHECKING:  # The command line reads this file, and needs no numbers for its help.
    import numpy as np

    from marlin.engine.constraint import Guide
    from marlin.engine.pooler import Pooler
    from marlin.engine.thought_budget import ThoughtGuide


class TokenLogprobs(NamedTuple):
    """What the model itself held of one output token: natural logarithms of its probabilities
    before penalties, bias, temperature and the sampling filters.

    Attributes:
        logprob: the token's own.
        top: (token id, logprob) of the likeliest tokens, likeliest first, ties by lower id.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


class TokenEvent(NamedTuple):
    """New output tokens, in order; logprobs: one for each of them, or none if not asked for."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()


class VectorEvent(NamedTuple):
    """The one result of a request that generates nothing, as Pooler.result()."""

    vector: "np.ndarray"


class FinishEvent(NamedTuple):
    """The last event of a request.

    Attributes:
        reason: "stop" (end-of-sequence token, which is not published), "length" (max_tokens or the
            context is full), "abort" or "error".
        error: the exception that ended it, for "error".
    """

    reason: str
    error: Exception | None = None


class Events(queue.SimpleQueue):
    """A request's events on their way to whoever reads them.

    Attributes:
        listener: called after each that is put, by who puts it; None for nobody.
    """

    listener: Callable[[], None] | None = None

    def put(self, item, block=True, timeout=None):
        super().put(item, block, timeout)
        listener = self.listener  # whoever reads may unset it meanwhile
        if listener is not None:
            listener()


@dataclass(slots=True, eq=False)
class Request:
    """One generation, or one text that a vector or a score is made of.

    Attributes:
        num_computed_tokens: tokens whose KV exists.
        num_cached_tokens: those of them that a prefix hit gave.
        block_ids: KV blocks that it holds, in logical order.
        window_block_ids: the same of each window; NO_BLOCK in place of those that it gave back.
        states: (end in tokens, slot) of the states that it holds.
        state_runs: of its part of a step, in order: (first token of the part, tokens, slot of the
            state before them or -1, slot of that after them).
        restarts: ends, in blocks, after which another request may well begin.
        block_hashes: hash chain of its full blocks of tokens, as far as it was needed.
        drafter: engine.draft.Drafter, or a draft model's; None without speculation.
        guide: where its answer is in its grammar; None without one.
        pooler: takes its hidden states; nothing is generated then, and None for a generation.
        num_draft_tokens, num_accepted_draft_tokens: guesses computed, and those that were right.
        num_beyond_tokens: those whose keys or values were beyond what the cache holds.
        client: whose it is: engine time is shared between clients.
        num_preemptions: how often it gave its blocks back before its end.
        num_lost_tokens: while it computes anew what it then lost, how many those were; else 0.
        turn_s, resume_s: engine seconds since it was last admitted, and those that went into
            computing anew.
        prompt_logprobs: of the prompt's tokens but for the first, as far as they are computed; all
            of them before its first event. Empty unless its params ask for them.
        events: yields TokenEvents, or one VectorEvent, and then exactly one FinishEvent.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    output_token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    block_ids: list[int] = field(default_factory=list)
    window_block_ids: list[list[int]] = field(default_factory=list)
    states: list[tuple[int, int]] = field(default_factory=list)
    state_runs: list[tuple[int, int, int, int]] = field(default_factory=list)
    restarts: set[int] = field(default_factory=set)
    block_hashes: list[bytes] = field(default_factory=list)
    drafter: Any = None
    guide: "Guide | ThoughtGuide | None" = None
    pooler: "Pooler | None" = None
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
    num_beyond_tokens: int = 0
    client: str = ""
    num_preemptions: int = 0
    num_lost_tokens: int = 0
    turn_s: float = 0.0
    resume_s: float = 0.0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    events: Events = field(default_factory=Events)
    _aborted: threading.Event = field(default_factory=threading.Event)

    @property
    def num_tokens(self):
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def needs_all_states(self) -> bool:
        """Whether all of its tokens must be computed, whatever is cached of them."""
        return self.pooler is not None and self.pooler.needs_all

    @property
    def is_whole(self) -> bool:
        """Whether all of its tokens must be in one step."""
        return self.pooler is not None and self.pooler.is_whole

    @property
    def has_begun(self) -> bool:
        """Whether it has been in a step, or is in one."""
        return bool(self.block_ids or self.num_computed_tokens or self.num_preemptions)

    @property
    def is_score_broken(self) -> bool:
        """Whether the last of its prompt's scores is not a number."""
        return bool(self.prompt_logprobs) and math.isnan(self.prompt_logprobs[-1].logprob)

    @property
    def num_reusable_tokens(self) -> int:
        """Of its first tokens, those whose KV may be another request's: not where what is computed
        of them is wanted itself."""
        if self.needs_all_states:
            return 0
        num_scored = len(self.prompt_logprobs)
        if self.params.score_prompt and num_scored < len(self.prompt_token_ids) - 1:
            return num_scored
        return self.num_tokens - 1

    def token_ids(self, begin, end):
        """Tokens [begin, end) of prompt and output together; fewer past their end."""
        prompt, output = self.prompt_token_ids, self.output_token_ids
        if begin >= len(prompt):
            return output[begin - len(prompt) : end - len(prompt)]
        return prompt[begin:end] + output[: max(0, end - len(prompt))]

    @property
    def aborted(self):
        return self._aborted.is_set()

    def abort(self):
        """Ask the engine to drop this request at its next step. Any thread; idempotent."""
        if not self._aborted.is_set():
            self._aborted.set()  # takes 20 times as long as asking


@dataclass(frozen=True, slots=True)
class Chunk:
    """A request's part of a step: its tokens [start, start + num_tokens), and guesses that follow.

    The request holds the blocks of all of them. When the last of its tokens is among them, as many
    tokens are sampled as guesses are right, and one after those; only then there are guesses.
    """

    request: Request
    start: int
    num_tokens: int
    draft_token_ids: tuple[int, ...] = ()

    @property
    def is_last(self) -> bool:
        """Whether it computes the last of the request's tokens."""
        return self.start + self.num_tokens == self.request.num_tokens

    @property
    def wants_logits(self) -> bool:
        """Whether its last token's logits are wanted: to sample the next, or for a score."""
        pooler = self.request.pooler
        return self.is_last and (pooler is None or pooler.reads_logits)

    @property
    def token_ids(self) -> list[int]:
        """The tokens to compute, without the guesses."""
        return self.request.token_ids(self.start, self.start + self.num_tokens)


def new_request(
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
    request_id: str,
    bounds: Bounds,
    client: str = "",
) -> Request:
    """A request that an engine can take.

    Raises:
        RequestError: as check_prompt's and check_biases'.
    """
    check_prompt(prompt_token_ids, bounds)
    check_biases(params.logit_bias, bounds)
    seed = secrets.randbits(64) if params.seed is None else params.seed % 2**64
    return Request(request_id, list(prompt_token_ids), params, seed, client=client)


def new_pooled_request(
    token_ids: Sequence[int], pooler: "Pooler", request_id: str, bounds: Bounds, client: str
) -> Request:
    """A request for a text's vector; RequestError as check_text's."""
    check_text(token_ids, bounds)
    params = SamplingParams(temperature=0.0, max_tokens=1)
    return Request(request_id, list(token_ids), params, 0, pooler=pooler, client=client)
