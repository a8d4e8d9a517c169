"""The scheduler as data: which tokens go into a step, and where the blocks are."""

from types import SimpleNamespace

import pytest

from marlin.engine.block_pool import BlockPool
from marlin.engine.request import Request
from marlin.engine.sampling import SamplingParams
from marlin.engine.scheduler import PREFILL_TOKENS_BESIDE_DECODES, Scheduler


def make_request(prompt, max_tokens=8, name="r"):
    return Request(name, list(prompt), SamplingParams(max_tokens=max_tokens), seed=0)


def run_step(scheduler, token_id=7):
    """Carry out one step with a runner that always samples token_id; returns its chunks."""
    chunks = scheduler.schedule()
    for chunk in chunks:
        wants_token = chunk.is_last
        scheduler.advance(chunk)
        if wants_token:
            chunk.request.output_token_ids.append(token_id)
            if len(chunk.request.output_token_ids) == chunk.request.params.max_tokens:
                scheduler.remove(chunk.request)
    scheduler.check()
    return chunks


def as_spans(chunks):
    return [(chunk.request.request_id, chunk.start, chunk.num_tokens) for chunk in chunks]


def test_a_long_prompt_is_computed_in_steps_of_the_budget():
    scheduler = Scheduler(BlockPool(8, 16), max_sequences=4, max_step_tokens=20)
    scheduler.waiting.append(make_request(range(45), name="a"))
    spans = [as_spans(run_step(scheduler)) for _ in range(4)]
    assert spans == [[("a", 0, 20)], [("a", 20, 20)], [("a", 40, 5)], [("a", 45, 1)]]


def test_a_prompt_arriving_beside_a_decode_gets_a_small_share_and_the_decode_goes_on():
    scheduler = Scheduler(BlockPool(64, 16), max_sequences=4, max_step_tokens=256)
    scheduler.waiting.append(make_request(range(3), name="a"))
    run_step(scheduler)
    scheduler.waiting.append(make_request(range(300), name="b"))
    spans = as_spans(run_step(scheduler))
    assert spans == [("a", 3, 1), ("b", 0, PREFILL_TOKENS_BESIDE_DECODES)]


def test_a_request_waits_until_the_pool_has_room_for_all_of_its_prompt():
    scheduler = Scheduler(BlockPool(4, 16), max_sequences=4, max_step_tokens=256)
    other = make_request(range(100, 132), 2, "b")
    scheduler.waiting.extend([make_request(range(48), 2, "a"), other])
    assert as_spans(run_step(scheduler)) == [("a", 0, 48)]
    assert as_spans(run_step(scheduler)) == [("a", 48, 1)]
    assert as_spans(run_step(scheduler)) == [("b", 0, 32)]


def test_requests_are_admitted_in_the_order_in_which_they_came():
    scheduler = Scheduler(BlockPool(4, 16), max_sequences=4, max_step_tokens=256)
    big, small = make_request(range(60), 1, "big"), make_request(range(2), 1, "small")
    scheduler.waiting.extend([make_request(range(30), 3, "first"), big, small])
    assert as_spans(run_step(scheduler)) == [("first", 0, 30)]
    assert as_spans(run_step(scheduler)) == [("first", 30, 1)]


def test_a_prompt_begins_after_the_full_blocks_that_an_earlier_one_left():
    scheduler = Scheduler(BlockPool(16, 16), max_sequences=4, max_step_tokens=256)
    scheduler.waiting.append(make_request(range(40), 1, "a"))
    run_step(scheduler)
    later = make_request([*range(36), 99, 99], 1, "b")
    scheduler.waiting.append(later)
    assert as_spans(run_step(scheduler)) == [("b", 32, 6)]
    assert later.num_cached_tokens == 32


def test_a_prompt_of_whole_cached_blocks_still_computes_its_last_block():
    scheduler = Scheduler(BlockPool(16, 16), max_sequences=4, max_step_tokens=256)
    for name in ("a", "b"):
        scheduler.waiting.append(make_request(range(32), 1, name))
        spans = as_spans(run_step(scheduler))
    assert spans == [("b", 16, 16)]


def test_blocks_with_equal_tokens_after_different_beginnings_are_not_shared():
    scheduler = Scheduler(BlockPool(16, 16), max_sequences=4, max_step_tokens=256)
    scheduler.waiting.append(make_request([*range(16), *range(50, 66), 1], 1, "a"))
    run_step(scheduler)
    scheduler.waiting.append(make_request([*range(1, 17), *range(50, 66), 1], 1, "b"))
    assert as_spans(run_step(scheduler)) == [("b", 0, 33)]


def test_a_beginning_shared_by_requests_that_arrive_together_is_computed_once():
    scheduler = Scheduler(BlockPool(256, 16), max_sequences=16, max_step_tokens=256)
    system_prompt = list(range(1000))
    scheduler.waiting.extend(
        make_request([*system_prompt, 2000 + i, 3000 + i], 2, f"r{i}") for i in range(16)
    )
    computed = 0
    while scheduler.requests():
        computed += sum(chunk.num_tokens for chunk in run_step(scheduler))
    # 62 full blocks once; 10 tokens each after them, and the first output token.
    assert computed == 62 * 16 + 16 * (10 + 1)


