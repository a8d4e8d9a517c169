"""y = x W^T + b for packed weights: against the oracle, and the same bits in any company."""

import launch
import numpy as np
import pytest
import reference
from matrices import FLOATS, activations, bias_of, packed_weight

from marlin.weights import formats
from marlin.weights.kinds import PACKED_KINDS

# (rows, n, k, group size): each value of each column, each with a few of the others. From 8192 rows
# of W on, fewer simdgroups of a GPU share a tile (shaders/kernel_list.h).
SHAPES = [
    (1, 1, 32, 32), (2, 15, 64, 64), (3, 16, 96, 32), (5, 17, 128, 128), (16, 33, 160, 32),
    (17, 16, 256, 64), (37, 33, 256, 128), (1, 33, 128, 64), (2, 17, 256, 32), (37, 1, 64, 32),
    (2, 8195, 32, 32),
]  # fmt: skip


# Kinds whose scales may be of 16 columns.
HALVES = ("int8", "int4", "fp4", "int6")


def seen_by(device, x, kind):
    """The activations that a device multiplies: the CPU's are quantized."""
    is_float = device.kind == "metal" or kind in FLOATS
    return x if is_float else reference.quantize_activations(x).values


def expected_of(device, x, packed, bias=None):
    """What the oracle makes of the activations that the device sees."""
    weight = formats.dequantize(packed)
    magnitude = np.abs(weight)
    if packed.biases is not None:
        biases = formats.unpack(packed)[2].astype(np.float64)
        biases = np.repeat(biases, packed.group_size, axis=1)
        magnitude = np.abs(weight - biases) + np.abs(biases)
    return reference.linear(seen_by(device, x, packed.format), weight, bias, magnitude)


@pytest.mark.parametrize("kind", PACKED_KINDS)
@pytest.mark.parametrize("rows, n, k, group_size", SHAPES)
def test_packed_weights_multiply_the_activations(device, kind, rows, n, k, group_size):
    x, packed = activations(rows, k), packed_weight(kind, n, k, group_size)
    reference.assert_close(launch.linear(device, x, packed), expected_of(device, x, packed))


@pytest.mark.parametrize(
    "kind, group_size, scale_dtype, with_bias",
    [
        ("int4", 32, np.float32, True),
        ("fp4", 64, np.float32, False),
        ("int8", 32, np.float32, True),
        ("int8", 128, np.float16, True),
        ("int8", 16, np.float32, False),
        ("int8", 16, np.float16, False),
        ("int8", 16, np.float32, True),
        ("fp4", 16, np.float16, False),
        ("fp4", 16, np.float32, False),
        ("int4", 16, np.float16, True),
        ("int4", 16, np.float32, True),
        ("int4", 32, "block", True),
        ("int4", 16, "block", True),
        ("int8", 32, "block", True),
        ("int5", 32, "block", True),
        ("int6", 16, "block", False),
        ("int6", 32, np.float32, False),
        ("iq4", 32, "block", False),
        ("iq4", 32, np.float16, False),
        ("fp4", 64, "block", False),
        ("fp4", 32, np.uint8, False),
        ("int8", 128, "block", False),
        ("fp8", 128, np.float32, False),
        ("fp8", 32, np.uint8, False),
        ("fp8", 64, "block", False),
        ("nf4", 64, np.float32, False),
        ("iq4", 32, "rows", False),
        ("int4", 32, "rows", True),
        ("int4", 16, "rows", True),
        ("int8", 32, "rows", False),
        ("int5", 64, "rows", True),
        ("int6", 16, "rows", False),
        ("fp4", 128, "rows", False),
        ("fp8", 32, "rows", False),
    ],
)
@pytest.mark.parametrize("rows", [1, 17])
def test_every_form_of_scales_is_read(device, kind, group_size, scale_dtype, with_bias, rows):
    k = {"block": 768, "rows": 640}.get(scale_dtype, 128)
    x = activations(rows, k)
    packed = packed_weight(kind, 33, k, group_size, scale_dtype, with_bias)
    reference.assert_close(launch.linear(device, x, packed), expected_of(device, x, packed))


@pytest.mark.parametrize("kind", ["fp4", "fp8"])
@pytest.mark.parametrize("rows", [1, 17])
def test_an_exponent_is_any_power_of_two_or_no_number(device, kind, rows):
    x, packed = activations(rows, 64), packed_weight(kind, 33, 64, 32, np.uint8)
    packed.scales[0, 1, 3], packed.scales[1, :, 0], packed.scales[1, :, 15] = 255, 40, 200
    packed.scales[2, :, 0] = 255
    y = launch.linear(device, x, packed)
    assert np.isnan(y[:, [3, 32]]).all() and not np.isnan(np.delete(y, [3, 32], axis=1)).any()
    packed.scales[packed.scales == 255] = 127
    y[:, [3, 32]] = launch.linear(device, x, packed)[:, [3, 32]]
    reference.assert_close(y, expected_of(device, x, packed))


@pytest.mark.parametrize(
    "kind, group_size",
    [("int4", 32), ("int4", 16), ("int5", 32), ("int6", 16), ("iq4", 32), ("fp8", 64), ("nf4", 32)],
)
@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("form", ["block", "rows"])
def test_scales_in_two_levels_make_the_bits_of_their_products(device, kind, group_size, rows, form):
    x = np.random.default_rng(8).standard_normal((rows, 512)).astype(np.float32)
    packed = packed_weight(kind, 33, 512, group_size, form)
    products = formats.pack(kind, *formats.unpack(packed))
    assert products.scales.dtype == np.float32
    np.testing.assert_array_equal(
        launch.linear(device, x, packed), launch.linear(device, x, products)
    )


