"""Which layers cache alike, and how a cache is cut."""

import pytest
from model.tiny_models import tiny_config

from marlin.engine.block_pool import BlockPool, StatePool
from marlin.engine.holdings import Holdings
from marlin.engine.kv_cache import (
    Paging,
    groups_of,
    kv_bytes,
    kv_token_bytes,
    longest_context,
)
from marlin.models.registry import spec_of
from marlin.models.spec import FullKV, WindowKV


def test_layers_with_the_same_window_form_a_group():
    spec = spec_of(tiny_config(num_layers=5, windows=(None, 8, None, 8, 9)))
    assert groups_of(spec) == {
        FullKV(2, 16): [0, 2],
        WindowKV(2, 16, 8): [1, 3],
        WindowKV(2, 16, 9): [4],
    }


# Two layers of two KV heads of 16, keys and values, float16: 128 bytes a token and layer.
WINDOWED = spec_of(tiny_config(windows=(40, None)))
FULL = spec_of(tiny_config(windows=(None, None)))


def test_a_token_within_a_window_takes_what_any_other_takes():
    assert kv_token_bytes(WINDOWED) == kv_token_bytes(FULL) == 2 * 128


def test_a_window_has_blocks_for_a_step_and_for_each_sequence_twice_and_once_more():
    # 40 tokens lie in 5 blocks of 16 at most, with the next; a step of 64 in one more than 4.
    paging = Paging(1000, 16, 1000).with_windows(WINDOWED, max_sequences=3, step_tokens=64)
    assert paging == Paging(1000, 16, 1000, ((40, 7 * 5 + 5),))
    assert paging.layout(WindowKV(2, 16, 40)).num_blocks == 40
    assert paging.layout(FullKV(2, 16)).num_blocks == 1000
    assert kv_bytes(WINDOWED, paging) == 128 * 16 * (1000 + 40)


def test_a_window_that_would_save_nothing_keeps_all_tokens():
    few, more = Paging(40, 16, 40), Paging(41, 16, 41)
    assert few.with_windows(WINDOWED, 3, 64) == few
    assert more.with_windows(WINDOWED, 3, 64).windows == ((40, 40),)
    assert kv_bytes(WINDOWED, few) == 40 * 16 * kv_token_bytes(WINDOWED)


def test_the_cache_of_one_sequence_is_one_block_but_for_windows_that_give_blocks_back():
    assert Paging.of_one(FULL, 4096, 64) == Paging.contiguous(4096)
    assert Paging.of_one(WINDOWED, 320, 64) == Paging.contiguous(320)
    assert Paging.of_one(WINDOWED, 336, 64) == Paging(21, 16, 21, ((40, 20),))


def test_the_longest_context_fills_the_bytes_there_are():
    assert longest_context(FULL, 256 * 1000, 512, 64) == 512
    assert longest_context(FULL, 256 * 160 - 1, 512, 64) == 144
    # 20 blocks of the window, and what is left for the layer without.
    room = 128 * (20 * 16 + 4096)
    assert longest_context(WINDOWED, room, 8192, 64) == 4096
    assert longest_context(WINDOWED, room - 1, 8192, 64) == 4080
    assert longest_context(WINDOWED, 0, 8192, 64) == 0


def test_a_sequence_has_as_many_splits_as_its_blocks_need():
    assert Paging.contiguous(256).max_splits == 1
    assert Paging(num_blocks=64, block_size=16, table_stride=17).max_splits == 2


def test_a_layout_is_the_paging_and_the_sizes_of_a_layers_heads():
    layout = Paging(num_blocks=8, block_size=32, table_stride=4).layout(WindowKV(3, 64, 100))
    assert (layout.num_blocks, layout.block_size, layout.table_stride) == (8, 32, 4)
    assert (layout.num_kv_heads, layout.head_dim) == (3, 64)
    assert layout.layer_bytes == 8 * 32 * 3 * 64 * 2


def test_states_are_kept_at_the_ends_of_blocks_of_which_there_are_two_at_least():
    Holdings(BlockPool(2, 16), (), 64, StatePool(4))
    Holdings(BlockPool(1, 16), (), 64)
    with pytest.raises(AssertionError, match="ends of blocks"):
        Holdings(BlockPool(1, 16), (), 64, StatePool(4))
