"""Values in buffers that point outside what they index: the replay fails, names its kernel, and the
device goes on. Each case is one step that is sound but for one value."""

from dataclasses import replace

import launch
import numpy as np
import pytest
from kv_case import make_case
from matrices import packed_weight

from marlin.device import abi
from marlin.errors import DeviceError

WRONG_IDS = [-1, 33, 2**31 - 1, -(2**31)]


def fails_in(kernel):
    return pytest.raises(
        DeviceError, match=rf"dispatch \d \(({kernel})\): an index in a buffer points"
    )


@pytest.mark.parametrize("token_id", WRONG_IDS)
@pytest.mark.parametrize("kind", ["int4", "f32"])
def test_a_token_id_outside_the_vocabulary(device, token_id, kind):
    weight = (
        packed_weight("int4", 33, 32, 32) if kind == "int4" else ("f32", np.ones((33, 32), "f4"))
    )
    with fails_in(f"embed_{kind}"):
        launch.embed(device, [0, 1, token_id], weight)
    assert launch.embed(device, [32], weight).shape == (1, 32)


@pytest.mark.parametrize("row", WRONG_IDS)
def test_a_row_to_gather_outside_its_source(device, row):
    with fails_in("gather_rows"):
        launch.gather_rows(device, [0, row], np.zeros((33, 8), np.float32))


@pytest.mark.parametrize("slot", [-1, 64, 2**31 - 1, -(2**31)])
def test_a_slot_outside_the_cache(device, slot):
    q, k, v = (np.zeros((2, heads, 16), np.float32) for heads in (2, 1, 1))
    table = np.zeros((2, 2, 8), np.float32)
    k_cache, v_cache = np.zeros((4, 1, 1, 16, 16), np.float16), np.zeros((4, 1, 16, 16), np.float16)
    with fails_in("rope_kv_write"):
        launch.rope_kv_write(device, q, k, v, table, [63, slot], k_cache, v_cache)


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("block_id", [-1, 10**6, 2**31 - 1, -(2**31)])
def test_a_block_outside_the_cache(device, block_id, split):
    case = make_case([(40, 3), (17, 1)])
    tables = case.tables.copy()
    tables[0, 1] = block_id
    with fails_in("attention_split" if split else "attention"):
        launch.attention(device, replace(case, tables=tables), split)


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize(
    "column, value",
    [
        (0, -1),
        (0, 4),
        (0, 2**31 - 1),
        (1, 0),
        (1, -1),
        (1, 17),
        (1, 5),
        (2, -1),
        (2, 2),
        (2, 2**31 - 1),
        (3, -1),
        (3, 48),
        (3, 2**31 - 1),
    ],
)
def test_a_tile_outside_its_rows_sequences_or_table(device, column, value, split):
    case = make_case([(40, 3), (17, 1)])
    tiles = case.tiles.copy()
    tiles[0, column] = value
    with fails_in("attention_split" if split else "attention"):
        launch.attention(device, replace(case, tiles=tiles), split)


@pytest.mark.parametrize("num_splits", [0, 1])
def test_fewer_splits_than_the_longest_context_has(device, num_splits):
    case = make_case([(300, 3)])
    with fails_in("attention_split|attention_combine"):
        launch.attention(device, case, split=True, num_splits=num_splits)


@pytest.mark.parametrize("row", [-1, 2, 2**31 - 1])
def test_a_mask_for_a_row_of_logits_that_is_not_there(device, row):
    logits, masks = np.zeros((2, 33), np.float32), np.zeros((1, 2), np.uint32)
    with fails_in("mask_logits"):
        launch.mask_logits(device, logits, masks, np.array([row], np.int32))


@pytest.mark.parametrize("token_id", WRONG_IDS)
def test_a_penalized_token_outside_the_vocabulary(device, token_id):
    logits, rows = np.zeros((1, 33), np.float32), np.zeros(1, abi.PARAMS["SampleRow"])
    entries = np.array([(0, 0, 0.0), (token_id, 0, 0.0)], abi.PARAMS["PenaltyEntry"])
    with fails_in("penalize"):
        launch.penalize(device, logits, entries, np.array([0, 2], np.int32), rows)


@pytest.mark.parametrize("starts", [(0, 3), (-1, 1), (2, 1), (0, 2**31 - 1), (-(2**31), 0)])
def test_penalty_starts_outside_the_entries(device, starts):
    logits, rows = np.zeros((1, 33), np.float32), np.zeros(1, abi.PARAMS["SampleRow"])
    entries = np.zeros(2, abi.PARAMS["PenaltyEntry"])
    with fails_in("penalize"):
        launch.penalize(device, logits, entries, np.array(starts, np.int32), rows)


def test_a_failure_in_the_middle_leaves_the_device_usable(any_device):
    weight = ("f32", np.arange(64, dtype=np.float32).reshape(2, 32))
    for _ in range(50):
        with fails_in("embed_f32"):
            launch.embed(any_device, [0] * 40 + [2], weight)
        np.testing.assert_array_equal(launch.embed(any_device, [1], weight), weight[1][1:])
