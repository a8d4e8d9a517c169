"""RoPE's table, and the kernel that norms, turns and stores heads in a KV cache."""

import launch
import numpy as np
import pytest
import reference

from marlin.device import ops


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("half_dim, scale", [(8, 1.0), (24, 1.0), (64, 1.19)])
def test_the_rope_table_holds_scaled_cosines_and_sines(device, half_dim, scale):
    positions = np.array([0, 1, 17, 255, 8191, 131071], np.int32)
    inv_freq = (10000.0 ** -(np.arange(half_dim) / half_dim)).astype(np.float32)
    table = launch.rope_table(device, positions, inv_freq, scale)
    reference.assert_close(table, reference.rope_table(positions, inv_freq, scale))


def rope_inputs(rows, num_heads, num_kv_heads, head_dim, block_size, num_blocks):
    """q, k, v, table, slots (distinct, shuffled, in a stale cache), k_cache, v_cache."""
    heads = [normal(rows, n, head_dim, seed=n) for n in (num_heads, num_kv_heads, num_kv_heads)]
    table = reference.rope_table(np.arange(rows) * 7, normal(head_dim // 2) ** 2, 1.0).value
    slots = np.random.default_rng(rows).permutation(num_blocks * block_size)[:rows]
    k_shape = (num_blocks, num_kv_heads, block_size // 16, head_dim, 16)
    k_cache = np.full(k_shape, 7, np.float16)
    v_cache = np.full((num_blocks, num_kv_heads, block_size, head_dim), 9, np.float16)
    return *heads, table.astype(np.float32), slots, k_cache, v_cache


@pytest.mark.parametrize(
    "rows, num_heads, num_kv_heads, head_dim, block_size, num_blocks",
    [
        (1, 1, 1, 16, 16, 1),
        (17, 9, 3, 64, 16, 5),
        (5, 8, 1, 48, 32, 2),
        (37, 2, 2, 80, 48, 1),
        (3, 3, 1, 128, 32, 4),
    ],
)
def test_keys_and_values_land_in_their_slots_and_nowhere_else(
    device, rows, num_heads, num_kv_heads, head_dim, block_size, num_blocks
):
    shape = (rows, num_heads, num_kv_heads, head_dim, block_size, num_blocks)
    q, k, v, table, slots, k_cache, v_cache = rope_inputs(*shape)
    actual = launch.rope_kv_write(device, q, k, v, table, slots, k_cache, v_cache)
    q, k = reference.rotate(q, table), reference.rotate(k, table)
    reference.write_kv(k_cache, v_cache, k, v, slots)
    for got, want in zip(actual[:2], (q, k), strict=True):
        reference.assert_close(got, reference.Expected(want, np.abs(want) + 1))
    reference.assert_close(actual[2], reference.Expected(k_cache, np.abs(k_cache)), "float16")
    np.testing.assert_array_equal(actual[3], v_cache)


@pytest.mark.parametrize("rotary_dim", [2, 30, 48, 80])
@pytest.mark.parametrize("interleaved", [False, True])
def test_a_part_of_a_head_turns_and_the_rest_stays(device, rotary_dim, interleaved):
    q, k, v, _, slots, k_cache, v_cache = rope_inputs(5, 3, 2, 80, 16, 2)
    table = reference.rope_table(np.arange(5) * 7, normal(rotary_dim // 2) ** 2, 1.2).value
    table, turns = table.astype(np.float32), (rotary_dim, interleaved)
    actual = launch.rope_kv_write(device, q, k, v, table, slots, k_cache, v_cache, turns)
    turned_q, turned_k = (reference.rotate(heads, table, interleaved) for heads in (q, k))
    np.testing.assert_array_equal(turned_q[..., rotary_dim:], q[..., rotary_dim:])
    reference.write_kv(k_cache, v_cache, turned_k, v, slots)
    for got, want in zip(actual[:2], (turned_q, turned_k), strict=True):
        reference.assert_close(got, reference.Expected(want, np.abs(want) + 1))
    reference.assert_close(actual[2], reference.Expected(k_cache, np.abs(k_cache)), "float16")
    np.testing.assert_array_equal(actual[3], v_cache)


@pytest.mark.parametrize("head_dim, rotary_dim", [(16, 16), (48, 22), (80, 0), (272, 272)])
@pytest.mark.parametrize("interleaved", [False, True])
def test_heads_are_normed_before_they_turn(device, head_dim, rotary_dim, interleaved):
    q, k, v, _, slots, k_cache, v_cache = rope_inputs(5, 3, 2, head_dim, 16, 2)
    table = reference.rope_table(np.arange(5) * 7, normal(rotary_dim // 2) ** 2, 1.2).value
    table, turns = table.astype(np.float32), (rotary_dim, interleaved)
    norms = normal(head_dim, seed=7), normal(head_dim, seed=8), 1e-3
    caches = k_cache.copy(), v_cache.copy()
    actual = launch.rope_kv_write(device, q, k, v, table, slots, *caches, turns, norms)
    for got, heads, weight in zip(actual[:2], (q, k), norms[:2], strict=True):
        normed = reference.rms_norm(heads, weight, 1e-3)[0].value.astype(np.float32)
        want = reference.rotate(normed, table, interleaved)
        reference.assert_close(got, reference.Expected(want, np.abs(want) + 1))
    reference.write_kv(k_cache, v_cache, actual[1], v, slots)
    np.testing.assert_array_equal(actual[2], k_cache)
    np.testing.assert_array_equal(actual[3], v_cache)


def turn_queries(device, q, table, turns, norm=None):
    """q after its heads are normed, by (array, eps), and turned, without any keys."""
    layout = ops.KvLayout(1, 16, 1, 2, q.shape[2])
    with launch.Memory(device) as memory:
        view, table = memory.put(q), memory.put(table)
        norm = norm and (memory.put(norm[0]), norm[1])
        launch.run(
            device,
            lambda r: ops.turn_queries(r, view, table, layout, q.shape[1], turns, norm),
            launch.step(tokens=len(q)),
        )
        return memory.read(view, q.dtype, q.shape)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("head_dim, rotary_dim", [(16, 16), (48, 22), (512, 512)])
def test_queries_alone_turn_as_they_do_beside_keys(device, head_dim, rotary_dim, normed):
    q, k, v, _, slots, k_cache, v_cache = rope_inputs(5, 3, 2, head_dim, 16, 2)
    table = reference.rope_table(np.arange(5) * 7, normal(rotary_dim // 2) ** 2, 1.2).value
    table, turns = table.astype(np.float32), (rotary_dim, False)
    weight = normal(head_dim, seed=7)
    norms = (weight, normal(head_dim, seed=8), 1e-3) if normed else None
    beside = launch.rope_kv_write(
        device, q.copy(), k, v, table, slots, k_cache, v_cache, turns, norms
    )
    alone = turn_queries(device, q, table, turns, (weight, 1e-3) if normed else None)
    np.testing.assert_array_equal(alone, beside[0])


def test_norms_of_heads_give_the_bits_of_a_norm_of_its_own(cpu_device):
    q, k, v, table, slots, k_cache, v_cache = rope_inputs(5, 3, 2, 80, 16, 2)
    norms = normal(80, seed=7), normal(80, seed=8), 1e-3
    caches = k_cache, v_cache
    fused = launch.rope_kv_write(cpu_device, q, k, v, table, slots, *caches, norms=norms)
    normed = [
        launch.rms_norm(cpu_device, x.reshape(-1, 80), weight, 1e-3, rows_per_var=x.shape[1])[0]
        for x, weight in ((q, norms[0]), (k, norms[1]))
    ]
    q, k = normed[0].reshape(q.shape), normed[1].reshape(k.shape)
    alone = launch.rope_kv_write(cpu_device, q, k, v, table, slots, *caches)
    for got, want in zip(fused, alone, strict=True):
        np.testing.assert_array_equal(got, want)


def test_heads_without_rope_are_stored_as_they_are(device):
    q, k, v, _, slots, k_cache, v_cache = rope_inputs(5, 3, 2, 48, 16, 2)
    actual = launch.rope_kv_write(device, q, k, v, None, slots, k_cache, v_cache, (0, False))
    reference.write_kv(k_cache, v_cache, k, v, slots)
    for got, want in zip(actual, (q, k, k_cache, v_cache, np.zeros(5)), strict=True):
        np.testing.assert_array_equal(got, want)


def test_neighbours_turn_where_a_model_pairs_them(device):
    q, k, v, table, slots, k_cache, v_cache = rope_inputs(1, 1, 1, 16, 16, 1)
    q[:], table[:, 0], table[:, 1] = 0, 0, 1
    q[0, 0, 4] = 5.0  # a quarter turn takes element 4 to 5
    turns = (16, True)
    actual = launch.rope_kv_write(device, q, k, v, table, slots, k_cache, v_cache, turns)
    assert np.flatnonzero(actual[0]).tolist() == [5] and actual[0][0, 0, 5] == 5.0


def test_position_zero_leaves_q_and_k_as_they_are(device):
    q, k, v, table, slots, k_cache, v_cache = rope_inputs(2, 3, 1, 48, 16, 1)
    table[:, 0], table[:, 1] = 1, 0
    actual = launch.rope_kv_write(device, q, k, v, table, slots, k_cache, v_cache)
    np.testing.assert_array_equal(actual[0], q)
    np.testing.assert_array_equal(actual[1], k)


def test_a_rotation_is_of_half_split_pairs(device):
    q, k, v, table, slots, k_cache, v_cache = rope_inputs(1, 1, 1, 16, 16, 1)
    q[:], table[:, 0], table[:, 1] = 0, 0, 1
    q[0, 0, 3] = 5.0  # a quarter turn takes element 3 to 3 + head_dim / 2
    actual = launch.rope_kv_write(device, q, k, v, table, slots, k_cache, v_cache)
    assert np.flatnonzero(actual[0]).tolist() == [11] and actual[0][0, 0, 11] == 5.0


def test_values_out_of_half_range_are_stored_as_the_largest_half(device):
    q, k, v, table, slots, k_cache, v_cache = rope_inputs(1, 1, 1, 16, 16, 1)
    v[0, 0, :6] = [1e6, -1e6, 65520, np.inf, 2.0**-24, 2.0**-26]
    stored = launch.rope_kv_write(device, q, k, v, table, slots, k_cache, v_cache)[3]
    expected = [65504, -65504, 65504, 65504, 2.0**-24, 0]
    assert stored[0, 0, slots[0], :6].tolist() == expected


@pytest.mark.parametrize("dtype, most", [(np.float16, 65504.0), (np.float32, 3.4028235e38)])
@pytest.mark.parametrize("part", ["k", "v"])
def test_a_row_with_a_number_that_the_cache_cannot_hold_is_marked(device, part, dtype, most):
    q, k, v, _, slots, k_cache, v_cache = rope_inputs(7, 3, 2, 48, 16, 2)
    changed = {"k": k, "v": v}[part]
    changed[1, 1, 47] = most  # is held
    changed[2, 0, 0] = -np.inf
    changed[4, 1, 40] = 65520 if dtype is np.float16 else np.inf
    changed[6, 1, 17] = np.nan
    caches = k_cache.astype(dtype), v_cache.astype(dtype)
    actual = launch.rope_kv_write(device, q, k, v, None, slots, *caches, (0, False))
    assert actual[4].tolist() == [0, 0, 1, 0, 1, 0, 0]
    finite = np.where(np.isnan(changed), 0, np.clip(changed, -most, most).astype(np.float32))
    changed[:] = finite
    expected_k, expected_v = caches[0].copy(), caches[1].copy()
    reference.write_kv(expected_k, expected_v, k, v, slots)
    block, offset = divmod(int(slots[6]), 16)
    expected_k[block, 1, 0, 0, offset] = np.nan
    np.testing.assert_array_equal(actual[2], expected_k)
    np.testing.assert_array_equal(actual[3], expected_v)


def test_a_key_is_beyond_the_cache_by_what_its_norm_makes_of_it(device):
    q, k, v, _, slots, k_cache, v_cache = rope_inputs(5, 3, 2, 48, 16, 2)
    weight = np.ones(48, np.float32)
    weight[7], k[:, :, 7], k[3, 1, 7], k[1, 0, 9] = 1e6, 0, 1, 1e9
    rest = k_cache, v_cache, (0, False), (weight, weight, 1e-6)
    actual = launch.rope_kv_write(device, q, k, v, None, slots, *rest)
    assert actual[4].tolist() == [0, 0, 0, 1, 0]


def test_a_cache_of_floats_holds_keys_and_values_as_they_are(device):
    q, k, v, _, slots, k_cache, v_cache = rope_inputs(5, 3, 2, 48, 16, 2)
    caches = k_cache.astype(np.float32), v_cache.astype(np.float32)
    actual = launch.rope_kv_write(device, q, k, 1e6 * v, None, slots, *caches, (0, False))
    reference.write_kv(*caches, k, 1e6 * v, slots)
    for got, want in zip(actual[2:], (*caches, np.zeros(5)), strict=True):
        np.testing.assert_array_equal(got, want)
