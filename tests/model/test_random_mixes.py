"""Random mixes of requests through the real scheduler, block pool and model: each gets the tokens
and the bits that it gets alone.

Steps are taken one by one, without the engine's thread, so that a mix is a function of its seed and
the seed of a failure repeats it.
"""

import random
from collections import Counter

import pytest
from tiny_models import (
    random_tensors,
    random_tokens,
    running,
    tiny_config,
    tiny_family_config,
    tiny_gemma3_config,
    write_folder,
)

from marlin.engine.block_pool import BlockPool, StatePool
from marlin.engine.request import Request
from marlin.engine.sampling import SamplingParams
from marlin.engine.scheduler import Scheduler

VOCAB = 97
EOS = 5  # about one token in a hundred: some answers end by themselves
BLOCK_SIZE = 16
NUM_BLOCKS = 64
MAX_SEQUENCES = 6
STEP_TOKENS = 48
CONTEXT_TOKENS = 176
# Past what any mix here needs; one that takes more makes no progress.
MAX_STEPS = 3000


class CountingPool(BlockPool):
    """A BlockPool that counts the cached blocks it gave away."""

    num_evicted = 0

    def take(self, count):
        evicted = max(0, count - (self.num_free - self.num_cached))
        blocks = super().take(count)
        self.num_evicted += evicted if blocks is not None else 0
        return blocks


class Mix:
    """The engine's loop over a runner, one step a call.

    Attributes:
        logits: {Request: [bytes of the logits behind each sampled token, the end one included]}.
        num_preempted: times that a running request was put back.
        states: StatePool of all slots that the runner has; None where its model has no states.
    """

    def __init__(self, runner, pool, max_sequences=1, step_tokens=STEP_TOKENS):
        num_states = runner.paging.num_states
        self.states = StatePool(num_states) if num_states else None
        sizes = max_sequences, step_tokens
        self.scheduler = Scheduler(pool, *sizes, states=self.states)
        self.logits = {}
        self.num_preempted = 0
        self._runner = runner

    def arrive(self, prompt, params, client=""):
        name = f"r{len(self.logits)}"
        request = Request(name, prompt, params, params.seed, client=client)
        self.logits[request] = []
        self.scheduler.waiting.append(request)
        return request

    def step(self):
        before = list(self.scheduler.running)
        chunks = self.scheduler.schedule()
        self.num_preempted += sum(request in self.scheduler.waiting for request in before)
        assert chunks, "requests are in hand and none is computed"
        token_ids = [token_id for [token_id] in self._runner.step(chunks)]
        self.scheduler.shares.charge(chunks, 0.3)
        sampled = zip(token_ids, self._runner.logits, strict=False)  # logits has spare rows
        for chunk in chunks:
            wants_token = chunk.is_last
            self.scheduler.advance(chunk)
            if wants_token:
                self._take(chunk.request, *next(sampled))
        self.scheduler.check()

    def _take(self, request, token_id, logits):
        self.logits[request].append(logits.tobytes())
        if token_id != EOS:
            request.output_token_ids.append(token_id)
        if token_id == EOS or len(request.output_token_ids) == request.params.max_tokens:
            self.scheduler.remove(request)


class Bank:
    """Requests that mixes draw from, and what each gets alone: computed once, in one block table
    from start to end, with nobody beside it."""

    def __init__(self, runner):
        self.runner = runner
        rng = random.Random(17)
        beginnings = [random_tokens(80, VOCAB, seed) for seed in range(3)]
        self.asked = [random_asked(rng, beginnings) for _ in range(150)]
        self._alone = {}

    def alone(self, index):
        """(output token ids, logits bytes) of a request run by itself."""
        if index not in self._alone:
            paging = self.runner.paging
            mix = Mix(self.runner, BlockPool(paging.num_blocks, paging.block_size))
            request = mix.arrive(*self.asked[index])
            while mix.scheduler.requests():
                mix.step()
            self._alone[index] = request.output_token_ids, mix.logits[request]
        return self._alone[index]


def random_asked(rng, beginnings):
    """(prompt, params) of a request that fits CONTEXT_TOKENS."""
    prompt = random_tokens(rng.choice((1, 2, 15, 16, 17, 31, 32, 40)), VOCAB, rng.randrange(1000))
    if rng.random() < 0.6:
        prompt = rng.choice(beginnings)[: rng.choice((15, 16, 32, 33, 48, 80))] + prompt
    params = {"temperature": rng.choice((0.0, 1.0)), "max_tokens": rng.choice((1, 2, 9, 24, 50))}
    if params["temperature"]:
        params |= {"top_p": rng.choice((1.0, 0.8)), "top_k": rng.choice((0, 20))}
    if rng.random() < 0.4:
        params |= {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2}
    if rng.random() < 0.2:
        params["logit_bias"] = ((3, 2.0), (90, -4.0))
    return prompt, SamplingParams(**params, seed=rng.randrange(1 << 64))


