"""y = x W^T + b for float32, float16 and bfloat16 weights that are read in place."""

import launch
import numpy as np
import pytest
import reference
from matrices import DENSE, bias_of, dense_weight

# (rows, n, k): k need not be a multiple of anything.
SHAPES = [
    (1, 1, 32), (2, 15, 1), (3, 16, 96), (5, 17, 33), (16, 33, 160), (17, 16, 256), (37, 3, 47),
]  # fmt: skip


def rows_of_x(rows, k):
    return np.random.default_rng(0).standard_normal((rows, k)).astype(np.float32)


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("rows, n, k", SHAPES)
def test_dense_weights_multiply_the_activations(device, kind, rows, n, k):
    x, (weight, values) = rows_of_x(rows, k), dense_weight(kind, n, k)
    reference.assert_close(launch.linear(device, x, weight), reference.linear(x, values))


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("rows, n", [(1, 33), (5, 17)])
def test_an_output_bias_is_added_once(device, kind, rows, n):
    x, (weight, values), bias = rows_of_x(rows, 40), dense_weight(kind, n, 40), bias_of(n)
    expected = reference.linear(x, values, bias)
    reference.assert_close(launch.linear(device, x, weight, bias), expected)


@pytest.mark.parametrize("kind", DENSE)
def test_a_row_gets_the_same_bits_whatever_rows_and_threads_share_the_work(isa, devices, kind):
    x, weight = rows_of_x(37, 83), dense_weight(kind, 33, 83)[0]
    every = launch.linear(devices.get(isa, 1), x, weight, bias_of(33))
    for num_threads, rows in [(1, 1), (1, 2), (1, 3), (2, 5), (3, 16), (2, 17), (3, 37)]:
        device = devices.get(isa, num_threads)
        for part in (slice(0, rows), slice(37 - rows, 37)):
            y = launch.linear(device, x[part], weight, bias_of(33), many_rows=rows > 4)
            np.testing.assert_array_equal(y, every[part])


@pytest.mark.parametrize("kind", DENSE)
def test_instruction_sets_agree_within_the_order_of_their_sums(isa, devices, kind):
    x, (weight, values) = rows_of_x(5, 250), dense_weight(kind, 17, 250)
    actual = launch.linear(devices.get(isa), x, weight)
    scalar = launch.linear(devices.get("scalar"), x, weight)
    magnitude = reference.linear(x, values).magnitude
    reference.assert_close(actual, reference.Expected(scalar, magnitude))


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_subnormal_and_largest_weights_are_read_exactly(device, kind):
    bits = {"f16": [0x0001, 0x83FF, 0x7BFF, 0x8000], "bf16": [0x0080, 0x8001, 0x7F7F, 0x8000]}
    stored = np.array([bits[kind]] * 4, np.uint16).T.copy()
    if kind == "f16":
        stored = stored.view(np.float16)
        values = stored.astype(np.float32)
    else:
        values = (stored.astype(np.uint32) << 16).view(np.float32)
    x = np.array([[1, 0, 0, 0]], np.float32)
    y = launch.linear(device, x, (kind, stored))
    actual, expected = y[0], values[:, 0].copy()
    if device.kind == "metal":  # a GPU may take subnormal floats for zeros, Apple's do
        for numbers in (actual, expected):
            numbers[np.abs(numbers) < np.finfo(np.float32).tiny] = 0
    np.testing.assert_array_equal(actual, expected)
