"""Causal attention over block tables: against the oracle, and the same bits however divided."""

from dataclasses import replace

import launch
import numpy as np
import pytest
import reference
from kv_case import make_case

# Contexts around one key tile, around one split of 256 and over several: one query each.
DECODE = [(length, 1) for length in (1, 15, 16, 17, 255, 256, 257, 700)]
# Chunks of a prompt: from the start, within a block, across a split; whole tiles and parts of one.
PREFILL = [(37, 37), (16, 16), (273, 20), (259, 5), (90, 17)]
# Each head_dim, ratio of query heads to KV heads, block size and window at least once.
SHAPES = [
    dict(head_dim=16, num_heads=1, num_kv_heads=1, block_size=16, window=0),
    dict(head_dim=48, num_heads=8, num_kv_heads=1, block_size=32, window=16),
    dict(head_dim=64, num_heads=9, num_kv_heads=3, block_size=16, window=100),
    dict(head_dim=80, num_heads=3, num_kv_heads=1, block_size=None, window=300),
    dict(head_dim=128, num_heads=2, num_kv_heads=2, block_size=32, window=0),
    dict(head_dim=64, num_heads=8, num_kv_heads=1, block_size=None, window=1),
]
STEPS = {"decode": DECODE, "prefill": PREFILL}


def name_of(shape):
    return "-".join(str(value) for value in shape.values())


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
@pytest.mark.parametrize("sequences", STEPS.values(), ids=STEPS)
def test_every_query_sees_its_context_and_nothing_else(device, sequences, shape, split):
    case = make_case(sequences, **shape)
    reference.assert_close(launch.attention(device, case, split), case.expected())


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_scores_are_multiplied_by_the_scale_that_a_model_asks_for(device, split):
    case = make_case([(273, 20), (40, 1)], scale=168**-0.5)
    reference.assert_close(launch.attention(device, case, split), case.expected())


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("shape", SHAPES[1:4], ids=name_of)
@pytest.mark.parametrize("loudness", [1.0, 30.0])
def test_scores_are_capped_softly(device, shape, split, loudness):
    case = make_case([*DECODE, (273, 20)], **shape, loudness=loudness, softcap=5.0)
    reference.assert_close(launch.attention(device, case, split), case.expected())
    plain = replace(case, scores={}).expected().value
    assert np.abs(plain - case.expected().value).max() > 0.1 or shape["window"] == 1


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("shape", SHAPES[1:4], ids=name_of)
def test_queries_grow_with_their_position(device, shape, split):
    case = make_case([*DECODE, (273, 20)], **shape, position_scale=0.4, scale_tokens=8)
    reference.assert_close(launch.attention(device, case, split), case.expected())
    plain = replace(case, scores={}).expected().value
    assert np.abs(plain - case.expected().value).max() > 0.05
    scores = {"position_scale": 0.4, "scale_tokens": 1000}
    small = replace(case, scores=scores)
    np.testing.assert_array_equal(
        launch.attention(device, small, split),
        launch.attention(device, replace(case, scores={}), split),
    )


def sinks_of(shape, size=6.0):
    """Some far above what a head's tokens score, some far below."""
    values = np.random.default_rng(7).standard_normal(shape["num_heads"]) * size
    return values.astype(np.float32)


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
@pytest.mark.parametrize("loudness", [1.0, 30.0])
def test_a_sink_takes_its_share_of_every_head(device, shape, split, loudness):
    sinks = sinks_of(shape)
    case = make_case([*DECODE, (273, 20)], **shape, loudness=loudness, sinks=sinks)
    reference.assert_close(launch.attention(device, case, split), case.expected())
    plain = replace(case, scores={}).expected().value
    assert np.abs(plain - case.expected().value).max() > 0.05


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_a_sink_far_above_all_scores_leaves_nothing_and_one_far_below_everything(device, split):
    case = make_case([(273, 20), (40, 1)], num_heads=2, sinks=np.array([300.0, -300.0], np.float32))
    found = launch.attention(device, case, split)
    assert np.abs(found[:, 0]).max() < 1e-30
    plain = launch.attention(device, replace(case, scores={}), split)
    np.testing.assert_array_equal(found[:, 1], plain[:, 1])