def random_mix(bank, seed, pool_for):
    """Run one mix; its requests' outputs are compared with those alone.

    Args:
        pool_for: (rng, tokens of the longest request) -> (pool, max_sequences).

    Returns:
        Counter of what happened in it.
    """
    rng = random.Random(seed)
    chosen = [rng.randrange(len(bank.asked)) for _ in range(rng.randint(2, 10))]
    expected = [bank.alone(index) for index in chosen]
    longest = max(len(bank.asked[index][0]) + bank.asked[index][1].max_tokens for index in chosen)
    pool, max_sequences = pool_for(rng, longest)
    mix = Mix(bank.runner, pool, max_sequences, rng.randint(8, STEP_TOKENS))
    plan = [(rng.randint(0, 30), bank.asked[index]) for index in chosen]
    aborts = {rng.randint(0, 40) for _ in range(rng.choice((0, 0, 1, 3)))}
    clients = random.Random(seed).choices(rng.choice(("a", "abc")), k=len(plan))
    requests = {}
    for step in range(MAX_STEPS):
        for place, (at, asked) in enumerate(plan):
            if at == step:
                requests[place] = mix.arrive(*asked, clients[place])
        in_hand = mix.scheduler.requests()
        if step in aborts and in_hand:
            victim = rng.choice(in_hand)
            victim.abort()
            mix.scheduler.remove(victim)
            mix.scheduler.check()
        if mix.scheduler.requests():
            mix.step()
        elif len(requests) == len(plan):
            break
    assert not mix.scheduler.requests(), "requests are left"
    for each in (pool, *([mix.states] if mix.states else ())):
        assert each.num_free == each.num_blocks, "blocks were not given back"
    for place, (token_ids, logits) in enumerate(expected):
        compare(requests[place], mix.logits[requests[place]], token_ids, logits)
    return Counter(
        aborted=sum(request.aborted for request in requests.values()),
        cached=sum(request.num_cached_tokens for request in requests.values()),
        preempted=mix.num_preempted,
        evicted=pool.num_evicted,
        ended=sum(len(tokens) < len(logits) for tokens, logits in expected),
    )


def compare(request, logits, alone_token_ids, alone_logits):
    """An aborted request has a beginning of what it would have had; any other has all of it."""
    if not request.aborted:
        assert len(logits) == len(alone_logits)
    num_tokens = len(request.output_token_ids)
    assert request.output_token_ids == alone_token_ids[:num_tokens]
    assert logits == alone_logits[: len(logits)], "the same tokens from other bits"


def random_mixes(bank, seeds, pool_for):
    """Counts of what happened in all mixes; a failure names its mix."""
    happened = Counter()
    for seed in seeds:
        try:
            happened += random_mix(bank, seed, pool_for)
        except AssertionError as error:
            raise AssertionError(f"mix of seed {seed}: {error}") from error
    return happened


# A window that some prompts fill and answers run out of, in every other layer.
CONFIGS = {"llama": tiny_config(), "gemma3": tiny_gemma3_config(num_layers=2, windows=(24, None))}


@pytest.fixture(scope="module", params=["llama", pytest.param("gemma3", marks=pytest.mark.long)])
def folder(request, tmp_path_factory):
    config = CONFIGS[request.param]
    return write_folder(tmp_path_factory.mktemp("model"), config, random_tensors(config, seed=11))


def paged_pool(rng, longest):
    """From room for little more than the longest request to room for all."""
    needed = -(-longest // BLOCK_SIZE)
    num_blocks = min(NUM_BLOCKS, needed + rng.choice((0, 1, 2, 5, 12, 50)))
    return CountingPool(num_blocks, BLOCK_SIZE), rng.randint(1, MAX_SEQUENCES)


def contiguous_pool(_rng, _longest):
    return CountingPool(1, CONTEXT_TOKENS), 1


def test_in_any_mix_over_a_paged_cache_each_request_gets_what_it_gets_alone(folder):
    with running(
        folder,
        num_threads=1,
        max_step_tokens=STEP_TOKENS,
        sequences=MAX_SEQUENCES,
        blocks=(NUM_BLOCKS, BLOCK_SIZE),
    ) as runner:
        happened = random_mixes(Bank(runner), range(1000), paged_pool)
    # A generator that no longer reaches these cases would prove nothing of them.
    assert happened["preempted"] > 300 and happened["evicted"] > 1000, happened
    assert happened["cached"] > 10_000 and happened["aborted"] > 300, happened
    assert happened["ended"] > 300, happened


@pytest.mark.long
@pytest.mark.parametrize("family", ["lfm2", "lfm2_moe", "qwen3_5_text", "glm4_moe_lite"])
def test_in_any_mix_of_models_that_keep_states_or_latents_each_request_gets_what_it_gets_alone(
    family, tmp_path
):
    """Slots for all that may run, and a few beginnings besides."""
    config = tiny_family_config(family)
    with running(
        write_folder(tmp_path, config, random_tensors(config, seed=11)),
        num_threads=1,
        max_step_tokens=STEP_TOKENS,
        sequences=MAX_SEQUENCES,
        blocks=(NUM_BLOCKS, BLOCK_SIZE),
        states=2 * MAX_SEQUENCES + 6,
    ) as runner:
        happened = random_mixes(Bank(runner), range(200), paged_pool)
    assert happened["preempted"] > 30 and happened["cached"] > 300, happened
    assert happened["aborted"] > 50, happened


def test_in_any_mix_over_one_contiguous_cache_each_request_gets_what_it_gets_alone(folder):
    with running(
        folder, num_threads=1, max_step_tokens=STEP_TOKENS, context=CONTEXT_TOKENS
    ) as runner:
        happened = random_mixes(Bank(runner), range(200), contiguous_pool)
    assert happened["cached"] > 300 and happened["aborted"] > 50, happened
