"""Which tokens of which requests go into the next step: no device, no threads, no clock.

One rule runs everything: a request's num_computed_tokens chases its num_tokens, and each step
computes a chunk of each running request, within a token budget. Prefill, chunked prefill, decode
and a resumed request are that one rule.
"""

from collections import Counter, deque
from dataclasses import replace

from marlin.engine.block_pool import block_hash, root_hash
from marlin.engine.draft import MAX_DRAFT_TOKENS
from marlin.engine.draft_model import DraftModel
from marlin.engine.holdings import Holdings
from marlin.engine.request import Chunk
from marlin.engine.shares import Shares, begin_turn_anew
from marlin.turns import owner

# Prompt tokens of a step in which others decode. On a CPU a step's time grows with its rows: a
# small share keeps the streams' steps short, and the prompt is computed somewhat more slowly.
PREFILL_TOKENS_BESIDE_DECODES = 32
# While the prompt has so many tokens behind it: with 4,000 there, a step of 16 streams takes 81 ms
# with 32 prompt rows, 56 ms with 16, and 16 ms without any (docs/performance.md).
LONG_CONTEXT_TOKENS = 2048
LONG_PREFILL_TOKENS_BESIDE_DECODES = 16


class Scheduler:
    """Clients share the engine; of one client's requests the first come is first served.

    A client that runs nothing has the first claim: what another runs beside its oldest request
    gives way to it at once, and that one when it has had its turn (shares.py). Its tokens are later
    computed anew, with the same result.

    Args:
        pool: BlockPool. A pool of one block as long as the context is sequential mode: what the
            last request left in it is kept, and the next starts after the tokens both begin with.
        max_sequences: requests that may run at once.
        max_step_tokens: tokens a step may compute.
        max_draft_tokens: guesses among them, of all requests together.
        windows: a WindowPool for each length of window whose layers give blocks back.
        states: StatePool of layers that have a state, or None.

    Attributes:
        waiting: deque of Requests, first to be admitted first.
        running: list of Requests, first admitted first; each holds the blocks of its tokens.
        prefix_cache: who may reuse what a request computed: "shared" is everybody, "per-key" who is
            the same by turns.owner(), "off" nobody.
        shares: engine.shares.Shares; whoever runs the steps says there how long each took.
        draft_model: engine.draft_model.DraftModel that guesses for all requests, or None where each
            guesses by itself.
    """

    def __init__(
        self, pool, max_sequences, max_step_tokens, max_draft_tokens=0, windows=(), states=None
    ):
        self._pool = pool
        self._held = Holdings(pool, windows, max_step_tokens, states)
        self._max_sequences = max_sequences
        self._max_step_tokens = max_step_tokens
        self._max_draft_tokens = max_draft_tokens
        self.waiting = deque()
        self.running = []
        self.shares = Shares()
        self.prefix_cache = "per-key"
        self.draft_model: DraftModel | None = None
        self._kept_token_ids = []
        self._kept_owner = ""

    def requests(self):
        """Every request in hand, running ones first."""
        return [*self.running, *self.waiting]

    def schedule(self):
        """Choose the next step's chunks.

        Returns:
            list of Chunk, at most max_sequences, together at most max_step_tokens tokens, guesses
            included. Empty only when there is no request.
        """
        chunks = self._schedule_tokens()
        if self._max_draft_tokens:
            chunks = self._with_drafts(chunks)
        for place, chunk in enumerate(chunks):
            num_drafts = self._held.plan_states(chunk, len(chunks) - 1 - place)
            if num_drafts < len(chunk.draft_token_ids):
                chunks[place] = replace(chunk, draft_token_ids=chunk.draft_token_ids[:num_drafts])
        return chunks

    def _schedule_tokens(self):
        self.shares.update({request.client for request in self.requests()})
        self._make_way()
        chunks = []
        budget = self._max_step_tokens
        decodes = [
            r
            for r in self.running
            if r.num_tokens - r.num_computed_tokens == 1 and r.pooler is None
        ]
        for request in decodes:
            # A request may have been preempted to make room for one before it.
            if request in self.running and self._grow(request, 1):
                chunks.append(Chunk(request, request.num_computed_tokens, 1))
                budget -= 1
        chunks = [chunk for chunk in chunks if chunk.request in self.running]
        in_step = {id(chunk.request) for chunk in chunks}
        prefills = [r for r in self.running if id(r) not in in_step]
        if chunks:
            is_long = any(r.num_computed_tokens >= LONG_CONTEXT_TOKENS for r in prefills)
            most = LONG_PREFILL_TOKENS_BESIDE_DECODES if is_long else PREFILL_TOKENS_BESIDE_DECODES
            budget = min(budget, most)
        self._add_prefills(chunks, prefills, budget)
        return chunks

    def _add_prefills(self, chunks, prefills, budget):
        """Spend the budget on prompts, client by client: those begun, then those that wait."""
        may_admit = True
        clients = {request.client for request in (*prefills, *self.waiting)}
        for client in self.shares.next_first(clients, {r.client for r in self.running}):
            for request in prefills:
                if request.client == client:
                    budget -= self._add_prefill(chunks, request, budget)
            while may_admit and budget > 0 and (request := self._first_waiting(client)):
                may_admit = self._admit(request)
                if may_admit:
                    budget -= self._add_prefill(chunks, request, budget)

    def _first_waiting(self, client):
        return next((request for request in self.waiting if request.client == client), None)

    def _make_way(self):
        """Preempt others until the client that runs nothing and has had least can begin."""
        running = {request.client for request in self.running}
        claimants = {request.client for request in self.waiting} - running
        if not claimants:
            return
        client = self.shares.next_first(claimants, running)[0]
        first = self._first_waiting(client)
        while not self._has_room(first):
            request = self._youngest_of_most()
            if request is None:
                return
            if sum(other.client == request.client for other in self.running) == 1:
                had = [r for r in self.running if self.shares.has_had_its_turn(r, client)]
                if not had:
                    return
                request = max(had, key=lambda other: self.shares.used(other.client))
            self._preempt(request)

    def _youngest_of_most(self):
        """The youngest request of the client that runs most; None when nothing runs."""
        counts = Counter(request.client for request in self.running)
        most = max(counts.values(), default=0)
        return next((r for r in reversed(self.running) if counts[r.client] == most), None)

    def _with_drafts(self, chunks):
        """Add guesses where requests make any: last, and from what nobody else wants in this step.

        When there are too many, the longest drafts are cut.
        """
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        room = min(self._max_draft_tokens, self._max_step_tokens - num_tokens)
        may = [c.num_tokens == 1 and c.is_last and bool(c.request.drafter) for c in chunks]
        if self.draft_model is not None and room > 0:
            drafts = self._drafts_of_model(self.draft_model, chunks, may, room)
        else:
            drafts = [
                _draft(chunk.request, num_tokens) if is_one and room > 0 else []
                for chunk, is_one in zip(chunks, may, strict=True)
            ]
        longest = _longest([len(draft) for draft in drafts], room)
        return [
            self._with_draft(chunk, draft[:longest]) if draft[:longest] else chunk
            for chunk, draft in zip(chunks, drafts, strict=True)
        ]

    def _drafts_of_model(self, model, chunks, may, room):
        """The model's guesses for the chunks that may have some. It computes into blocks of the
        same ids, held first; those of guesses that are not made go back after the step."""
        asked = [chunk.request for chunk, is_one in zip(chunks, may, strict=True) if is_one]
        num_rows = sum(chunk.num_tokens for chunk in chunks)
        lengths = model.lengths(asked, num_rows)
        longest, wanted = _longest(lengths, room), []
        for request, length in zip(asked, lengths, strict=True):
            end = request.num_tokens
            length = min(length, longest, self._held.most_tokens(request) - end)
            if length > 0:
                self._held.grow(request, end + length)
                wanted.append((request, length))
        found = model.propose(wanted, num_rows == 1, self.running)
        drafts = [found.get(id(chunk.request), []) for chunk in chunks]
        return [
            chunk.request.guide.allowed(draft) if chunk.request.guide and draft else draft
            for chunk, draft in zip(chunks, drafts, strict=True)
        ]

    def _with_draft(self, chunk, draft):
        """A chunk with as much of a draft as there are free blocks for."""
        request, end = chunk.request, chunk.start + chunk.num_tokens
        draft = tuple(draft[: max(0, self._held.most_tokens(request) - end)])
        self._held.grow(request, end + len(draft))
        return replace(chunk, draft_token_ids=draft)

    def _add_prefill(self, chunks, request, budget):
        """Give a request up to `budget` tokens; returns how many."""
        left = request.num_tokens - request.num_computed_tokens
        count = min(budget, left)
        if count < 1 or request not in self.running or (count < left and request.is_whole):
            return 0
        has_grown = self._grow(request, count)
        # Another client's request that was in the step may have been preempted for it.
        chunks[:] = [chunk for chunk in chunks if chunk.request.block_ids]
        if not has_grown:
            return 0
        chunks.append(Chunk(request, request.num_computed_tokens, count))
        return count

    def _grow(self, request, num_tokens):
        """Hold blocks for num_tokens more, preempting the youngest of the client that runs most
        while too few are free."""
        while not self._held.grow(request, request.num_computed_tokens + num_tokens):
            youngest = self._youngest_of_most()
            self._preempt(youngest)
            if youngest is request:
                return False
        return True

    def _preempt(self, request):
        """Back to the head of the queue, to be computed anew."""
        self._keep(request)
        self._held.release(request)
        begin_turn_anew(request)
        self.running.remove(request)
        self.waiting.appendleft(request)

    def _admit(self, request):
        """Start a waiting request if there is a place, and room for all of its tokens."""
        if len(self.running) >= self._max_sequences or not self._hold_prefix(request):
            return False
        self.waiting.remove(request)
        self.running.append(request)
        if not request.num_preemptions:  # not when it resumes: that is no hit for its client
            request.num_cached_tokens = request.num_computed_tokens
        return True

    def _has_room(self, request):
        """Whether there is a place, and room for all of a waiting request's tokens."""
        if len(self.running) >= self._max_sequences:
            return False
        if self._pool.num_blocks == 1:
            return self._pool.num_free > 0
        beginning = self._held.find(self._reusable_hashes(request))
        has_room = self._held.has_room(request.num_tokens, beginning)
        self._held.give_back(beginning)
        return has_room

    def _hold_prefix(self, request):
        """Give a request what the cache knows of its tokens, if the pool has room for the rest.

        At least one token is left to compute. A request whose next block is being computed for
        another waits for it: a shared beginning is computed once.
        """
        if self._pool.num_blocks == 1:
            if self._pool.num_free:
                request.num_computed_tokens = self._common_with_kept(request)
                self._kept_token_ids = []
            return self._pool.num_free > 0
        hashes = self._reusable_hashes(request)
        beginning = self._held.find(hashes)
        rest = hashes[len(beginning.table) : len(beginning.table) + 1]
        has_room = self._held.has_room(request.num_tokens, beginning)
        if not has_room or any(self._is_pending(value) for value in rest):
            self._held.give_back(beginning)
            return False
        self._held.begin(request, beginning)
        return True

    def _reusable_hashes(self, request):
        num_reusable = 0 if self.prefix_cache == "off" else request.num_reusable_tokens
        self._hash_blocks(request, num_reusable)
        return request.block_hashes[: num_reusable // self._pool.block_size]

    def _owner(self, request):
        return owner(request.client) if self.prefix_cache == "per-key" else ""

    def _common_with_kept(self, request):
        if self.prefix_cache == "off" or self._owner(request) != self._kept_owner:
            return 0
        kept, tokens = self._kept_token_ids, request.token_ids(0, request.num_reusable_tokens)
        limit = min(len(kept), len(tokens))
        return next((i for i in range(limit) if kept[i] != tokens[i]), limit)

    def _keep(self, request):
        """In sequential mode, know what it leaves in the block: the next may begin with that."""
        if self._pool.num_blocks == 1:
            self._kept_token_ids = request.token_ids(0, request.num_computed_tokens)
            self._kept_owner = self._owner(request)

    def _is_pending(self, value):
        """Whether a running request has yet to compute the block of this hash."""
        return any(
            value in request.block_hashes[request.num_computed_tokens // self._pool.block_size :]
            for request in self.running
        )

    def _hash_blocks(self, request, num_tokens):
        """Hash the full blocks among a request's first num_tokens tokens, once each."""
        size, hashes = self._pool.block_size, request.block_hashes
        for end in range((len(hashes) + 1) * size, num_tokens + 1, size):
            parent = hashes[-1] if hashes else root_hash(self._owner(request))
            hashes.append(block_hash(parent, request.token_ids(end - size, end)))

    def advance(self, chunk, num_accepted=0):
        """Note that a chunk has been computed; its full blocks can be found from now on.

        Args:
            num_accepted: its first guesses that have become tokens of the request. Blocks that only
                the others needed are given back: guessing leaves nobody with fewer blocks.
        """
        request, size = chunk.request, self._pool.block_size
        end = chunk.start + chunk.num_tokens + num_accepted
        request.num_computed_tokens = end
        if request.drafter is not None:
            self._learn(chunk, num_accepted)
        if self._pool.num_blocks == 1:
            return
        if chunk.start // size < end // size:
            if not request.needs_all_states:
                self._hash_blocks(request, end)
                self._held.remember(request, chunk.start, end)
            self._held.pass_by(request, chunk.start)
        self._held.settle_states(request)

    def _learn(self, chunk, num_accepted):
        request, num_drafted = chunk.request, len(chunk.draft_token_ids)
        request.num_draft_tokens += num_drafted
        request.num_accepted_draft_tokens += num_accepted
        request.drafter.follow(request)
        request.drafter.observe(num_drafted, num_accepted)
        self._held.cut(request)

    def remove(self, request, keep=True):
        """Drop a finished or aborted request, and give its blocks back at once.

        Args:
            keep: False when its KV cannot be trusted, after a failed step.
        """
        if request not in self.running:
            self.waiting.remove(request)
            return
        if keep:
            self._keep(request)
        self._held.release(request)
        self.running.remove(request)

    def check(self):
        """Every block is free, cached or held by those who say so, and holders have what they need.

        Raises:
            AssertionError: the bookkeeping is broken.
        """
        self._held.check(self.running)
        waiting = [request for request in self.waiting if request.block_ids]
        assert not waiting, "a waiting request holds blocks"


def _longest(lengths, room):
    """What each draft may have at most, so that all together fit."""
    longest = MAX_DRAFT_TOKENS
    while sum(min(length, longest) for length in lengths) > room:
        longest -= 1
    return longest


def _draft(request, num_step_rows):
    """Guesses at a request's next tokens, as far as its grammar allows them."""
    draft = request.drafter.propose(request, num_step_rows)
    return request.guide.allowed(draft) if request.guide and draft else draft
