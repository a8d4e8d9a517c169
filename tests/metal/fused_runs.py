"""Small runs of linear layers fused with a norm, a gate, a residual, compared with the oracle."""

import numpy as np
import reference
import reference_fused
from test_attention_shaders import normal
from test_linear_shaders import weight_of

from marlin.device import abi
from marlin.weights.kinds import ROW_TILE

N, K, EPS, SCALE = 33, 1120, 1e-5, 0.5


def matvec_fused(shader, kind):
    """A gate of a normed row and a residual, one row a threadgroup and sixteen; columns for a few
    turns of any threadgroup, and two values a thread of 128."""
    for rows, form in ((2, 1), (13, 16)):
        gated(shader, kind, rows, form)
        added(shader, kind, rows, form)


def run(shader, kind, x, form, simdgroups, flags, bindings):
    """bindings: from 1 on."""
    sizes = {"rows_var": 0, "n": N, "k": K, "group_size": 32, "flags": flags, "activation": 0}
    params = "FusedParams", {**sizes, "eps": EPS, "residual_scale": SCALE}
    constants = {"ROWS": form, "GROUP_SIZE": 32, "FLAGS": flags, "SIMDGROUPS": simdgroups}
    units, name = (-(-N // ROW_TILE), len(x), 1), f"matvec_fused_{kind}"
    assert shader("matvec").run(name, units, [x, *bindings], params, [len(x)], constants)


def gated(shader, kind, rows, form):
    x, squares = normal(rows, K), normal(rows, K // ROW_TILE, seed=3) ** 2
    weights = [weight_of(kind, N, K, seed=seed) for seed in (1, 2)]
    (gate, flags, *_), (up, *_) = weights
    y = np.full((rows, N), np.nan, np.float32)
    flags |= abi.GATED | abi.NORMED
    run(shader, kind, x, form, 8, flags, [*gate, None, y, squares, *up, None])
    products = [reference.linear(x, v, weight_magnitude=m) for *_, v, m in weights]
    parts = (reference_fused.normed(product, squares, K, EPS) for product in products)
    reference.assert_close(y, reference_fused.gated(*parts, "silu"))


def added(shader, kind, rows, form):
    x, hidden, norm = normal(rows, K), normal(rows, N, seed=4), normal(N, seed=5)
    arrays, flags, values, magnitude = weight_of(kind, N, K)
    product = reference.linear(x, values, weight_magnitude=magnitude)
    expected = reference_fused.added(product, hidden, norm, SCALE)
    y, sums = np.full((rows, N), np.nan, np.float32), np.full((rows, 3), np.nan, np.float32)
    bindings = [*arrays, None, y, None, hidden, norm, sums, None]
    run(shader, kind, x, form, 4, flags | abi.RESIDUAL, bindings)
    for got, want in zip((hidden, y, sums), expected, strict=True):
        reference.assert_close(got, want)
