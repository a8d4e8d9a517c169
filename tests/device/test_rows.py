"""The row-by-row kernels but those of heads: embedding, norms, gates, scaled rows, row gather."""

import launch
import numpy as np
import pytest
import reference
from matrices import DENSE, dense_weight, packed_weight

from marlin.device import ops
from marlin.weights import formats


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- embedding ---


def assert_dequantized(device, actual, expected):
    """To the bit on the CPU; a GPU's compiler may round scale * code + bias once instead of
    twice, and scale * code is at most a few times the largest value."""
    atol = 0.0 if device.kind == "cpu" else 4 * np.abs(expected).max() * 2.0**-24
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "kind, group_size, scale_dtype",
    [
        ("fp4", 32, np.float16),
        ("fp4", 128, np.float32),
        ("int4", 64, np.float16),
        ("int4", 32, np.float32),
        ("int8", 16, np.float32),
        ("fp4", 16, np.float16),
        ("int4", 16, np.float32),
        ("int8", 128, np.float16),
        ("int5", 32, np.float16),
        ("int6", 16, "block"),
        ("int6", 64, np.float16),
        ("iq4", 128, np.float32),
        ("fp4", 32, np.uint8),
        ("fp8", 64, np.float32),
        ("nf4", 64, np.float32),
    ],
)
def test_a_packed_embedding_row_is_the_dequantized_one(device, kind, group_size, scale_dtype):
    packed = packed_weight(kind, 33, 256, group_size, scale_dtype)
    token_ids = [0, 32, 15, 16, 16, 31, 1]
    expected = reference.embed(formats.dequantize(packed), token_ids)
    assert_dequantized(device, launch.embed(device, token_ids, packed), expected)


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("dim", [1, 33, 64])
def test_a_dense_embedding_row_is_copied_to_the_bit(device, kind, dim):
    weight, values = dense_weight(kind, 17, dim)
    token_ids = [16, 0, 3]
    expected = reference.embed(values, token_ids)
    np.testing.assert_array_equal(launch.embed(device, token_ids, weight), expected)


@pytest.mark.parametrize("kind", DENSE)
def test_a_dense_embedding_row_is_scaled(device, kind):
    weight, values = dense_weight(kind, 17, 33)
    scale = np.float32(640) ** np.float32(0.5)
    actual = launch.embed(device, [16, 0], weight, scale=scale)
    np.testing.assert_array_equal(actual, values[[16, 0]] * scale)


@pytest.mark.parametrize("kind", ["fp4", "int4", "int8"])
def test_a_packed_embedding_row_is_scaled(device, kind):
    packed = packed_weight(kind, 33, 64, 32, np.float16)
    expected = formats.dequantize(packed)[[32, 5]] * np.float32(25.25)
    assert_dequantized(device, launch.embed(device, [32, 5], packed, scale=25.25), expected)


def test_an_int8_embedding_adds_its_bias(device):
    packed = packed_weight("int8", 17, 64, 32, np.float32, with_bias=True)
    expected = formats.dequantize(packed)[[16, 2]]
    assert_dequantized(device, launch.embed(device, [16, 2], packed), expected)


# --- RMS norm ---


@pytest.mark.parametrize("rows, dim", [(1, 1), (2, 15), (3, 16), (5, 33), (17, 576), (37, 64)])
@pytest.mark.parametrize("has_delta", [False, True])
def test_rms_norm_adds_its_delta_first_and_keeps_the_sum(device, rows, dim, has_delta):
    x, weight = normal(rows, dim), normal(dim, seed=1)
    delta = normal(rows, dim, seed=2) if has_delta else None
    expected, summed = reference.rms_norm(x, weight, 1e-5, delta)
    y, x_after = launch.rms_norm(device, x, weight, 1e-5, delta)
    reference.assert_close(y, expected)
    np.testing.assert_array_equal(x_after, summed)


@pytest.mark.parametrize("dim", [16, 48, 80])
def test_rms_norm_of_heads_takes_each_head_for_itself_in_place(device, dim):
    x, weight = normal(5 * 3, dim) * 40, normal(dim, seed=1)
    expected, _ = reference.rms_norm(x, weight, 1e-6)
    y, _ = launch.rms_norm(device, x, weight, 1e-6, rows_per_var=3, in_place=True)
    reference.assert_close(y, expected)


