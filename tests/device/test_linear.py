"""y = x W^T + b for every weight kind: against the oracle, and the same bits in any company."""

import launch
import numpy as np
import pytest
import reference

from marlin.weights import formats

# (rows, n, k, group size): each value of each column, each with a few of the others.
PACKED_SHAPES = [
    (1, 1, 32, 32), (2, 15, 64, 64), (3, 16, 96, 32), (5, 17, 128, 128), (16, 33, 160, 32),
    (17, 16, 256, 64), (37, 33, 256, 128), (1, 33, 128, 64), (2, 17, 256, 32), (37, 1, 64, 32),
]  # fmt: skip
# Dense weights take any k.
DENSE_SHAPES = [
    (1, 1, 32), (2, 15, 1), (3, 16, 96), (5, 17, 33), (16, 33, 160), (17, 16, 256), (37, 3, 47),
]  # fmt: skip
DENSE = ("f32", "f16", "bf16")


def activations(rows, k, seed=0):
    """float32 [rows, k] whose groups have one clearly best quantization step, so that no device may
    choose another; sizes differ by row and group."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, k // 32, 32)) * np.exp2(rng.integers(-8, 8, (rows, k // 32, 1)))
    x = x.astype(np.float32)
    while not (settled := reference.quantize_activations(x.reshape(rows, k)).settled).all():
        x[~settled] = rng.standard_normal((np.sum(~settled), 32))
    return x.reshape(rows, k)


def packed_weight(kind, n, k, group_size, scale_dtype=np.float16, with_bias=None, seed=1):
    """PackedWeight of random codes, scales of both signs and, where the kind has them, biases."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256 if kind == "int8" else 16, (n, k)).astype(np.uint8)
    scales = rng.standard_normal((n, k // group_size)).astype(scale_dtype)
    with_bias = kind == "int4" if with_bias is None else with_bias
    biases = (rng.standard_normal(scales.shape) * 4).astype(scale_dtype) if with_bias else None
    return formats.pack(kind, codes, scales, biases)


def dense_weight(kind, n, k, seed=1):
    """((kind, stored array), the float32 values it stands for)."""
    values = np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)
    if kind == "bf16":
        values, stored = reference.bfloat16(values)
    else:
        stored = values.astype({"f32": np.float32, "f16": np.float16}[kind])
        values = stored.astype(np.float32)
    return (kind, stored), values


def expected_of(x, packed, bias=None):
    """What the oracle makes of the quantized activations."""
    weight = formats.dequantize(packed)
    magnitude = np.abs(weight)
    if packed.biases is not None:
        biases = formats.unpack(packed)[2].astype(np.float64)
        biases = np.repeat(biases, packed.group_size, axis=1)
        magnitude = np.abs(weight - biases) + np.abs(biases)
    quantized = reference.quantize_activations(x).values
    return reference.linear(quantized, weight, bias, magnitude)


def bias_of(n):
    return np.random.default_rng(n).standard_normal(n).astype(np.float32)


@pytest.mark.parametrize("kind", formats.FORMATS)
@pytest.mark.parametrize("rows, n, k, group_size", PACKED_SHAPES)
def test_packed_weights_multiply_the_quantized_activations(device, kind, rows, n, k, group_size):
    x, packed = activations(rows, k), packed_weight(kind, n, k, group_size)
    reference.assert_close(launch.linear(device, x, packed), expected_of(x, packed))


@pytest.mark.parametrize(
    "kind, group_size, scale_dtype, with_bias",
    [
        ("int4", 32, np.float32, True),
        ("fp4", 64, np.float32, False),
        ("int8", 32, np.float32, True),
        ("int8", 128, np.float16, True),
        ("int8", 16, np.float32, False),
        ("int8", 16, np.float16, False),
    ],
)
@pytest.mark.parametrize("rows", [1, 17])
def test_every_form_of_scales_is_read(device, kind, group_size, scale_dtype, with_bias, rows):
    x = activations(rows, 128)
    packed = packed_weight(kind, 33, 128, group_size, scale_dtype, with_bias)
    reference.assert_close(launch.linear(device, x, packed), expected_of(x, packed))


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("rows, n, k", DENSE_SHAPES)
def test_dense_weights_multiply_the_activations(device, kind, rows, n, k):
    x = np.random.default_rng(0).standard_normal((rows, k)).astype(np.float32)
    weight, values = dense_weight(kind, n, k)
    reference.assert_close(launch.linear(device, x, weight), reference.linear(x, values))


@pytest.mark.parametrize("kind", [*formats.FORMATS, *DENSE])
@pytest.mark.parametrize("rows, n", [(1, 33), (5, 17)])
def test_an_output_bias_is_added_once(device, kind, rows, n):
    x, bias = activations(rows, 96), bias_of(n)
    if kind in DENSE:
        weight, values = dense_weight(kind, n, 96)
        expected = reference.linear(x, values, bias)
    else:
        weight = packed_weight(kind, n, 96, 32)
        expected = expected_of(x, weight, bias)
    reference.assert_close(launch.linear(device, x, weight, bias), expected)


@pytest.mark.parametrize("kind", [*formats.FORMATS, "int8-16", *DENSE])
def test_a_row_gets_the_same_bits_whatever_rows_and_threads_share_the_work(isa, devices, kind):
    x = np.random.default_rng(3).standard_normal((37, 160)).astype(np.float32)
    if kind in DENSE:
        weight = dense_weight(kind, 33, 160)[0]
    else:
        weight = packed_weight(kind[:4], 33, 160, 16 if kind == "int8-16" else 32)
    bias = bias_of(33)
    every = launch.linear(devices.get(isa, 1), x, weight, bias)
    for num_threads, rows in [(1, 1), (1, 2), (1, 3), (2, 5), (3, 16), (2, 17), (3, 37), (2, 2)]:
        for first in (0, 37 - rows):
            part = x[first : first + rows]
            many = rows > 4
            y = launch.linear(devices.get(isa, num_threads), part, weight, bias, many)
            np.testing.assert_array_equal(y, every[first : first + rows])


@pytest.mark.parametrize("kind", [*formats.FORMATS, *DENSE])
def test_instruction_sets_agree_within_the_order_of_their_sums(isa, devices, kind):
    x = activations(5, 256)
    if kind in DENSE:
        weight, values = dense_weight(kind, 17, 256)
        magnitude = reference.linear(x, values).magnitude
    else:
        weight = packed_weight(kind, 17, 256, 64)
        magnitude = expected_of(x, weight).magnitude
    actual = launch.linear(devices.get(isa), x, weight)
    scalar = launch.linear(devices.get("scalar"), x, weight)
    reference.assert_close(actual, reference.Expected(scalar, magnitude))


def seen_activations(device, x):
    """What packed kernels make of x: an int8 identity matrix hands back codes * scales."""
    k = x.shape[1]
    codes = (np.eye(k) + 128).astype(np.uint8)
    identity = formats.pack("int8", codes, np.ones((k, k // 32), np.float16))
    return launch.linear(device, x, identity)


def squared_error(x, values):
    """Per group of 32, [rows, k / 32]."""
    difference = x.astype(np.float64) - values
    return (difference**2).reshape(len(x), -1, 32).sum(axis=2)


def test_activations_are_quantized_no_worse_than_with_the_largest_on_127(device):
    x = np.random.default_rng(4).standard_t(3, (40, 64)).astype(np.float32)
    step = np.repeat(np.abs(x).reshape(40, 2, 32).max(axis=2) / 127, 32, axis=1)
    plain = squared_error(x, np.rint(x / step) * step)
    assert (squared_error(x, seen_activations(device, x)) <= plain * (1 + 1e-5)).all()


def test_zeros_stay_zeros(device):
    np.testing.assert_array_equal(seen_activations(device, np.zeros((3, 64), np.float32)), 0)


@pytest.mark.parametrize("size", [1e-37, 1e-31, 1e-20, 1.0, 1e17, 1e30])
def test_a_lone_outlier_keeps_its_size_and_hides_only_what_is_far_below_it(device, size):
    x = np.full((1, 64), size * 1e-4, np.float32)
    x[0, 40] = -size
    y = seen_activations(device, x)
    # A group below the smallest activation counts as nothing, which is what it contributes.
    limit = max(size / 122.1 * 0.51, 1.01e-30)
    assert np.isfinite(y).all() and np.abs(y - x).max() <= limit
    if size > 1e-30:
        assert abs(y[0, 40] + size) <= size * 1e-5


def test_subnormal_activations_count_as_zero(device):
    x = np.full((1, 32), 1e-41, np.float32)
    np.testing.assert_array_equal(seen_activations(device, x), 0)


def test_the_largest_codes_do_not_saturate(device):
    x = np.full((2, 64), 3.0, np.float32)
    x[1] = -3.0
    for kind, code, value in [("int8", 0, -128), ("int8", 255, 127), ("int4", 15, 15), ("fp4", 7, 6)]:
        codes = np.full((16, 64), code, np.uint8)
        ones = np.ones((16, 2), np.float16)
        packed = formats.pack(kind, codes, ones, 0 * ones if kind == "int4" else None)
        y = launch.linear(device, x, packed)
        np.testing.assert_allclose(y, np.sign(x[:, :1]) * np.full((1, 16), 192 * value), rtol=1e-6)