@pytest.mark.parametrize(
    "scores",
    [
        {"softcap": 4.0},
        {"position_scale": 0.4, "scale_tokens": 8},
        {"sinks": sinks_of(SHAPES[2])},
    ],
    ids=lambda scores: next(iter(scores)),
)
def test_a_cap_and_a_growth_and_sinks_keep_the_bits_however_a_context_is_divided(
    isa, devices, scores
):
    case = make_case([*DECODE, (273, 20)], **SHAPES[2], **scores)
    whole = launch.attention(devices.get(isa, 1), case)
    for num_threads in (1, 3):
        device = devices.get(isa, num_threads)
        np.testing.assert_array_equal(launch.attention(device, case, split=True), whole)
        parts = launch.attention(device, case.in_tiles_of(5))
        np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("shape", SHAPES[1:4], ids=name_of)
def test_sharing_a_context_over_threads_gives_the_same_bits(isa, devices, shape):
    case = make_case([*DECODE, (273, 20)], **shape)
    whole = launch.attention(devices.get(isa, 1), case)
    for num_threads in (1, 2, 3):
        device = devices.get(isa, num_threads)
        np.testing.assert_array_equal(launch.attention(device, case), whole)
        np.testing.assert_array_equal(launch.attention(device, case, split=True), whole)


@pytest.mark.parametrize("shape", SHAPES[1:4], ids=name_of)
def test_a_sequence_gets_the_same_bits_alone_as_in_a_batch(device, shape):
    case = make_case([*PREFILL, (300, 1)], **shape)
    together = launch.attention(device, case)
    for index in range(len(case.sequences)):
        alone = launch.attention(device, case.alone(index))
        np.testing.assert_array_equal(alone, together[case.rows_of(index)])


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("shape", SHAPES[1:4], ids=name_of)
def test_a_context_of_one_split_gets_the_same_bits_beside_a_longer_one(device, shape, with_sinks):
    """Alone no partials are merged."""
    scores = {"sinks": sinks_of(shape)} if with_sinks else {}
    case = make_case([(40, 1), (256, 1), (17, 3), (300, 1)], **shape, **scores)
    together = launch.attention(device, case, split=True)
    for index in range(3):
        alone = launch.attention(device, case.alone(index), split=True)
        np.testing.assert_array_equal(alone, together[case.rows_of(index)])


@pytest.mark.parametrize("rows_per_tile", [1, 5])
@pytest.mark.parametrize("window", [0, 16, 100])
def test_the_tiles_that_rows_share_do_not_change_their_bits(device, rows_per_tile, window):
    case = make_case(PREFILL, head_dim=48, num_heads=6, num_kv_heads=2, window=window)
    whole = launch.attention(device, case)
    parts = launch.attention(device, case.in_tiles_of(rows_per_tile))
    np.testing.assert_array_equal(parts, whole)