@pytest.mark.parametrize("dim", [15, 33, 576])
def test_a_delta_is_scaled_before_it_is_added(device, dim):
    x, delta, weight = normal(3, dim), normal(3, dim, seed=2), normal(dim, seed=1)
    expected, summed = reference.rms_norm(x, weight, 1e-5, delta, 0.22)
    y, x_after = launch.rms_norm(device, x, weight, 1e-5, delta, delta_scale=0.22)
    reference.assert_close(y, expected)
    np.testing.assert_array_equal(x_after, summed)


@pytest.mark.parametrize("dim", [1, 15, 33, 576])
def test_a_norm_is_added_to_what_is_there(device, dim):
    x, before, weight = normal(3, dim) * 40, normal(3, dim, seed=2), normal(dim, seed=1)
    expected, _ = reference.rms_norm(x, weight, 1e-5, added_to=before)
    y, x_after = launch.rms_norm(device, x, weight, 1e-5, added_to=before)
    reference.assert_close(y, expected)
    np.testing.assert_array_equal(x_after, x)


def test_eps_keeps_the_norm_of_zeros_at_zero(device):
    zeros = np.zeros((2, 33), np.float32)
    y, _ = launch.rms_norm(device, zeros, normal(33), 1e-5)
    np.testing.assert_array_equal(y, 0)


def test_rms_norm_of_tiny_rows_is_ruled_by_eps(device):
    x, weight = normal(3, 40) * np.float32(1e-4), normal(40, seed=1)
    expected, _ = reference.rms_norm(x, weight, 1e-5)
    reference.assert_close(launch.rms_norm(device, x, weight, 1e-5)[0], expected)


# --- layer norm ---


