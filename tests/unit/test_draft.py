"""Guessing tokens from the text so far: where n-grams last occurred, how much is guessed, and what
of a guess stands."""

import random

import pytest

from marlin.engine import draft
from marlin.engine.draft import MAX_DRAFT_TOKENS, Drafter, NgramIndex, accept
from marlin.engine.request import Request
from marlin.engine.sampling import SamplingParams


def index_of(token_ids):
    index = NgramIndex()
    for token_id in token_ids:
        index.append(token_id)
    return index


def guess(token_ids, count=3):
    """What an index of these tokens would draft after them."""
    index = index_of(token_ids)
    found = index.find()
    return None if found is None else (found[0], index.continuation(found[1], count))


def drafter_of(prompt, max_num_tokens=1000, end_token_ids=()):
    """(drafter that has seen the prompt, its request)."""
    request = Request("r", list(prompt), SamplingParams(), seed=0)
    drafter = Drafter(max_num_tokens, end_token_ids)
    drafter.follow(request)
    return drafter, request


# 1 2 3 and what followed it, then 1 2 3 again.
COPIES = [1, 2, 3, 10, 11, 12, 13, 14, 15, 16, 17, 1, 2, 3]


def test_the_tokens_after_the_last_earlier_place_of_three_tokens_are_guessed():
    assert guess([1, 2, 3, 50, 1, 2, 3, 60, 61, 9, 1, 2, 3]) == (3, [60, 61, 9])


def test_three_tokens_that_occurred_win_over_two_that_did_so_later():
    assert guess([1, 2, 3, 50, 9, 2, 3, 60, 1, 2, 3]) == (3, [50, 9, 2])


def test_two_tokens_are_enough_and_one_is_not():
    assert guess([2, 3, 60, 9, 2, 3]) == (2, [60, 9, 2])
    assert guess([3, 60, 9, 3]) is None


@pytest.mark.parametrize("token_ids", [[], [1], [1, 2], [0, 0], [1, 2, 3, 4, 5]])
def test_tokens_without_an_earlier_place_give_no_guess(token_ids):
    assert guess(token_ids) is None


def test_a_guess_past_the_end_goes_on_with_what_it_repeats():
    assert guess([5, 6, 7, 5, 6, 7, 5, 6], count=7) == (3, [7, 5, 6, 7, 5, 6, 7])
    assert guess([8, 8, 8], count=4) == (2, [8, 8, 8, 8])


def test_a_long_sequence_is_remembered_in_part_and_its_end_always(monkeypatch):
    monkeypatch.setattr(draft, "_GENERATION_TOKENS", 50)
    rng = random.Random(1)
    tokens = [rng.randrange(1 << 20) for _ in range(1000)]
    for age in (10, 49):
        assert guess([*tokens, *tokens[-age:][:3]]) is not None
    assert guess([*tokens, *tokens[:3]]) is None
    index = index_of(tokens)
    assert len(index._places) + len(index._old_places) <= 2 * 2 * 50


def test_a_sequence_that_copies_is_drafted_ever_further():
    drafter, request = drafter_of(COPIES)
    lengths = []
    for _ in range(3):
        proposed = drafter.propose(request, num_step_rows=1)
        assert proposed == COPIES[3:][: len(proposed)]
        lengths.append(len(proposed))
        drafter.observe(len(proposed), len(proposed))
    assert 0 < lengths[0] < lengths[1] and lengths[2] == MAX_DRAFT_TOKENS


def test_wrong_guesses_soon_end_the_drafting_and_it_is_tried_again_later():
    drafter, request = drafter_of(COPIES)
    lengths = []
    for _ in range(100):
        proposed = drafter.propose(request, num_step_rows=1)
        lengths.append(len(proposed))
        drafter.observe(len(proposed), 0)
    assert lengths[:10] == [3, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    # A second row is a tenth of a step: 10 of them in 90 steps cost one in a hundred.
    assert max(lengths[10:]) == 1 and 5 <= sum(lengths[10:]) <= 10


def test_the_more_rows_a_step_has_the_less_is_drafted():
    lengths = []
    for num_step_rows in (1, 2, 4, 8, 16, 64):
        drafter, request = drafter_of(COPIES)
        lengths.append(len(drafter.propose(request, num_step_rows)))
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] >= 3 and lengths[-2:] == [0, 0]


def test_a_sequence_that_proved_itself_is_drafted_among_many_rows():
    drafter, request = drafter_of(COPIES)
    for _ in range(4):
        drafter.propose(request, num_step_rows=1)
        drafter.observe(7, 7)
    assert drafter.propose(request, num_step_rows=16)


def test_nothing_is_drafted_that_could_be_the_last_token():
    for room in (1, 2, 3, 4):
        drafter, request = drafter_of(COPIES, max_num_tokens=len(COPIES) + room)
        assert len(drafter.propose(request, num_step_rows=1)) == min(room - 1, 3)


def test_a_draft_ends_before_a_token_that_would_end_the_answer():
    drafter, request = drafter_of(COPIES, end_token_ids={11})
    assert drafter.propose(request, num_step_rows=1) == [10]


def test_a_prompt_is_indexed_over_several_steps_and_nothing_is_drafted_until_then(monkeypatch):
    monkeypatch.setattr(draft, "_MAX_INDEXED_A_STEP", len(COPIES))
    drafter, request = drafter_of([*COPIES, 99, *COPIES])  # the first step's part ends in a copy
    for _ in range(2):
        assert drafter.propose(request, num_step_rows=1) == []
        drafter.follow(request)
    assert drafter.propose(request, num_step_rows=1)


def test_output_is_followed_like_the_prompt():
    drafter, request = drafter_of([1, 2, 3, 40, 41])
    request.output_token_ids += [42, 1, 2, 3]
    drafter.follow(request)
    assert drafter.propose(request, num_step_rows=1)[:3] == [40, 41, 42]


@pytest.mark.parametrize(
    ("drafted", "sampled", "expected"),
    [
        ([], [5], [5]),
        ([5], [5, 6], [5, 6]),
        ([5], [4, 6], [4]),
        ([5, 6, 7], [5, 6, 7, 8], [5, 6, 7, 8]),
        ([5, 6, 7], [5, 9, 7, 8], [5, 9]),  # 7 and 8 were sampled after a 6 that is not there
    ],
)
def test_a_draft_stands_up_to_its_first_wrong_token_which_is_replaced(drafted, sampled, expected):
    assert accept(drafted, sampled) == expected
