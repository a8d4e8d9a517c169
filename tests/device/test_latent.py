"""Latent attention: what is kept of a token, and attention whose keys are its values."""

from dataclasses import replace

import launch
import numpy as np
import pytest
import reference
import reference_latent
from kv_case import make_case
from test_attention import DECODE, PREFILL

from marlin.device import ops, ops_latent
from marlin.device.ops_latent import Latent
from marlin.errors import DeviceError

# (rows, heads, rank, parts of a head, interleaved, cache's type): one whose row is whole tiles, and
# one that ends with zeros.
SHAPES = [
    (1, 4, 16, 24, 16, True, np.float16),
    (37, 5, 32, 8, 6, True, np.float16),
    (5, 3, 48, 17, 16, False, np.float32),
]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def latent_write(device, inputs, rows, norm, cache, value_dim, latent):
    """(queries, cache, beyond) after the kernel has run.

    Args:
        inputs: absorbed queries, queries, latents.
        rows: RoPE table and slots.
        cache: [num_blocks, block_size / 16, key_dim, 16].
    """
    num_blocks, tiles, key_dim, _ = cache.shape
    layout = ops.KvLayout(num_blocks, tiles * 16, 1, 1, key_dim, cache.dtype.name, value_dim)
    shape = len(inputs[0]), latent.num_heads, key_dim
    with launch.Memory(device) as memory:
        views = [memory.put(array) for array in inputs]
        places = [memory.put(array) for array in (*rows, np.zeros(len(rows[1]), np.int32))]
        parts = memory.put(norm), memory.put(cache)
        queries = memory.put(np.full(shape, 7, np.float32))
        launch.run(
            device,
            lambda r: ops_latent.latent_write(r, views, places, *parts, layout, queries, latent),
            launch.step(tokens=shape[0]),
        )
        found = (queries, np.float32, shape), (parts[1], cache.dtype, cache.shape)
        return [memory.read(*one) for one in (*found, (places[2], np.int32, (shape[0],)))]


def case_of(shape):
    """inputs, rows, norm, cache, rank and Latent, as latent_write takes them."""
    rows, heads, rank, nope, rope, interleaved, dtype = shape
    inputs = normal(rows, heads, rank), normal(rows, heads, nope + rope, seed=1)
    table = reference.rope_table(np.arange(rows) * 7, normal(rope // 2) ** 2, 1.0).value
    slots = np.random.default_rng(rows).permutation(3 * 32)[:rows].astype(np.int32)
    cache = np.full((3, 2, -(-(rank + rope) // 16) * 16, 16), 7, dtype)
    latent = Latent(heads, nope, rope, interleaved, 1e-3)
    places = table.astype(np.float32), slots
    kv = normal(rows, rank + rope, seed=2)
    return (*inputs, kv), places, normal(rank, seed=3), cache, rank, latent


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_is_normed_and_turned_and_lands_in_its_slot(device, shape):
    *arrays, rank, latent = case_of(shape)
    queries, cache, beyond = latent_write(device, *arrays, rank, latent)
    expected, stored = reference_latent.latent_write(*arrays, latent)
    reference.assert_close(queries, expected)
    reference.assert_close(cache, stored, cache.dtype.name)
    assert not beyond.any()


def test_a_row_beyond_the_cache_is_marked_and_one_that_is_no_number_attends_to_none(device):
    (absorbed, q, kv), places, norm, cache, rank, latent = case_of(SHAPES[1])
    kv[3, 32], kv[5, 2] = 1e6, np.nan
    found = latent_write(device, (absorbed, q, kv), places, norm, cache, rank, latent)
    assert np.flatnonzero(found[2]).tolist() == [3]
    rows = found[1].transpose(0, 1, 3, 2).reshape(-1, cache.shape[2])[places[1]]
    assert np.isnan(rows[5, rank]) and np.isnan(rows).sum() == 1
    assert np.isfinite(rows[:, :rank]).all() and np.abs(rows[3]).max() > 9000


def test_a_slot_that_the_cache_does_not_have_is_refused(device):
    inputs, (table, slots), *rest = case_of(SHAPES[0])
    with pytest.raises(DeviceError, match=r"\(latent_write\): an index in a buffer points"):
        latent_write(device, inputs, (table, slots * 0 + 96), *rest)


# Heads of GLM-4.7-Flash's kind, more than share a pass, and a prime number of them.
ATTENTION = [
    dict(head_dim=48, num_heads=20, value_dim=32, block_size=32),
    dict(head_dim=48, num_heads=11, value_dim=48, block_size=None),
    dict(head_dim=576, num_heads=2, value_dim=512, block_size=16),
    dict(head_dim=64, num_heads=16, value_dim=16, block_size=16, dtype=np.float32),
]


def latent_case(sequences, value_dim, **shape):
    return replace(make_case(sequences, **shape), value_dim=value_dim)


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("shape", ATTENTION, ids=lambda shape: f"{shape['head_dim']}")
@pytest.mark.parametrize("sequences", [DECODE, PREFILL], ids=["decode", "prefill"])
def test_the_first_numbers_of_keys_are_the_values(device, sequences, shape, split):
    case = latent_case(sequences, **shape)
    reference.assert_close(launch.attention(device, case, split), case.expected())


def test_latents_keep_their_bits_however_a_context_is_divided(isa, devices):
    case = latent_case([*DECODE, (273, 20)], **ATTENTION[0])
    whole = launch.attention(devices.get(isa, 1), case)
    for num_threads in (1, 3):
        device = devices.get(isa, num_threads)
        np.testing.assert_array_equal(launch.attention(device, case, split=True), whole)
        parts = launch.attention(device, case.in_tiles_of(5))
        np.testing.assert_array_equal(parts, whole)
