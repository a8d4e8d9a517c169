"""The oracle of linear layers that are fused with what comes before and after them: the norm of x,
a gate, a residual. As reference.py.
"""

import numpy as np
import reference
from reference import Expected

# The steepest that SiLU and GELU are: an error of their argument grows by no more.
SLOPE = 1.13


def squares_of(hidden):
    """float64 [rows, ceil(dim / 16)]: sums of 16 columns' squares."""
    rows, dim = hidden.shape
    wide = np.zeros((rows, -(-dim // 16) * 16))
    wide[:, :dim] = hidden
    return np.square(wide).reshape(rows, -1, 16).sum(axis=2)


def normed(product, squares, k, eps, bias=None):
    """A product of a row that was not divided by its size, divided; then the bias."""
    inverse = 1 / np.sqrt(squares.astype(np.float64).sum(axis=1, keepdims=True) / k + eps)
    value, magnitude = product.value * inverse, product.magnitude * inverse
    if bias is not None:
        value, magnitude = value + bias, magnitude + np.abs(bias)
    return Expected(value, magnitude)


def gated(gate, up, activation):
    """activation(gate) * up of two Expected; "silu" or "gelu"."""
    function = {"silu": reference.silu_mul, "gelu": reference.gelu_mul}[activation]
    active = function(gate.value, np.ones_like(gate.value)).value
    sizes = SLOPE * gate.magnitude * np.abs(up.value) + np.abs(active) * up.magnitude
    return Expected(active * up.value, sizes)


def added(product, residual, norm, scale):
    """(hidden, hidden * norm, the sums of its squares) once a product has been added to it."""
    hidden = Expected(
        residual + product.value * scale, np.abs(residual) + product.magnitude * abs(scale)
    )
    scaled = Expected(hidden.value * norm, hidden.magnitude * np.abs(norm))
    sizes = squares_of(hidden.value) + 2 * squares_of(
        np.sqrt(np.abs(hidden.value) * hidden.magnitude)
    )
    return hidden, scaled, Expected(squares_of(hidden.value), sizes)
