"""Every family of the registry gives the same bits alone, batched, preempted, cached and guessed.

One small model each, with whatever its family has: windows, caps, layers without RoPE, norms of any
order. What all of it is made of is tried at length on two families elsewhere.
"""

from dataclasses import replace

import numpy as np
import pytest
from test_bit_equality import greedy_chunk
from test_random_mixes import (
    BLOCK_SIZE,
    MAX_SEQUENCES,
    NUM_BLOCKS,
    STEP_TOKENS,
    Bank,
    paged_pool,
    random_mixes,
)
from tiny_models import (
    logits_by_chunks,
    random_tensors,
    random_tokens,
    running,
    tiny_family_config,
    write_folder,
)

from marlin.models.bert import Bert
from marlin.models.registry import FAMILIES

LENGTH = 120
GENERATING = [family.model_type for family in FAMILIES if not isinstance(family, Bert)]


@pytest.fixture(scope="module", params=GENERATING)
def folder(request, tmp_path_factory):
    config = tiny_family_config(request.param)
    return write_folder(tmp_path_factory.mktemp("model"), config, random_tensors(config, seed=11))


def test_each_request_of_a_mix_gets_what_it_gets_alone(folder):
    with running(
        folder,
        num_threads=1,
        max_step_tokens=STEP_TOKENS,
        sequences=MAX_SEQUENCES,
        blocks=(NUM_BLOCKS, BLOCK_SIZE),
        states=2 * MAX_SEQUENCES + 4,
    ) as runner:
        happened = random_mixes(Bank(runner), range(12), paged_pool)
    assert happened["preempted"] and happened["cached"] > 100, happened


def with_slots(chunk, source, first_slot):
    """A chunk with a slot for the state behind each of its tokens, as a scheduler gives guesses.

    Args:
        source: slot of the state before it; -1: none.
        first_slot: that of the state after its first token; the others follow.
    """
    slots = range(first_slot, first_slot + chunk.num_tokens + len(chunk.draft_token_ids))
    sources = source, *slots[:-1]
    runs = [(row, 1, *pair) for row, pair in enumerate(zip(sources, slots, strict=True))]
    chunk.request.state_runs = runs
    return chunk


def test_chunks_decodes_and_guesses_give_the_same_bits(folder):
    """Guesses take the place of wrong ones, from the state before those to slots of their own."""
    token_ids, wrong = random_tokens(LENGTH, 97), random_tokens(9, 97, seed=2)
    table = (3, 0, 1, 2)
    sizes = {"sequences": 2, "blocks": (6, 32), "drafts": 16, "states": 2 * LENGTH}
    with running(folder, num_threads=1, **sizes) as runner:
        decoded = {}
        for position in range(LENGTH):
            chunk = greedy_chunk([token_ids[position]], position, table)
            runner.step([with_slots(chunk, position - 1, position)])
            decoded[position] = runner.logits[0].copy()
        runner.step([with_slots(greedy_chunk(wrong, 60, table), 59, LENGTH + 60)])
        for start, end in ((60, 62), (62, 70), (70, 79)):
            chunk = greedy_chunk([token_ids[start]], start, table)
            chunk = replace(chunk, draft_token_ids=tuple(token_ids[start + 1 : end]))
            source = 59 if start == 60 else LENGTH + start - 1
            runner.step([with_slots(chunk, source, LENGTH + start)])
            for row, position in enumerate(range(start, end)):
                np.testing.assert_array_equal(runner.logits[row], decoded[position])
    with running(folder, num_threads=1) as runner:
        for position, logits in logits_by_chunks(runner, token_ids, [64, 33, 7]).items():
            np.testing.assert_array_equal(logits, decoded[position])