def test_a_block_size_does_not_change_the_bits(device):
    small, large, one = (
        make_case([(300, 3), (40, 40)], head_dim=64, num_heads=3, block_size=size)
        for size in (16, 32, None)
    )
    np.testing.assert_array_equal(launch.attention(device, small), launch.attention(device, large))
    np.testing.assert_array_equal(launch.attention(device, small), launch.attention(device, one))


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("window", [0, 40])
def test_a_cache_of_floats_gives_the_numbers_of_its_floats(device, split, window):
    shape = {"head_dim": 80, "num_heads": 6, "num_kv_heads": 2, "window": window}
    case = make_case([(300, 1), (17, 1), (40, 1)], dtype=np.float32, **shape)
    case.v_cache[:] *= 1e6  # beyond what a half holds
    reference.assert_close(launch.attention(device, case, split), case.expected())


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("bad", [0, 20, 40, 290, 299])
def test_who_sees_a_key_that_is_no_number_gets_none_and_others_their_bits(
    device, bad, split, softcap
):
    sequences = [(300, 2), (33, 1), (300, 1)] if not split else [(300, 1), (33, 1), (300, 1)]
    case = make_case(sequences, head_dim=48, num_heads=3, window=270, softcap=softcap)
    expected = launch.attention(device, case, split)
    k_cache, block = case.k_cache.copy(), case.tables[0, bad // 16]
    k_cache[block, 0, 0, 0, bad % 16] = np.nan
    actual = launch.attention(device, replace(case, k_cache=k_cache), split)
    for row, position in enumerate([298, 299][-sequences[0][1] :]):
        if position - 270 < bad <= position:
            expected[row] = np.nan
    np.testing.assert_array_equal(actual, expected)


def test_a_first_token_that_is_no_number_makes_all_that_follow_none(device):
    case = make_case([(20, 20)], head_dim=16, num_heads=2)
    case.k_cache[case.tables[0, 0], 0, 0, 0, 0] = np.nan
    assert np.isnan(launch.attention(device, case)).all()


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_blocks_before_the_window_may_be_gone(device, split):
    case = make_case([(700, 1), (300, 2)], head_dim=16, block_size=16, window=100)
    expected = case.expected()
    tables = case.tables.copy()
    tables[0, : (700 - 100) // 16] = -1
    tables[1, : (299 - 100) // 16] = -1
    reference.assert_close(launch.attention(device, replace(case, tables=tables), split), expected)


def test_what_lies_in_unused_slots_does_not_change_the_bits(device):
    case = make_case([(17, 17), (300, 1)], head_dim=48, num_heads=3, window=20)
    expected = launch.attention(device, case)
    keep = np.zeros(case.v_cache.shape[:3:2], bool)
    for index, (context_len, _) in enumerate(case.sequences):
        positions = np.arange(context_len)
        keep[case.tables[index, positions // 16], positions % 16] = True
    rng = np.random.default_rng(0)
    k_cache, v_cache = case.k_cache.copy(), case.v_cache.copy()
    for block, offset in np.argwhere(~keep):
        k_cache[block, :, offset // 16, :, offset % 16] = rng.uniform(-65504, 65504, 48)
        v_cache[block, :, offset] = rng.uniform(-65504, 65504, 48)
        if block % 2:  # as a NaN leaves a key
            k_cache[block, :, offset // 16, 0, offset % 16] = np.nan
    dirty = replace(case, k_cache=k_cache, v_cache=v_cache)
    np.testing.assert_array_equal(launch.attention(device, dirty), expected)


@pytest.mark.parametrize("loudness", [0.0, 20.0, 1000.0])
def test_a_flat_and_a_sharp_softmax_are_both_right(device, loudness):
    case = make_case([(300, 2), (40, 5)], head_dim=64, num_heads=3, loudness=loudness)
    reference.assert_close(launch.attention(device, case), case.expected())


def test_a_single_visible_token_gives_its_own_value(device):
    case = make_case([(40, 40)], head_dim=16, num_heads=1, window=1, loudness=30.0)
    _, values = reference.read_kv(case.k_cache, case.v_cache, case.tables[0], 40)
    np.testing.assert_array_equal(launch.attention(device, case), values.astype(np.float32))


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_instruction_sets_agree_within_the_order_of_their_sums(isa, devices, split):
    case = make_case([*DECODE, (37, 37)], head_dim=80, num_heads=6, num_kv_heads=2)
    actual = launch.attention(devices.get(isa), case, split)
    scalar = launch.attention(devices.get("scalar"), case, split)
    reference.assert_close(actual, reference.Expected(scalar, case.expected().magnitude))
