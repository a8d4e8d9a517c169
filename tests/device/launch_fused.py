"""Runs one linear layer fused with a norm, a gate or a residual, as launch.py does."""

import numpy as np
from launch import Memory, run, step

from marlin.device import ops_fused


def fused(device, x, weight, bias=None, normed=None, residual=None):
    """y float32 [rows, n] of a layer with the norm of x and a residual; with a residual
    (y, hidden, the sums of its squares).

    Args:
        normed: (squares [rows, k / 16], eps).
        residual: (hidden [rows, n], norm [n], scale).
    """
    with Memory(device) as memory:
        w, x_view = memory.weight(weight), memory.put(x)
        b, y = None if bias is None else memory.put(bias), memory.floats(len(x), w.n)
        before = normed and ops_fused.Normed(memory.put(normed[0]), normed[1])
        shape, after = (len(x), -(-w.n // 16)), None
        if residual is not None:
            hidden, norm = (memory.put(array) for array in residual[:2])
            after = ops_fused.Residual(hidden, norm, memory.floats(*shape), residual[2])
        run(
            device,
            lambda r: ops_fused.linear(r, x_view, w, y, b, "", before, after),
            step(tokens=len(x)),
        )
        found = memory.read(y, np.float32, (len(x), w.n))
        if after is None:
            return found
        rest = memory.read(after.hidden, np.float32, found.shape)
        return found, rest, memory.read(after.squares, np.float32, shape)


def gated(device, x, weights, activation, biases=(None, None), normed=None):
    """float32 [rows, n]; normed as fused()'s."""
    with Memory(device) as memory:
        w, x_view = [memory.weight(weight) for weight in weights], memory.put(x)
        b = [None if bias is None else memory.put(bias) for bias in biases]
        y = memory.floats(len(x), w[0].n)
        before = normed and ops_fused.Normed(memory.put(normed[0]), normed[1])
        run(
            device,
            lambda r: ops_fused.gated(r, x_view, w, y, b, activation, "", before),
            step(tokens=len(x)),
        )
        return memory.read(y, np.float32, (len(x), w[0].n))
