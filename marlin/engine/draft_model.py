"""Guesses of a second, small model of the same vocabulary, for the requests of a first one.

Its keys and values lie in blocks of the same ids as the first one's, so that whoever has those has
these; where a block holds what another request computed of the same tokens, they are found. Each
request has a shadow: its tokens, and guesses behind them, drawn by its own seed and parameters, so
that two models that agree draw alike. Owns the draft model's runner; a wrong guess costs time and
never changes a token, and nor does a draft model that fails.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from marlin.engine.draft import MAX_DRAFT_TOKENS
from marlin.engine.draft_pace import Pace, Trust
from marlin.engine.request import Chunk, Request
from marlin.engine.runner import Runner
from marlin.errors import DeviceError
from marlin.turns import owner

logger = logging.getLogger(__name__)

# States of the last tokens, of draft models that have some: behind each guess, and before them.
STATES_A_SEQUENCE = MAX_DRAFT_TOKENS + 2
# Tokens that a shadow lags behind at most while it guesses in each step.
_LAG = MAX_DRAFT_TOKENS + 1
# Prompt tokens that the draft model computes in a step in which others decode, too.
_TOKENS_BESIDE_OTHERS = 32


class _MaskOfGuesses:
    """A request's guide as it is behind its shadow's guesses.

    Args:
        num_words: of a mask of the request's model; the draft model may have fewer or more.
    """

    def __init__(self, guide, shadow, num_tokens, num_words):
        self._guide, self._shadow = guide, shadow
        self._num_tokens, self._num_words = num_tokens, num_words

    def mask(self, draft, out, known=False):
        """As constraint.Guide.mask()."""
        guesses = self._shadow.output_token_ids[self._num_tokens :]
        whole = np.zeros(self._num_words, np.uint32)
        is_known = self._guide.mask([*guesses, *draft], whole, known)
        count = min(len(out), len(whole))
        out[:count], out[count:] = whole[:count], 0
        return is_known


class ModelDrafter:
    """A request's guesses: its shadow, and how far they are trusted. As draft.Drafter.

    Attributes:
        shadow: a Request of the draft model, or None where that cannot know its tokens.
        region: of its states; -1 for none.
    """

    def __init__(self, request: Request, end_token_ids, max_num_tokens: int, model: "DraftModel"):
        self.end_token_ids = end_token_ids
        self.max_num_tokens = max_num_tokens
        self.trust = Trust(model.pace.trust)
        self.region = -1
        self.num_preemptions = -1  # of the request, when its shadow began
        self.num_known_blocks = 0
        self.shadow: Request | None = None
        self._all = model.pace.trust
        most = model.vocab_size
        if all(token_id < most for token_id in request.prompt_token_ids):
            biases = tuple(pair for pair in request.params.logit_bias if pair[0] < most)
            params = replace(
                request.params, logit_bias=biases, num_logprobs=None, score_prompt=False
            )
            name, prompt = request.request_id, request.prompt_token_ids
            self.shadow = Request(name, prompt, params, request.seed)

    def follow(self, request):
        """As Drafter.follow()."""

    def observe(self, num_drafted, num_accepted):
        """As Drafter.observe()."""
        self.trust.observe(num_drafted, num_accepted)
        self._all.observe(num_drafted, num_accepted)


class DraftModel:
    """The draft model of one engine; used by its thread alone.

    Args:
        runner: of the draft model, with the paging of the other one's runner, but for windows and
            states: STATES_A_SEQUENCE slots for each sequence, where it has states.
        vocab_size: of the other one's logits.
        clock: seconds.
    """

    def __init__(self, runner: Runner, vocab_size: int, clock=time.perf_counter):
        self.pace = Pace()
        self._runner = runner
        config = runner.model.config
        self.vocab_size = min(config.vocab_size, vocab_size)
        self._num_words = (vocab_size + 31) // 32
        self._max_context_tokens = config.max_context_tokens
        self._clock = clock
        self._block_size = runner.paging.block_size
        # Of each block, the hash of the tokens that the keys in it are of, where it is full.
        self._known: list[bytes | None] = [None] * runner.paging.num_blocks
        self._regions: list[ModelDrafter | None] = [None] * runner.max_sequences
        # Of a cache that is one block: whose tokens it holds.
        self._last: Request | None = None
        self._is_broken = False

    @property
    def kv_bytes(self) -> int:
        return self._runner.kv_bytes

    def drafter(self, request: Request, end_token_ids, max_num_tokens: int) -> ModelDrafter:
        """What a new request guesses by; its sequence may get max_num_tokens long."""
        return ModelDrafter(request, end_token_ids, max_num_tokens, self)

    def lengths(self, requests: Sequence[Request], num_rows: int) -> list[int]:
        """How many tokens to guess for each of the requests, as far as blocks allow.

        Args:
            num_rows: tokens in the step besides.
        """
        limits = [0 if self._is_broken else self._limit(request) for request in requests]
        trusts = [request.drafter.trust.value for request in requests]
        return self.pace.lengths(trusts, limits, num_rows)

    def _limit(self, request):
        drafter = request.drafter
        if drafter.shadow is None:
            return 0
        longest = min(drafter.max_num_tokens - 1, self._max_context_tokens)
        return max(0, min(MAX_DRAFT_TOKENS, longest - request.num_tokens))

    def propose(
        self, wanted: Sequence[tuple[Request, int]], is_alone: bool, running: Sequence[Request]
    ) -> dict[int, list[int]]:
        """Guess the tokens that follow the requests' own.

        Args:
            wanted: (request, tokens to guess), whose blocks hold all of them.
            is_alone: nobody waits for this step but the one request.
            running: requests that hold blocks.

        Returns:
            {id of a request: guesses}, fewer or none where its prompt is still to be computed or
            its answer might end.
        """
        found: dict[int, list[int]] = {}
        chunks = self._first_chunks(wanted, is_alone, running)
        lengths = {id(request.drafter.shadow): (request, length) for request, length in wanted}
        try:
            while chunks:
                sampled = iter(self._step(chunks))
                drawn = [(c.request, next(sampled)[0]) for c in chunks if c.is_last]
                chunks = []
                for shadow, token_id in drawn:
                    request, length = lengths[id(shadow)]
                    draft = found.setdefault(id(request), [])
                    ends = request.drafter.end_token_ids
                    if 0 <= token_id < self.vocab_size and token_id not in ends:
                        draft.append(token_id)
                        shadow.output_token_ids.append(token_id)
                        if len(draft) < length:
                            chunks.append(self._chunk(shadow, request, 1))
        except (DeviceError, MemoryError) as error:
            self._is_broken = True
            logger.warning("the draft model failed and guesses nothing any more: %s", error)
            return {}
        return found

    def _first_chunks(self, wanted, is_alone, running):
        """What each shadow has yet to compute of its request's tokens, up to what a step takes."""
        room = self._runner.max_step_tokens
        if not is_alone:
            room = min(_TOKENS_BESIDE_OTHERS, room - _LAG * len(wanted))
        chunks = []
        for request, _ in wanted:
            if not self._follow(request, running):
                continue
            shadow = request.drafter.shadow
            left = shadow.num_tokens - shadow.num_computed_tokens
            count = left if left <= _LAG else min(left, room)
            if count > 0:
                chunks.append(self._chunk(shadow, request, count))
                room -= count if left > _LAG else 0
        return chunks

    def _follow(self, request, running):
        """Bring a shadow to its request's tokens; whether the draft model can compute them."""
        drafter, shadow = request.drafter, request.drafter.shadow
        guessed, now = shadow.output_token_ids, request.output_token_ids
        place = max(0, shadow.num_computed_tokens - _LAG - len(request.prompt_token_ids))
        while place < min(len(guessed), len(now)) and guessed[place] == now[place]:
            place += 1
        if any(token_id >= self.vocab_size for token_id in now[place:]):
            drafter.shadow = None
            return False
        guessed[place:] = now[place:]
        most = len(request.prompt_token_ids) + place
        shadow.num_computed_tokens = min(shadow.num_computed_tokens, most, request.num_tokens - 1)
        shadow.block_ids = request.block_ids
        if drafter.num_preemptions != request.num_preemptions or not self._has_region(drafter):
            drafter.num_preemptions = request.num_preemptions
            self._give_region(drafter, running)
            shadow.num_computed_tokens = self._num_found(request)
        self._last = request
        self._remember(request)
        if request.guide is not None:
            shadow.guide = _MaskOfGuesses(request.guide, shadow, len(now), self._num_words)
        return True

    def _has_region(self, drafter):
        return not self._has_states or self._regions[drafter.region] is drafter

    @property
    def _has_states(self):
        return self._runner.paging.num_states > 0

    def _give_region(self, drafter, running):
        """Slots for its states: those of one that is gone, or not running."""
        if not self._has_states or drafter in self._regions:
            return
        held = {id(request.drafter) for request in running}
        place = next(i for i, one in enumerate(self._regions) if one is None or id(one) not in held)
        self._regions[place], drafter.region = drafter, place

    def _num_found(self, request):
        """Tokens at a request's beginning whose keys are in its blocks."""
        request.drafter.num_known_blocks = 0
        if self._has_states:
            return 0
        if self._runner.paging.num_blocks == 1:
            return self._num_kept(request)
        count = 0
        for block, value in zip(request.block_ids, request.block_hashes, strict=False):
            if self._known[block] != value:
                break
            count += 1
        return min(count * self._block_size, request.num_tokens - 1)

    def _num_kept(self, request):
        """The same of a cache that is one block: as far as the request was given what the last one
        left there, and the draft model had computed it."""
        last = self._last
        if last is None or last.drafter.shadow is None:
            return 0
        if owner(last.client) != owner(request.client):
            return 0
        most = request.num_tokens - 1 if last is request else request.num_cached_tokens
        most = min(most, last.drafter.shadow.num_computed_tokens)
        kept, tokens = last.drafter.shadow.token_ids(0, most), request.token_ids(0, most)
        return next((i for i, pair in enumerate(zip(kept, tokens, strict=False))
                     if pair[0] != pair[1]), min(len(kept), len(tokens)))  # fmt: skip

    def _remember(self, request):
        """Let the blocks be found that are full now, and whose hashes are there."""
        drafter, shadow = request.drafter, request.drafter.shadow
        if self._runner.paging.num_blocks == 1:
            return
        count = min(shadow.num_computed_tokens // self._block_size, len(request.block_hashes))
        for index in range(drafter.num_known_blocks, count):
            self._known[request.block_ids[index]] = request.block_hashes[index]
        drafter.num_known_blocks = max(count, drafter.num_known_blocks)

    def _chunk(self, shadow, request, count):
        """The next `count` tokens of a shadow; what is known of the blocks that they are written to
        is forgotten, but for those of the same tokens."""
        start = shadow.num_computed_tokens
        hashes, size = request.block_hashes, self._block_size
        for index in range(start // size, (start + count - 1) // size + 1):
            block = request.block_ids[index]
            if index >= len(hashes) or self._known[block] != hashes[index]:
                self._known[block] = None
        if self._has_states:
            source = self._slot(request, start) if start else -1
            shadow.state_runs = [(0, count, source, self._slot(request, start + count))]
        return Chunk(shadow, start, count)

    def _slot(self, request, num_tokens):
        return request.drafter.region * STATES_A_SEQUENCE + num_tokens % STATES_A_SEQUENCE

    def _step(self, chunks):
        began = self._clock()
        sampled = self._runner.step(chunks)
        for chunk in chunks:
            chunk.request.num_computed_tokens = chunk.start + chunk.num_tokens
        is_decode = all(chunk.num_tokens <= 2 for chunk in chunks)
        self.pace.note_drafting(self._clock() - began, is_decode)
        return sampled

    def note_step(
        self, chunks: Sequence[Chunk], token_lists: Sequence[Sequence[int]], seconds: float
    ) -> None:
        """The other model's step of these chunks took so long, and gave these tokens for those that
        asked for some."""
        num_drafts = sum(len(chunk.draft_token_ids) for chunk in chunks)
        lists = iter(token_lists)
        given = [(chunk, next(lists)) for chunk in chunks if chunk.wants_logits]
        num_accepted = sum(len(tokens) - 1 for chunk, tokens in given if chunk.draft_token_ids)
        num_rows = num_drafts + sum(chunk.num_tokens for chunk in chunks)
        is_decode = num_rows - num_drafts == len(chunks)
        self.pace.note_step(num_rows, num_drafts, num_accepted, seconds, is_decode)

    def close(self) -> None:
        """Destroy the runner's programs."""
        self._runner.close()
