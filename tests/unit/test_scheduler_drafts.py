"""The scheduler with guesses in its steps: they come last, take what is free, and leave nothing."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from marlin.engine.block_pool import BlockPool
from marlin.engine.draft import MAX_DRAFT_TOKENS
from marlin.engine.request import Request
from marlin.engine.sampling import SamplingParams
from marlin.engine.scheduler import PREFILL_TOKENS_BESIDE_DECODES, Scheduler

RIGHT, WRONG = 7, 8  # what the runner of these tests samples, and what it does not


class ScriptedDrafter:
    """Proposes the same draft every time, as far as the request may still get."""

    def __init__(self, draft):
        self.draft = draft
        self.observed = []
        self.num_step_rows = []

    def propose(self, request, num_step_rows):
        self.num_step_rows.append(num_step_rows)
        room = request.params.max_tokens - len(request.output_token_ids) - 1
        return self.draft[: max(0, room)]

    def follow(self, request):
        pass

    def observe(self, num_drafted, num_accepted):
        self.observed.append((num_drafted, num_accepted))


def make_request(prompt, draft=(), max_tokens=40, name="r"):
    request = Request(name, list(prompt), SamplingParams(max_tokens=max_tokens), seed=0)
    request.drafter = ScriptedDrafter(list(draft))
    return request


def carry_out(scheduler, chunks):
    """What the engine does with a step in which RIGHT is sampled everywhere."""
    for chunk in chunks:
        if not chunk.is_last:
            scheduler.advance(chunk)
            continue
        drafts = chunk.draft_token_ids
        num_right = next((i for i, token in enumerate(drafts) if token != RIGHT), len(drafts))
        chunk.request.output_token_ids += [RIGHT] * (num_right + 1)
        scheduler.advance(chunk, num_right)
        if len(chunk.request.output_token_ids) == chunk.request.params.max_tokens:
            scheduler.remove(chunk.request)
    scheduler.check()


def run_step(scheduler):
    chunks = scheduler.schedule()
    carry_out(scheduler, chunks)
    return chunks


def drafted(chunks):
    return [(chunk.request.request_id, len(chunk.draft_token_ids)) for chunk in chunks]


def test_right_guesses_become_tokens_whose_kv_is_there_already():
    scheduler = Scheduler(BlockPool(8, 16), 4, 64, max_draft_tokens=8)
    request = make_request(range(10), [RIGHT, RIGHT, WRONG, RIGHT])
    scheduler.waiting.append(request)
    run_step(scheduler)
    [chunk] = run_step(scheduler)
    assert chunk.draft_token_ids == (RIGHT, RIGHT, WRONG, RIGHT)
    # One token was sampled after the prompt; then two guesses and the token after them.
    assert request.output_token_ids == [RIGHT] * 4
    assert request.num_computed_tokens == request.num_tokens - 1 == 13
    assert request.drafter.observed[-1] == (4, 2)
    assert (request.num_draft_tokens, request.num_accepted_draft_tokens) == (4, 2)


def test_a_prompt_has_no_guesses_until_it_is_computed():
    scheduler = Scheduler(BlockPool(8, 16), 4, 16, max_draft_tokens=8)
    scheduler.waiting.append(make_request(range(40), [RIGHT]))
    assert [drafted(run_step(scheduler)) for _ in range(4)] == [[("r", 0)]] * 3 + [[("r", 1)]]


def test_a_guess_that_needs_a_block_gives_it_back_when_it_was_wrong():
    pool = BlockPool(4, 16)
    scheduler = Scheduler(pool, 4, 64, max_draft_tokens=8)
    request = make_request(range(14), [WRONG] * 7)
    scheduler.waiting.append(request)
    run_step(scheduler)
    chunks = scheduler.schedule()
    assert drafted(chunks) == [("r", 7)] and pool.num_free == 2
    carry_out(scheduler, chunks)
    assert pool.num_free == 3 and len(request.block_ids) == 1


def test_guesses_take_no_block_that_another_needs_and_preempt_nobody():
    pool = BlockPool(2, 16)
    scheduler = Scheduler(pool, 2, 64, max_draft_tokens=16)
    requests = [make_request(range(14), [RIGHT] * 7, name=name) for name in "ab"]
    scheduler.waiting.extend(requests)
    run_step(scheduler)
    # Each has one block: 14 tokens computed and one sampled; a guess fits behind it, and no more.
    assert drafted(scheduler.schedule()) == [("a", 1), ("b", 1)]
    assert scheduler.running == requests


def test_a_waiting_request_is_admitted_before_anybody_guesses():
    scheduler = Scheduler(BlockPool(2, 16), 2, 64, max_draft_tokens=16)
    scheduler.waiting.append(make_request(range(15), [RIGHT] * 7, name="a"))
    run_step(scheduler)
    scheduler.waiting.append(make_request(range(100, 110), name="b"))
    assert drafted(run_step(scheduler)) == [("a", 0), ("b", 0)]


def test_the_longest_drafts_are_cut_when_there_are_too_many():
    scheduler = Scheduler(BlockPool(64, 16), 8, 64, max_draft_tokens=10)
    lengths = {"a": 7, "b": 2, "c": 7, "d": 1}
    for name, length in lengths.items():
        scheduler.waiting.append(make_request(range(4), [WRONG] * length, name=name))
    run_step(scheduler)
    assert drafted(run_step(scheduler)) == [("a", 3), ("b", 2), ("c", 3), ("d", 1)]


def test_guesses_get_what_decodes_and_prompts_leave_of_the_budget():
    budget = PREFILL_TOKENS_BESIDE_DECODES + 4
    scheduler = Scheduler(BlockPool(64, 16), 4, budget, max_draft_tokens=16)
    decode = make_request(range(4), [WRONG] * 7, name="a")
    scheduler.waiting.append(decode)
    run_step(scheduler)
    scheduler.waiting.append(make_request(range(100, 200), name="b"))
    assert drafted(run_step(scheduler)) == [("a", 3), ("b", 0)]
    assert decode.drafter.num_step_rows[-1] == PREFILL_TOKENS_BESIDE_DECODES + 1


def test_without_speculation_nobody_is_asked_for_guesses():
    scheduler = Scheduler(BlockPool(8, 16), 4, 64)
    request = make_request(range(4), [RIGHT])
    scheduler.waiting.append(request)
    run_step(scheduler)
    assert drafted(run_step(scheduler)) == [("r", 0)] and request.drafter.num_step_rows == []


def test_a_later_prompt_finds_blocks_of_right_guesses_and_never_those_of_wrong_ones():
    scheduler = Scheduler(BlockPool(16, 16), 2, 64, max_draft_tokens=8)
    scheduler.waiting.append(make_request(range(14), [RIGHT] * 7, max_tokens=9, name="a"))
    scheduler.waiting.append(make_request(range(50, 64), [WRONG] * 7, max_tokens=2, name="b"))
    while scheduler.requests():
        run_step(scheduler)
    for name, beginning, token, found in (
        ("right", range(14), RIGHT, 16),
        ("wrong", range(50, 64), WRONG, 0),
    ):
        later = make_request([*beginning, *[token] * 6], max_tokens=1, name=name)
        scheduler.waiting.append(later)
        run_step(scheduler)
        assert later.num_cached_tokens == found, name


def test_sequential_mode_keeps_only_what_right_guesses_left():
    scheduler = Scheduler(BlockPool(1, 64), 1, 64, max_draft_tokens=7)
    draft = [RIGHT, RIGHT, WRONG, WRONG]
    scheduler.waiting.append(make_request([1, 2, 3], draft, max_tokens=4))
    while scheduler.requests():
        run_step(scheduler)
    later = make_request([1, 2, 3, *[RIGHT] * 9], max_tokens=1, name="later")
    scheduler.waiting.append(later)
    run_step(scheduler)
    # The fourth output token was sampled and never computed.
    assert later.num_cached_tokens == 6


class RandomDrafter(ScriptedDrafter):
    def __init__(self, seed):
        super().__init__([])
        self._random = random.Random(seed)

    def propose(self, request, num_step_rows):
        self.draft = self._random.choices((RIGHT, WRONG), (3, 1), k=self._random.randrange(8))
        return super().propose(request, num_step_rows)


REQUESTS = st.lists(
    st.tuples(st.integers(1, 90), st.integers(1, 40), st.integers(0, 30)), min_size=1, max_size=12
)


@settings(max_examples=300)
@given(
    requests=REQUESTS,
    num_blocks=st.integers(9, 20),
    max_sequences=st.integers(1, 6),
    budget=st.integers(6, 64),
    max_draft_tokens=st.integers(1, 20),
    aborts=st.sets(st.integers(0, 60)),
)
def test_any_mix_with_guesses_ends_with_every_block_free_and_every_token(
    requests, num_blocks, max_sequences, budget, max_draft_tokens, aborts
):
    pool = BlockPool(num_blocks, 16)
    scheduler = Scheduler(pool, max_sequences, budget, max_draft_tokens)
    arrivals = [
        (step, make_request(range(num_prompt), max_tokens=num_outputs, name=str(i)))
        for i, (num_prompt, num_outputs, step) in enumerate(requests)
    ]
    for i, (_, request) in enumerate(arrivals):
        request.drafter = RandomDrafter(seed=i)
    aborted = set()
    for step in range(5000):
        scheduler.waiting.extend(request for at, request in arrivals if at == step)
        if step in aborts and scheduler.requests():
            victim = scheduler.requests()[step % len(scheduler.requests())]
            scheduler.remove(victim)
            aborted.add(victim)
        chunks = scheduler.schedule()
        num_drafts = sum(len(chunk.draft_token_ids) for chunk in chunks)
        assert num_drafts <= max_draft_tokens
        assert sum(chunk.num_tokens for chunk in chunks) + num_drafts <= budget
        assert all(len(chunk.draft_token_ids) <= MAX_DRAFT_TOKENS for chunk in chunks)
        for chunk in chunks:
            end = chunk.start + chunk.num_tokens + len(chunk.draft_token_ids)
            assert len(chunk.request.block_ids) == pool.blocks_for(end)
        assert chunks or not scheduler.requests(), "a step without progress"
        carry_out(scheduler, chunks)
        if step > 30 and not scheduler.requests():
            break
    assert pool.num_free == num_blocks
    for _, request in arrivals:
        if request not in aborted:
            assert request.output_token_ids == [RIGHT] * request.params.max_tokens


class ForgetfulPool(BlockPool):
    """Caches nothing: a guess may take a cached block, the longest unused, a few steps before a
    token would, and whoever looks for it then computes more."""

    def remember(self, block, value):
        pass


def trace_of(requests, num_blocks, max_sequences, max_draft_tokens):
    """(blocks free, who runs, what was computed) of each step; every guess is wrong."""
    pool = ForgetfulPool(num_blocks, 16)
    scheduler = Scheduler(pool, max_sequences, 64, max_draft_tokens)
    for i, (num_prompt, num_outputs, _) in enumerate(requests):
        prompt = range(1000 * i, 1000 * i + num_prompt)
        scheduler.waiting.append(make_request(prompt, [WRONG] * 7, num_outputs, str(i)))
    steps = []
    while scheduler.requests():
        chunks = run_step(scheduler)
        spans = [(chunk.request.request_id, chunk.start, chunk.num_tokens) for chunk in chunks]
        running = [request.request_id for request in scheduler.running]
        steps.append((pool.num_free, running, spans))
    return steps


@settings(max_examples=300)
@given(requests=REQUESTS, num_blocks=st.integers(9, 14), max_sequences=st.integers(2, 6))
def test_wrong_guesses_change_no_step_for_anybody(requests, num_blocks, max_sequences):
    """Whoever is admitted, preempted, resumed or given blocks is so at the same step."""
    without = trace_of(requests, num_blocks, max_sequences, max_draft_tokens=0)
    assert trace_of(requests, num_blocks, max_sequences, max_draft_tokens=16) == without
