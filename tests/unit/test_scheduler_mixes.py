"""Thousands of random request mixes through the real scheduler and block pool, over a fake KV cache
that knows what every slot was computed from.

A mix is a function of its seed, and a failure names the seed.
"""

import random
from collections import Counter

from marlin.engine.block_pool import BlockPool, StatePool, WindowPool
from marlin.engine.draft import accept
from marlin.engine.request import Request
from marlin.engine.sampling import SamplingParams
from marlin.engine.scheduler import PREFILL_TOKENS_BESIDE_DECODES, Scheduler

NUM_MIXES = 2400
# Past what any mix here needs; one that takes more makes no progress.
MAX_STEPS = 2000


class FakeRunner:
    """A KV cache of hashes: a slot holds that of all tokens up to its own, so that a slot computed
    from other tokens, or lost, or overwritten, is seen by whoever reads it. The token sampled after
    a context is a function of the context, as a model's is.

    A window's slots are read as far as its queries see, and no further. A state is the hash of the
    tokens before it.
    """

    def __init__(self, pool, windows=(), states=None):
        self._states = [None] * states.num_blocks if states else None
        self._size = pool.block_size
        self._windows = windows
        self._pools = [[None] * (p.num_blocks * p.block_size) for p in (pool, *windows)]
        self._known = {}

    def step(self, chunks):
        """Read every chunk's context and write its tokens; of each, the guesses that are right and
        the token sampled after them."""
        return [self._compute(chunk) for chunk in chunks]

    def _compute(self, chunk):
        hashes = list(self._hashes(chunk.request))
        for token_id in chunk.draft_token_ids:
            hashes.append(hash((hashes[-1], token_id)))
        end = chunk.start + chunk.num_tokens + len(chunk.draft_token_ids)
        tables = chunk.request.block_ids, *chunk.request.window_block_ids
        firsts = 0, *(max(0, chunk.start - w.window + 1) for w in self._windows)
        for slots, table, first in zip(self._pools, tables, firsts, strict=True):
            assert len(table) * self._size >= end, "a chunk lies past its blocks"
            assert min(table[first // self._size :]) >= 0, "what a chunk sees was given back"
            places = {at: self._slot(table, at) for at in range(first, end)}
            found = [slots[places[at]] for at in range(first, chunk.start)]
            wanted = hashes[first : chunk.start]
            assert found == wanted, "the KV cache is not that of the request's tokens"
            for at in range(chunk.start, end):
                slots[places[at]] = hashes[at]
        if self._states is not None:
            self._run_states(chunk, hashes)
        sampled = [next_token(value) for value in hashes[-1 - len(chunk.draft_token_ids) :]]
        return accept(list(chunk.draft_token_ids), sampled)

    def _run_states(self, chunk, hashes):
        at, count = chunk.start, chunk.num_tokens + len(chunk.draft_token_ids)
        for first, num_tokens, source, slot in chunk.request.state_runs:
            assert at == chunk.start + first and num_tokens > 0, "a gap between runs"
            found = self._states[source] if source >= 0 else None
            assert found == (hashes[at - 1] if at else None), "a state of other tokens"
            at += num_tokens
            self._states[slot] = hashes[at - 1]
        assert at == chunk.start + count, "runs end elsewhere"

    def _slot(self, table, at):
        return table[at // self._size] * self._size + at % self._size

    def _hashes(self, request):
        known = self._known.setdefault(request, [])
        tokens = request.prompt_token_ids + request.output_token_ids
        for token_id in tokens[len(known) :]:
            known.append(hash((known[-1] if known else 0, token_id)))
        return known


def next_token(context_hash):
    return context_hash % 7


def expected_outputs(request):
    """What a request's prompt leads to, one token after another."""
    value, outputs = 0, []
    for token_id in request.prompt_token_ids:
        value = hash((value, token_id))
    while len(outputs) < request.params.max_tokens:
        outputs.append(next_token(value))
        value = hash((value, outputs[-1]))
    return outputs


class RandomDrafter:
    """Guesses what comes, up to a token of its choice, and what does not from there on."""

    def __init__(self, rng):
        self._rng = rng

    def propose(self, request, num_step_rows):
        room = request.params.max_tokens - len(request.output_token_ids) - 1
        outputs = expected_outputs(request)[len(request.output_token_ids) :]
        count = min(room, self._rng.randint(0, 6))
        right = self._rng.randint(0, count)
        return [token + (place >= right) for place, token in enumerate(outputs[:count])]

    def follow(self, request):
        pass

    def observe(self, num_drafted, num_accepted):
        pass


class Mix:
    """Requests, and the rules that every step with them keeps.

    Args:
        requests: in the order in which they arrive.
        windows, drafts, states: as the scheduler's; requests guess where drafts are above 0.

    Attributes:
        happened: Counter of what the run went through.
    """

    def __init__(
        self, rng, pool, max_sequences, budget, requests, windows=(), drafts=0, states=None
    ):
        self.rng = rng
        self.pool, self.budget, self.max_sequences = pool, budget, max_sequences
        self.windows, self.drafts = windows, drafts
        self.states = states
        self.scheduler = Scheduler(pool, max_sequences, budget, drafts, windows, states)
        self.runner = FakeRunner(pool, windows, states)
        self.happened = Counter()
        self.order = {request: index for index, request in enumerate(requests)}
        self.gone = set()
        for request in requests if drafts else ():
            request.drafter = RandomDrafter(rng)
        self.step_s = rng.choice((0.0, 0.01, 0.3, 3.0))

    def run(self):
        arrivals = sorted(self.rng.choice((0, 3, self.rng.randint(0, 40))) for _ in self.order)
        plan = list(zip(arrivals, self.order, strict=True))
        abort_share, fault_share = self.rng.choice(((0, 0), (0.05, 0), (0.02, 0.02)))
        for step in range(MAX_STEPS):
            self.scheduler.waiting.extend(request for at, request in plan if at == step)
            if self.rng.random() < abort_share:
                self.abort()
            if self.scheduler.requests():
                self.step(fails=self.rng.random() < fault_share)
            elif step > arrivals[-1]:
                break
        assert not self.scheduler.requests(), "requests are left"
        for pool in (self.pool, *self.windows, *([self.states] if self.states else ())):
            assert pool.num_free == pool.num_blocks, "blocks were not given back"
        self.happened["cached"] = sum(request.num_cached_tokens for request in self.order)
        for request in self.order.keys() - self.gone:
            assert request.output_token_ids == expected_outputs(request)

    def abort(self):
        if in_hand := self.scheduler.requests():
            self.drop(self.rng.choice(in_hand))
            self.happened["aborted"] += 1

    def drop(self, request, keep=True):
        others = [other for other in self.scheduler.running if other is not request]
        shared = {block for other in others for block in other.block_ids}
        num_free = self.pool.num_free + len(set(request.block_ids) - shared)
        self.scheduler.remove(request, keep)
        self.scheduler.check()
        assert self.pool.num_free == num_free, "blocks were not given back at once"
        assert request not in self.scheduler.requests()
        self.gone.add(request)

    def step(self, fails):
        decoding = [
            request
            for request in self.scheduler.running
            if request.num_tokens - request.num_computed_tokens == 1
        ]
        before = list(self.scheduler.running)
        chunks = self.scheduler.schedule()
        self.scheduler.check()
        self.check_chunks(chunks, decoding)
        self.happened["preempted"] += len(set(before) & set(self.scheduler.waiting))
        self.happened["guessed"] += sum(len(chunk.draft_token_ids) for chunk in chunks)
        self.happened["passed by"] += sum(
            -1 in table for chunk in chunks for table in chunk.request.window_block_ids
        )
        token_lists = self.runner.step(chunks)
        if not fails:
            self.scheduler.shares.charge(chunks, self.step_s)
        if fails:
            self.happened["failed"] += 1
            for chunk in chunks:
                self.drop(chunk.request, keep=False)
            return
        for chunk, token_ids in zip(chunks, token_lists, strict=True):
            self.advance(chunk, token_ids)
        self.scheduler.check()

    def check_chunks(self, chunks, decoding):
        requests = [chunk.request for chunk in chunks]
        assert chunks, "a step without progress"
        assert len(chunks) == len(set(requests)) <= self.max_sequences
        assert sum(chunk.num_tokens for chunk in chunks) <= self.budget
        assert all(chunk.start == chunk.request.num_computed_tokens for chunk in chunks)
        assert set(requests) <= set(self.scheduler.running)
        clients = {request.client for request in self.order}
        for client in clients:
            own = [r for r in self.scheduler.requests() if r.client == client]
            in_order = [self.order[request] for request in own]
            assert in_order == sorted(in_order), "a later request overtook an earlier one"
        if len(clients) == 1:
            assert self.scheduler.requests()[0] in requests, "the oldest request stands still"
        still = [request for request in decoding if request in self.scheduler.running]
        assert set(still) <= set(requests), "a stream missed a step"
        prefill = sum(chunk.num_tokens for chunk in chunks if chunk.request not in still)
        assert not still or prefill <= PREFILL_TOKENS_BESIDE_DECODES, "a stream waits for prompts"

    def advance(self, chunk, token_ids):
        wants_token = chunk.is_last
        request = chunk.request
        if wants_token:
            request.output_token_ids += token_ids
        self.scheduler.advance(chunk, len(token_ids) - 1 if wants_token else 0)
        if wants_token:
            if len(request.output_token_ids) == request.params.max_tokens:
                self.scheduler.remove(request)


def random_requests(rng, most_tokens):
    """Up to 10 requests of at most `most_tokens` tokens each, with beginnings in common."""
    beginning = [rng.randrange(3) for _ in range(most_tokens)]
    requests = []
    for index in range(rng.randint(1, 10)):
        num_tokens = rng.randint(2, most_tokens)
        num_outputs = min(rng.choice((1, 2, 8, 40)), num_tokens - 1)
        num_prompt = num_tokens - num_outputs
        prompt = [rng.randrange(3) for _ in range(num_prompt)]
        num_shared = rng.choice((0, num_prompt, rng.randrange(num_prompt + 1)))
        prompt[:num_shared] = beginning[:num_shared]
        requests.append(Request(f"r{index}", prompt, SamplingParams(max_tokens=num_outputs), 0))
    return requests


def paged_mix(rng):
    """Pools from just enough for the longest request to enough for all."""
    block_size = rng.choice((1, 4, 16))
    num_blocks = rng.choice((2, 3, 5, 8, 16))
    max_sequences = rng.randint(1, 6)
    requests = random_requests(rng, num_blocks * block_size)
    pool = BlockPool(num_blocks + rng.choice((0, 0, 1, 4, 40)), block_size)
    return Mix(rng, pool, max_sequences, rng.randint(max_sequences, 70), requests)


def windowed_mix(rng):
    """One window or two, often a small part of a request, in pools from just enough for one request
    to enough for all; guesses in half of the mixes."""
    block_size = rng.choice((1, 4, 16))
    num_blocks = rng.choice((5, 8, 16, 30))
    max_sequences = rng.randint(1, 6)
    budget, drafts = rng.randint(max_sequences, 70), rng.choice((0, 8))
    requests = random_requests(rng, num_blocks * block_size)
    pool = BlockPool(num_blocks + rng.choice((0, 0, 4, 40)), block_size)
    windows = []
    for length in rng.sample((1, 2, 5, 16, 33, 60), rng.randint(1, 2)):
        least = WindowPool(length, 0, block_size).most_held(budget)
        count = min(pool.num_blocks, least + rng.choice((0, 0, 1, 8, 40)))
        windows.append(WindowPool(length, count, block_size))
    return Mix(rng, pool, max_sequences, budget, requests, windows, drafts)


def mix_with_states(rng):
    """The same with layers that have a state, and without windows in half of the mixes."""
    mix = windowed_mix(rng)
    windows = mix.windows if rng.random() < 0.5 else ()
    states = StatePool(2 * mix.max_sequences + rng.choice((1, 2, 8, 40)))
    sizes = mix.max_sequences, mix.budget, list(mix.order)
    return Mix(rng, mix.pool, *sizes, windows, mix.drafts, states)


def contiguous_mix(rng):
    return Mix(rng, BlockPool(1, 100), 1, rng.randint(1, 70), random_requests(rng, 100))


def of_several_clients(make_mix):
    """The same mixes, their requests those of two or three clients."""

    def make(rng):
        mix = make_mix(rng)
        clients = "abc"[: rng.choice((2, 3))]
        for request in mix.order:
            request.client = rng.choice(clients)
        return mix

    return make


def run_mixes(make_mix, num_mixes):
    """What happened in all of them; a failure names its mix."""
    happened = Counter()
    for seed in range(num_mixes):
        try:
            mix = make_mix(random.Random(seed))
            mix.run()
        except AssertionError as error:
            raise AssertionError(f"mix of seed {seed}: {error}") from error
        happened += mix.happened
    return happened


def test_any_mix_over_a_paged_cache_keeps_the_rules_and_gives_each_request_its_own_tokens():
    happened = run_mixes(paged_mix, NUM_MIXES)
    # A generator that no longer reaches these cases would prove nothing of them.
    assert min(happened[what] for what in ("preempted", "aborted", "failed", "cached")) > 180


def test_any_mix_with_windows_that_give_blocks_back_gives_each_request_its_own_tokens():
    happened = run_mixes(windowed_mix, NUM_MIXES // 4)
    kinds = "preempted", "aborted", "failed", "cached", "guessed", "passed by"
    assert min(happened[what] for what in kinds) > 48, happened


def test_any_mix_with_states_gives_each_request_its_own_tokens():
    happened = run_mixes(mix_with_states, NUM_MIXES // 4)
    kinds = "preempted", "aborted", "failed", "cached", "guessed", "passed by"
    assert min(happened[what] for what in kinds) > 36, happened


def test_any_mix_over_one_contiguous_block_gives_each_request_its_own_tokens():
    happened = run_mixes(contiguous_mix, NUM_MIXES // 4)
    assert min(happened[what] for what in ("aborted", "failed", "cached")) > 60


def test_any_mix_of_several_clients_keeps_the_rules_over_a_paged_cache():
    happened = run_mixes(of_several_clients(paged_mix), NUM_MIXES // 2)
    assert min(happened[what] for what in ("preempted", "aborted", "failed", "cached")) > 90


def test_any_mix_of_several_clients_keeps_the_rules_over_one_contiguous_block():
    happened = run_mixes(of_several_clients(contiguous_mix), NUM_MIXES // 4)
    assert min(happened[what] for what in ("preempted", "aborted", "failed", "cached")) > 60