@pytest.mark.parametrize("kind", PACKED_KINDS)
@pytest.mark.parametrize("rows, n", [(1, 33), (5, 17), (2, 16)])
def test_an_output_bias_is_added_once(device, kind, rows, n):
    x, bias, packed = activations(rows, 96), bias_of(n), packed_weight(kind, n, 96, 32)
    expected = expected_of(device, x, packed, bias)
    reference.assert_close(launch.linear(device, x, packed, bias), expected)


@pytest.mark.parametrize("kind", [*PACKED_KINDS, *[f"{kind}-16" for kind in HALVES]])
def test_a_row_gets_the_same_bits_whatever_rows_and_threads_share_the_work(isa, devices, kind):
    x = np.random.default_rng(3).standard_normal((37, 160)).astype(np.float32) ** 3
    weight = packed_weight(kind.partition("-")[0], 33, 160, 16 if "-" in kind else 32)
    every = launch.linear(devices.get(isa, 1), x, weight, bias_of(33))
    for num_threads, rows in [(1, 1), (1, 2), (1, 3), (2, 5), (3, 16), (2, 17), (3, 37), (2, 2)]:
        device = devices.get(isa, num_threads)
        for part in (slice(0, rows), slice(37 - rows, 37)):
            y = launch.linear(device, x[part], weight, bias_of(33), many_rows=rows > 4)
            np.testing.assert_array_equal(y, every[part])


@pytest.mark.parametrize(
    "kind, group_size", [*[(kind, 64) for kind in PACKED_KINDS], *[(kind, 16) for kind in HALVES]]
)
@pytest.mark.parametrize("rows", [1, 17])
def test_an_outlier_leaves_the_others_of_its_group_their_bits(device, kind, group_size, rows):
    rest = np.clip(np.random.default_rng(6).standard_normal((rows, 256)), -3, 3).astype(np.float32)
    x, packed = rest.copy(), packed_weight(kind, 33, 256, group_size)
    for row in range(rows):
        for group in range(row % 2, 8, 2):
            x[row, group * 32 + (5 * row + group) % 32] = (-1000, 400)[group % 3 % 2]
    weight = formats.dequantize(packed).astype(np.float64)
    error = launch.linear(device, x, packed) - x.astype(np.float64) @ weight.T
    # Rounded together with 1000, each of the others would be off by 2.
    sizes = np.linalg.norm(rest, axis=1)[:, None] * np.linalg.norm(weight, axis=1)
    rounding = 1e-6 * np.abs(x.astype(np.float64)) @ np.abs(weight).T
    assert (np.abs(error) <= 0.004 * sizes + rounding).all()


def seen_activations(device, x):
    """What packed kernels make of x: an int8 identity matrix hands it back."""
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


@pytest.mark.parametrize("size", [1e-37, 1e-31, 1e-29, 1e-20, 1.0, 1e17, 1e30, 1e34])
def test_a_lone_outlier_keeps_its_size_and_hides_only_what_is_far_below_it(device, size):
    x = np.full((1, 64), size * 1e-4, np.float32)
    x[0, 40] = -size
    y = seen_activations(device, x)
    # A group whose largest value is below 1e-30 counts as zeros, which is what it contributes.
    assert np.isfinite(y).all()
    assert np.abs(y - x).max() <= max(size / 122.1 * 0.51, 1.01e-30)
    if size > 1e-30:
        assert abs(y[0, 40] + size) <= size * 1e-5


def test_subnormal_activations_count_as_zero(cpu_device):
    x = np.full((1, 32), 1e-41, np.float32)
    np.testing.assert_array_equal(seen_activations(cpu_device, x), 0)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "kind, code, value",
    [
        *[("int8", 0, -128), ("int8", 255, 127), ("int4", 15, 15), ("fp4", 7, 6), ("fp4", 15, -6)],
        *[("int5", 31, 31), ("int6", 63, 31), ("int6", 0, -32), ("iq4", 0, -127), ("iq4", 15, 113)],
        *[("fp8", 0x7E, 448), ("fp8", 0xFF, -480), ("fp8", 1, 2**-9), ("fp8", 0x87, -7 * 2**-9)],
        *[("nf4", 0, -1), ("nf4", 15, 1), ("nf4", 7, 0)],
    ],
)
def test_the_largest_codes_do_not_saturate(device, kind, code, value, sign):
    x = np.full((2, 64), sign * 3.0, np.float32)
    ones = np.ones((16, 2), np.float16)
    codes = np.full((16, 64), code, np.uint8)
    packed = formats.pack(kind, codes, ones, 0 * ones if kind in ("int4", "int5") else None)
    y = launch.linear(device, x, packed)
    np.testing.assert_allclose(y, np.full((2, 16), sign * 3.0 * 64 * value), rtol=1e-6)


@pytest.mark.parametrize("kind", PACKED_KINDS)
@pytest.mark.parametrize("others", [0.0, 1.0])
@pytest.mark.parametrize("place", [0, 5, 31])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_spoils_its_row_and_no_other(device, kind, others, place, value):
    x = np.full((3, 64), others, np.float32)
    x[1, place] = value
    y = launch.linear(device, x, packed_weight(kind, 17, 64, 32))
    # Integer sums cannot be infinite, so the CPU makes them NaN; floats may be either.
    is_float = device.kind == "metal" or kind in FLOATS
    assert np.isnan(y[1]).all() or (is_float and not np.isfinite(y[1]).any())
    assert np.isfinite(y[[0, 2]]).all()
