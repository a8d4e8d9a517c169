"""The oracle of layers that keep a state of a sequence: what their kernels compute, in float64."""

import numpy as np
from reference import Expected


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def causal_conv(x, weight, bias, states, sequences, gated=False, silu=False):
    """(Expected y [rows, dim], states after it).

    Args:
        x: [rows, dim], or [rows, 3 * dim] if gated.
        weight: [dim, taps].
        states: [num_slots, taps - 1, dim].
        sequences: of each its runs, (first row, rows, slot before, slot after).
    """
    x, weight, states = (np.asarray(a, np.float64) for a in (x, weight, states))
    dim, taps = weight.shape
    states, y = states.copy(), np.full((len(x), dim), np.nan)
    magnitude = np.full_like(y, np.nan)
    v = x[:, :dim] * x[:, 2 * dim : 3 * dim] if gated else x[:, :dim]
    for runs in sequences:
        for first, count, source, slot in runs:
            before = np.zeros((taps - 1, dim)) if source < 0 else states[source]
            rows = np.concatenate([before, v[first : first + count]])
            for t in range(count):
                terms = rows[t : t + taps] * weight.T
                total, size = terms.sum(0), np.abs(terms).sum(0)
                if bias is not None:
                    total, size = total + bias, size + np.abs(bias)
                if silu:
                    total = total * sigmoid(total)
                if gated:
                    gate = x[first + t, dim : 2 * dim]
                    total, size = total * gate, size * np.abs(gate)
                y[first + t], magnitude[first + t] = total, size
            states[slot] = rows[count:]
    return Expected(y, magnitude), states