@pytest.mark.parametrize("rows, dim", [(1, 1), (2, 15), (3, 16), (5, 33), (17, 384), (37, 64)])
@pytest.mark.parametrize("has_delta", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_layer_norm_adds_its_delta_first(device, rows, dim, has_delta, in_place):
    x, weight, bias = normal(rows, dim), normal(dim, seed=1), normal(dim, seed=3)
    delta = normal(rows, dim, seed=2) if has_delta else None
    expected, summed = reference.layer_norm(x, weight, bias, 1e-5, delta)
    y, x_after = launch.layer_norm(device, x, weight, bias, 1e-5, delta, in_place)
    reference.assert_close(y, expected)
    np.testing.assert_array_equal(x_after, y if in_place else summed)


def test_layer_norm_takes_the_mean_off_before_it_squares(device):
    """Squares less the mean's would lose the variance of rows far from 0."""
    x, ones, zeros = normal(3, 400) + 4000, np.ones(400, np.float32), np.zeros(400, np.float32)
    y, _ = launch.layer_norm(device, x, ones, zeros, 1e-12)
    np.testing.assert_allclose(y.std(axis=1), 1, rtol=1e-3)
    equal, _ = launch.layer_norm(device, np.full((2, 33), 7, np.float32), ones[:33], x[0, :33], 1.0)
    np.testing.assert_array_equal(equal, [x[0, :33]] * 2)


# --- gates and gather ---

GATES = [
    (ops.silu_mul, reference.silu_mul),
    (ops.gelu_mul, reference.gelu_mul),
    (ops.sigmoid_mul, reference.sigmoid_mul),
]


@pytest.mark.parametrize("op, oracle", GATES)
@pytest.mark.parametrize("rows, dim", [(1, 1), (2, 15), (3, 16), (5, 33), (17, 96)])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_gate_multiplies_the_row(device, op, oracle, rows, dim, in_place):
    gate, up = normal(rows, dim) * 5, normal(rows, dim, seed=1)
    reference.assert_close(launch.gated_mul(device, op, gate, up, in_place), oracle(gate, up))


@pytest.mark.parametrize("op, oracle", GATES)
def test_a_gate_of_a_large_value_is_the_value_or_zero(device, op, oracle):
    gate = np.tile(np.array([200, -200, 3e38, -3e38, 0, -88, -127, 88], np.float32), (1, 5))
    ones = np.ones_like(gate)
    reference.assert_close(launch.gated_mul(device, op, gate, ones), oracle(gate, ones))


def test_a_sigmoid_multiplies_the_row_alone(device):
    gate = np.array([[0.0, 2.0, -2.0, 30.0, -30.0]], np.float32)
    actual = launch.gated_mul(device, ops.sigmoid_mul, gate, np.full_like(gate, 2))
    np.testing.assert_allclose(actual[0], [1, 1.761594, 0.238406, 2, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows, dim", [(1, 1), (3, 16), (5, 33), (2, 1100)])
@pytest.mark.parametrize("cap", [0.0, 5.0])
@pytest.mark.parametrize("in_place", [False, True])
def test_rows_are_scaled_and_capped_softly(device, rows, dim, cap, in_place):
    x = normal(rows, dim) * 40
    expected = reference.scale_rows(x, 0.125, cap)
    reference.assert_close(launch.scale_rows(device, x, 0.125, cap, in_place), expected)


def test_a_cap_of_a_huge_value_is_the_cap(device):
    x = np.array([[3e38, -3e38, 1e4, -1e4, 0.0]], np.float32)
    actual = launch.scale_rows(device, x, 1.0, 30.0, False)
    np.testing.assert_allclose(actual[0], [30, -30, 30, -30, 0], rtol=1e-6)


def test_gelu_is_the_tanh_form(device):
    gate = np.array([[0.0, 1.0, -1.0, 3.0, -3.0, 0.1]], np.float32)
    # 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))); with erf 1 gives 0.841345.
    expected = [0.0, 0.841192, -0.158808, 2.996363, -0.003637, 0.053983]
    actual = launch.gated_mul(device, ops.gelu_mul, gate, np.full_like(gate, 2))
    np.testing.assert_allclose(actual[0], 2 * np.array(expected), rtol=0, atol=2e-6)


@pytest.mark.parametrize("rows, dim", [(1, 1), (2, 15), (3, 1024), (2, 2053)])
@pytest.mark.parametrize("in_place", [False, True])
def test_gelu_is_the_one_of_the_error_function(device, rows, dim, in_place):
    x = normal(rows, dim) * 4
    reference.assert_close(launch.gelu(device, x, in_place), reference.gelu(x))


def test_gelu_of_a_large_value_is_the_value_or_zero(device):
    x = np.array([[0.0, -0.0, 1.0, 40.0, -40.0, 1e30, -1e30]], np.float32)
    actual = launch.gelu(device, x)[0]
    np.testing.assert_allclose(actual[2], 0.8413447, rtol=0, atol=2e-7)
    np.testing.assert_array_equal(np.delete(actual, 2), [0, 0, 40, 0, np.float32(1e30), 0])


def test_gather_rows_takes_rows_in_any_order_and_more_than_once(device):
    x = normal(17, 33)
    rows = [16, 0, 3, 3, 15]
    np.testing.assert_array_equal(launch.gather_rows(device, rows, x), x[rows])


# --- company ---


@pytest.mark.parametrize("num_rows", [1, 3, 17])
def test_rows_get_the_same_bits_whatever_rows_and_threads_share_the_work(isa, devices, num_rows):
    x, weight, delta = normal(37, 100), normal(100, seed=1), normal(37, 100, seed=2)
    alone = devices.get(isa, 1)
    whole_norm = launch.rms_norm(alone, x, weight, 1e-5, delta)[0]
    whole_gate = launch.gated_mul(alone, ops.gelu_mul, x, delta)
    whole_layer = launch.layer_norm(alone, x, weight, weight, 1e-5, delta)[0]
    whole_gelu = launch.gelu(alone, x)
    for num_threads in (1, 2, 3):
        device = devices.get(isa, num_threads)
        for part in (slice(0, num_rows), slice(37 - num_rows, 37), slice(0, 37)):
            norm = launch.rms_norm(device, x[part], weight, 1e-5, delta[part])[0]
            np.testing.assert_array_equal(norm, whole_norm[part])
            gate = launch.gated_mul(device, ops.gelu_mul, x[part], delta[part])
            np.testing.assert_array_equal(gate, whole_gate[part])
            layer = launch.layer_norm(device, x[part], weight, weight, 1e-5, delta[part])[0]
            np.testing.assert_array_equal(layer, whole_layer[part])
            np.testing.assert_array_equal(launch.gelu(device, x[part]), whole_gelu[part])


def test_instruction_sets_agree_within_the_order_of_their_sums(isa, devices):
    x, weight = normal(5, 250), normal(250, seed=1)
    scalar, other = devices.get("scalar"), devices.get(isa)
    norms = [launch.rms_norm(device, x, weight, 1e-5)[0] for device in (other, scalar)]
    reference.assert_close(norms[0], reference.Expected(norms[1], np.abs(norms[1])))
    for op, oracle in GATES:
        gates = [launch.gated_mul(device, op, x, x) for device in (other, scalar)]
        reference.assert_close(gates[0], reference.Expected(gates[1], oracle(x, x).magnitude))
