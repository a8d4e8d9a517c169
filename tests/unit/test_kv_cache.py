"""Which layers cache alike, and how a cache is cut."""

from model.tiny_models import tiny_config

from marlin.engine.kv_cache import Paging, groups_of, kv_token_bytes
from marlin.models.registry import spec_of
from marlin.models.spec import FullKV, WindowKV


def test_layers_with_the_same_window_form_a_group():
    spec = spec_of(tiny_config(num_layers=5, windows=(None, 8, None, 8, 9)))
    assert groups_of(spec) == {
        FullKV(2, 16): [0, 2],
        WindowKV(2, 16, 8): [1, 3],
        WindowKV(2, 16, 9): [4],
    }


def test_a_window_changes_what_a_query_sees_and_not_what_is_kept():
    seen, kept = (spec_of(tiny_config(windows=windows)) for windows in ((8, None), (None, None)))
    assert kv_token_bytes(seen) == kv_token_bytes(kept) == 2 * 2 * 2 * 16 * 2


def test_a_sequence_has_as_many_splits_as_its_blocks_need():
    assert Paging.contiguous(256).max_splits == 1
    assert Paging(num_blocks=64, block_size=16, table_stride=17).max_splits == 2


def test_a_layout_is_the_paging_and_the_sizes_of_a_layers_heads():
    layout = Paging(num_blocks=8, block_size=32, table_stride=4).layout(WindowKV(3, 64, 100))
    assert (layout.num_blocks, layout.block_size, layout.table_stride) == (8, 32, 4)
    assert (layout.num_kv_heads, layout.head_dim) == (3, 64)
    assert layout.layer_bytes == 8 * 32 * 3 * 64 * 2
