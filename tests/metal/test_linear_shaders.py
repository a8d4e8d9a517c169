"""Linear layers, repacking and the probes, kernel by kernel: what the shapes of tests/device miss.

tests/device runs small shapes on the whole device. Here are y of several tiles, rows that take
several steps, activations that a half cannot hold, repacked bytes beside the CPU's, and the probes.
"""

import numpy as np
import pytest
import reference
from ggml_blocks import blank, random_blocks, width_of

from marlin.device import abi, ops
from marlin.device.device import Device
from marlin.device.program import Recorder, View
from marlin.weights import formats
from marlin.weights.block_types import REPACKED
from marlin.weights.kinds import KINDS, MUST, PACKED_KINDS, ROW_TILE


def weight_of(kind, n, k, group_size=32, seed=None):
    """([data, scales, biases], flags, float64 [n, k] it stands for, what cancels in it)."""
    rng = np.random.default_rng(n if seed is None else seed)
    if kind == "f32":
        data = rng.standard_normal((n, k)).astype(np.float32)
        return [data, None, None], 0, data, np.abs(data)
    codes = rng.integers(0, 1 << KINDS[kind].bits, (n, k)).astype(np.uint8)
    has_bias = KINDS[kind].bias == MUST
    scales, biases = rng.standard_normal((2, n, k // group_size)).astype(np.float16)
    packed = formats.pack(kind, codes, scales, biases if has_bias else None)
    values = formats.dequantize(packed)
    bias = np.repeat(np.abs(biases.astype(np.float64)), group_size, axis=1)
    flags = abi.WEIGHT_BIAS if has_bias else 0
    magnitude = np.abs(values) + (2 * bias if has_bias else 0)
    return arrays_of(packed), flags, values, magnitude


def matmul(shader, kind, x, arrays, n, flags, group_size=32, y_rows=None):
    """y float32 [y_rows, n] of which the kernel fills len(x) rows; the rest stays NaN."""
    rows, k = x.shape
    y = np.full((y_rows or rows, n), np.nan, np.float32)
    constants = {"GROUP_SIZE": group_size, "FLAGS": flags}
    units = (-(-n // ROW_TILE), rows, 1)
    fields = {"rows_var": 0, "n": n, "k": k, "group_size": group_size, "flags": flags}
    bindings = [x, *arrays, None, y]
    params = ("LinearParams", fields)
    assert shader("matmul").run(f"matmul_{kind}", units, bindings, params, [rows], constants)
    return y


@pytest.mark.parametrize("kind", ["f32", *PACKED_KINDS])
@pytest.mark.parametrize("rows, n", [(65, 130), (130, 63), (64, 64), (33, 97)])
def test_tiles_of_y_meet_without_seam_or_overlap(shader, any_order, kind, rows, n):
    k = 70 if kind == "f32" else 96
    x = np.random.default_rng(rows).standard_normal((rows, k)).astype(np.float32)
    arrays, flags, values, magnitude = weight_of(kind, n, k)
    y = matmul(shader, kind, x, arrays, n, flags)
    reference.assert_close(y, reference.linear(x, values, weight_magnitude=magnitude))


@pytest.mark.parametrize("kind", ["f32", *PACKED_KINDS])
def test_activations_past_the_largest_half_are_multiplied(shader, kind):
    x = np.random.default_rng(0).standard_normal((17, 64)).astype(np.float32) * 1e30
    arrays, flags, values, magnitude = weight_of(kind, 33, 64)
    y = matmul(shader, kind, x, arrays, 33, flags)
    reference.assert_close(y, reference.linear(x, values, weight_magnitude=magnitude))


@pytest.mark.parametrize("kind", ["f32", "int4"])
def test_a_row_of_a_tile_does_not_depend_on_the_others(shader, kind):
    x = np.random.default_rng(1).standard_normal((70, 96)).astype(np.float32)
    arrays, flags, *_ = weight_of(kind, 33, 96)
    every = matmul(shader, kind, x, arrays, 33, flags)
    for first, last in [(0, 1), (3, 36), (69, 70)]:
        part = matmul(shader, kind, x[first:last].copy(), arrays, 33, flags)
        np.testing.assert_array_equal(part, every[first:last])


def test_rows_past_the_step_are_not_written(shader):
    x = np.ones((5, 32), np.float32)
    arrays, flags, *_ = weight_of("int8", 20, 32)
    y = matmul(shader, "int8", x, arrays, 20, flags, y_rows=9)
    assert np.isfinite(y[:5]).all() and np.isnan(y[5:]).all()


@pytest.mark.parametrize("simdgroups", [4, 8])
@pytest.mark.parametrize("kind", PACKED_KINDS)
@pytest.mark.parametrize("rows, k", [(1, 544), (1, 1056), (3, 1632), (16, 2080)])
def test_few_and_many_simdgroups_share_the_steps_of_a_tile(shader, simdgroups, kind, rows, k):
    x = np.random.default_rng(k).standard_normal((rows, k)).astype(np.float32)
    arrays, flags, values, magnitude = weight_of(kind, 19, k)
    y = np.full((rows, 19), np.nan, np.float32)
    constants = {"ROWS": rows if rows != 3 else 4, "SIMDGROUPS": simdgroups}
    constants |= {"GROUP_SIZE": 32, "FLAGS": flags}
    params = "LinearParams", {"rows_var": 0, "n": 19, "k": k, "group_size": 32, "flags": flags}
    bindings = [x, *arrays, None, y]
    assert shader("matvec").run(f"matvec_{kind}", (2, rows, 1), bindings, params, [rows], constants)
    reference.assert_close(y, reference.linear(x, values, weight_magnitude=magnitude))


def arrays_of(packed):
    return [packed.codes, packed.scales, packed.biases]


def repacked_by_cpu(source, ggml_type, n, k, heads):
    """The CPU device's [codes, scales, biases], as bytes."""
    row = REPACKED[ggml_type]
    device = Device(num_threads=1)
    views = []
    for array in (source, *arrays_of(blank(ggml_type, n, k))):
        views.append(None if array is None else View.of(device.create(array.nbytes)))
        if array is not None:
            views[-1].buffer.array(np.uint8)[:] = array.reshape(-1).view(np.uint8)
    weight = ops.Weight(row.kind, n, k, views[1], row.group_size, 0, views[2], views[3])
    recorder = Recorder(device)
    ops.repack(recorder, views[0], weight, row.number, heads)
    recorder.finish().run()
    found = [None if view is None else view.buffer.array(np.uint8).tobytes() for view in views[1:]]
    device.close()
    return found


@pytest.mark.parametrize("ggml_type", REPACKED)
@pytest.mark.parametrize("n, heads", [(1, 0), (33, 0), (48, 3)])
def test_repacking_gives_the_cpus_bytes(shader, any_order, ggml_type, n, heads):
    k = width_of(ggml_type, 2)
    source, arrays = random_blocks(ggml_type, n, k), arrays_of(blank(ggml_type, n, k))
    fields = {
        "type": REPACKED[ggml_type].number,
        "n": n,
        "k": k,
        "permute_heads": heads,
        "factor": 1.0,
    }
    units = (-(-n // ROW_TILE), 1, 1)
    assert shader("repack").run("repack", units, [source, *arrays], ("RepackParams", fields), [])
    found = [None if array is None else array.tobytes() for array in arrays]
    assert found == repacked_by_cpu(source, ggml_type, n, k, heads)


TWO_UNITS = ("ProbeParams", {"num_units": 2})


@pytest.mark.parametrize("place", [0, 4095, 77777, abi.PROBE_BYTES - 1])
def test_the_read_probe_reads_every_byte_of_its_piece(shader, place):
    x = np.random.default_rng(place).integers(0, 256, (2, abi.PROBE_BYTES)).astype(np.uint8)
    before, after = np.zeros((2, 2), np.uint32)
    shader("probe").run("probe_read", (2, 1, 1), [x, before], TWO_UNITS, [])
    x[1, place] ^= 1
    shader("probe").run("probe_read", (2, 1, 1), [x, after], TWO_UNITS, [])
    assert before[0] == after[0] and before[1] != after[1]
    assert before[0] == x[0].view(np.uint32).sum(dtype=np.uint32)


def test_the_dot_probe_leaves_one_finite_number_a_unit(shader):
    out = np.full(3, np.nan, np.float32)
    shader("probe").run("probe_dot", (2, 1, 1), [None, out], TWO_UNITS, [])
    assert np.isfinite(out[:2]).all() and (out[:2] > 0).all() and np.isnan(out[2])
