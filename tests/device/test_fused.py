"""Linear layers fused with a norm, a gate or a residual: against the oracle, against the kernels
that they stand for, and the same bits in any company."""

import launch
import launch_fused
import numpy as np
import pytest
import reference
import reference_fused
from matrices import activations, bias_of, packed_weight
from test_linear import expected_of

from marlin.device import ops
from marlin.device.abi import FUSED_KINDS

# (rows, n, k, group size)
SHAPES = [(1, 17, 32, 32), (2, 16, 64, 64), (5, 33, 160, 32), (16, 15, 128, 128), (37, 33, 96, 32)]
EPS = 1e-5


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def squares(rows, k):
    return np.square(normal(rows, k // 16, seed=5))


@pytest.mark.parametrize("kind", FUSED_KINDS)
@pytest.mark.parametrize("rows, n, k, group_size", SHAPES)
def test_a_row_is_divided_by_its_size(device, kind, rows, n, k, group_size):
    x, packed = activations(rows, k), packed_weight(kind, n, k, group_size)
    bias, sums = bias_of(n) if rows > 1 else None, squares(rows, k)
    y = launch_fused.fused(device, x, packed, bias, (sums, EPS))
    product = expected_of(device, x, packed)
    reference.assert_close(y, reference_fused.normed(product, sums, k, EPS, bias))


@pytest.mark.parametrize("kind", FUSED_KINDS)
@pytest.mark.parametrize("rows, n, k, group_size", SHAPES)
def test_the_product_is_added_to_the_residual_and_scaled_by_the_next_norm(
    device, kind, rows, n, k, group_size
):
    x, packed = activations(rows, k), packed_weight(kind, n, k, group_size)
    bias = bias_of(n) if rows > 1 else None
    hidden, norm = normal(rows, n, seed=1) * 50, normal(n, seed=2)
    found = launch_fused.fused(device, x, packed, bias, residual=(hidden, norm, 0.22))
    product = expected_of(device, x, packed, bias)
    expected = reference_fused.added(product, hidden, norm, np.float32(0.22))
    for got, want in zip(found, (expected[1], expected[0], expected[2]), strict=True):
        reference.assert_close(got, want)


@pytest.mark.parametrize(
    "kind, group_size, activation, rows, n",
    [
        *((kind, 32, "silu", *shape) for kind in FUSED_KINDS for shape in ((1, 33), (5, 17))),
        *(("fp4", 16, "gelu", *shape) for shape in ((1, 17), (2, 16), (37, 15))),
        ("int4", 32, "silu", 1, 8195),
    ],
)
def test_a_gate_has_the_bits_of_three_kernels(device, kind, group_size, activation, rows, n):
    x = normal(rows, 96, seed=3)
    weights = [packed_weight(kind, n, 96, group_size, seed=seed) for seed in (1, 2)]
    biases = (bias_of(n), bias_of(n)[::-1].copy()) if rows > 1 else (None, None)
    parts = [launch.linear(device, x, w, b) for w, b in zip(weights, biases, strict=True)]
    multiply = {"silu": ops.silu_mul, "gelu": ops.gelu_mul}[activation]
    expected = launch.gated_mul(device, multiply, *parts)
    y = launch_fused.gated(device, x, weights, activation, biases)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("kind", FUSED_KINDS)
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_a_normed_row_is_gated(device, kind, activation):
    rows, n, k = 5, 33, 64
    x, sums = activations(rows, k), squares(rows, k)
    weights = [packed_weight(kind, n, k, 32, seed=seed) for seed in (1, 2)]
    biases = bias_of(n), bias_of(n)[::-1].copy()
    y = launch_fused.gated(device, x, weights, activation, biases, (sums, EPS))
    gate, up = (
        reference_fused.normed(expected_of(device, x, w), sums, k, EPS, b)
        for w, b in zip(weights, biases, strict=True)
    )
    reference.assert_close(y, reference_fused.gated(gate, up, activation))


@pytest.mark.parametrize("kind", FUSED_KINDS)
def test_a_row_gets_the_same_bits_whatever_rows_share_the_work(device, kind):
    x, sums, hidden = normal(37, 160, seed=3), squares(37, 160), normal(37, 33, seed=4)
    weight, up = packed_weight(kind, 33, 160, 32), packed_weight(kind, 33, 160, 32, seed=9)

    def everything(part):
        normed, residual = (sums[part], EPS), (hidden[part], normal(33), 1.0)
        found = launch_fused.fused(device, x[part], weight, bias_of(33), normed, residual)
        return [*found, launch_fused.gated(device, x[part], (weight, up), "silu", normed=normed)]

    every = everything(slice(0, 37))
    for first, last in [(0, 1), (3, 5), (0, 16), (20, 37)]:
        for one, whole in zip(everything(slice(first, last)), every, strict=True):
            np.testing.assert_array_equal(one, whole[first:last])
