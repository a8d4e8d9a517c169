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


def delta_rule(x, gates, states, sequences, delta):
    """(Expected y [rows, value_heads * value_dim], states after it).

    Args:
        x: [rows, row_floats]; gates: a, b [rows, value_heads], decay, shift [value_heads].
        states: [num_slots, value_heads, key_dim, value_dim].
        sequences: as causal_conv's.
        delta: ops_state.Delta.
    """
    x, states, *gates = (np.asarray(array, np.float64) for array in (x, states, *gates))
    a, b, decay, shift = gates
    heads, dim = delta.value_heads, delta.key_dim
    keys = delta.key_heads * dim
    of_head = np.arange(heads) // (heads // delta.key_heads)
    if delta.tiled:
        of_head = np.arange(heads) % delta.key_heads
    query, key = (x[:, i * keys : (i + 1) * keys].reshape(len(x), -1, dim) for i in (0, 1))
    query, key = (
        (part / np.sqrt((part**2).sum(-1, keepdims=True) + 1e-6))[:, of_head]
        for part in (query, key)
    )
    query = query / np.sqrt(dim)
    value = x[:, 2 * keys :].reshape(len(x), heads, delta.value_dim)
    rule = -np.exp(decay) if delta.is_log else decay
    keep, rate = np.exp(rule * np.log1p(np.exp(a + shift))), sigmoid(b)
    states, y = states.copy(), np.full(value.shape, np.nan)
    magnitude = np.full_like(y, np.nan)
    for runs in sequences:
        for first, count, source, slot in runs:
            state = np.zeros(states.shape[1:]) if source < 0 else states[source]
            size = np.abs(state)
            for t in range(first, first + count):
                kept = keep[t][:, None, None] * state
                change = value[t] - np.einsum("hkv,hk->hv", kept, key[t])
                state = kept + key[t][:, :, None] * (rate[t][:, None] * change)[:, None, :]
                size = keep[t][:, None, None] * size + np.abs(state)
                y[t] = np.einsum("hkv,hk->hv", state, query[t])
                magnitude[t] = np.einsum("hkv,hk->hv", size, np.abs(query[t]))
            states[slot] = state
    return Expected(y.reshape(len(x), -1), magnitude.reshape(len(x), -1)), states


def take_columns(x, columns, y, y_start):
    """y with the pieces of each row of x from y_start on; columns: ops_state.Columns."""
    y = y.copy()
    for piece in range(columns.pieces):
        at, to = columns.start + piece * columns.stride, y_start + piece * columns.width
        y[:, to : to + columns.width] = x[:, at : at + columns.width]
    return y