def test_the_longest_unused_block_is_given_away_first():
    pool = BlockPool(3, 16)
    old, new = pool.take(1), pool.take(1)
    pool.remember(old[0], b"old")
    pool.remember(new[0], b"new")
    pool.give_back(old)
    pool.give_back(new)
    assert pool.num_cached == 2 and pool.num_free == 3
    pool.take(2)  # the block that never had a hash, then the oldest
    assert pool.find([b"old"]) == [] and pool.find([b"new"]) == new


def test_a_block_without_a_hash_is_given_away_before_a_cached_one_however_short_it_is_unused():
    pool = BlockPool(2, 16)
    cached, plain = pool.take(1), pool.take(1)
    pool.remember(cached[0], b"x")
    pool.give_back(cached)
    pool.give_back(plain)
    assert pool.take(1) == plain and pool.find([b"x"]) == cached


def test_the_end_of_an_unused_chain_is_given_away_before_its_beginning():
    pool = BlockPool(2, 16)
    begin, end = pool.take(2)
    pool.remember(begin, b"begin")
    pool.remember(end, b"end")
    pool.give_back([begin, end])
    assert pool.take(1) == [end] and pool.find([b"begin"]) == [begin]


def test_a_block_that_is_held_is_never_given_away():
    pool = BlockPool(2, 16)
    held = pool.take(1)
    pool.remember(held[0], b"x")
    assert pool.find([b"x"]) == held
    assert pool.take(2) is None and pool.take(1) != held


def test_a_preempted_request_resumes_from_what_the_cache_still_holds():
    scheduler = Scheduler(BlockPool(4, 16), max_sequences=2, max_step_tokens=64)
    old, young = make_request(range(100, 116), 2, "old"), make_request(range(40), 9, "young")
    scheduler.waiting.extend([old, young])
    run_step(scheduler)
    assert as_spans(run_step(scheduler)) == [("old", 16, 1)]
    spans = as_spans(run_step(scheduler))
    assert spans[0][0] == "young" and spans[0][1] in (16, 32)
    assert young.num_cached_tokens == 0


def test_when_the_pool_runs_dry_the_youngest_gives_way_and_later_starts_again():
    scheduler = Scheduler(BlockPool(2, 16), max_sequences=2, max_step_tokens=64)
    old, young = make_request(range(16), 4, "old"), make_request(range(10), 9, "young")
    scheduler.waiting.extend([old, young])
    run_step(scheduler)
    assert as_spans(run_step(scheduler)) == [("old", 16, 1)]
    assert [request.request_id for request in scheduler.waiting] == ["young"]
    assert young.num_computed_tokens == 0 and young.output_token_ids == [7]
    run_step(scheduler)
    run_step(scheduler)
    assert as_spans(run_step(scheduler)) == [("young", 0, 11)]


def test_an_aborted_request_gives_its_blocks_back_at_once():
    pool = BlockPool(4, 16)
    scheduler = Scheduler(pool, max_sequences=2, max_step_tokens=64)
    request = make_request(range(40))
    scheduler.waiting.append(request)
    run_step(scheduler)
    assert pool.num_free == 1
    scheduler.remove(request)
    assert pool.num_free == 4 and scheduler.requests() == []


def test_sequential_mode_keeps_the_tokens_that_the_next_prompt_begins_with():
    scheduler = Scheduler(BlockPool(1, 64), max_sequences=1, max_step_tokens=64)
    scheduler.waiting.append(make_request([1, 2, 3, 4], 2))
    run_step(scheduler, token_id=9)
    run_step(scheduler, token_id=9)
    later = make_request([1, 2, 3, 4, 9, 5, 6], 1, "later")
    scheduler.waiting.append(later)
    assert as_spans(run_step(scheduler)) == [("later", 5, 2)]
    assert later.num_cached_tokens == 5


def test_a_prompt_that_is_all_in_the_cache_still_computes_its_last_token():
    scheduler = Scheduler(BlockPool(1, 64), max_sequences=1, max_step_tokens=64)
    for name in ("a", "b"):
        scheduler.waiting.append(make_request([1, 2, 3], 1, name))
        spans = as_spans(run_step(scheduler))
    assert spans == [("b", 2, 1)]


def test_nothing_is_kept_after_a_step_that_failed():
    scheduler = Scheduler(BlockPool(1, 64), max_sequences=1, max_step_tokens=64)
    request = make_request([1, 2, 3])
    scheduler.waiting.append(request)
    scheduler.schedule()
    scheduler.remove(request, keep=False)
    scheduler.waiting.append(make_request([1, 2, 3], name="b"))
    assert as_spans(scheduler.schedule()) == [("b", 0, 3)]


def test_giving_a_block_back_twice_is_noticed():
    pool = BlockPool(2, 16)
    blocks = pool.take(1)
    pool.give_back(blocks)
    with pytest.raises(AssertionError):
        pool.give_back(blocks)


@pytest.mark.parametrize(
    ("block_ids", "num_computed_tokens", "num_preemptions", "has_begun"),
    [([], 0, 0, False), ([3], 0, 0, True), ([], 5, 0, True), ([], 0, 1, True)],
)
def test_a_request_has_begun_once_it_was_in_a_step(
    block_ids, num_computed_tokens, num_preemptions, has_begun
):
    state = SimpleNamespace(
        block_ids=block_ids,
        num_computed_tokens=num_computed_tokens,
        num_preemptions=num_preemptions,
    )
    assert Request.has_begun.fget(state) is has_begun
