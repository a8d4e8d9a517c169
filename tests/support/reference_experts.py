"""The oracle of a mixture of experts: what tokens choose, its weights, and gpt-oss's gate."""

import numpy as np
from reference import Expected


def swiglu_mul(gate, up):
    """g * sigmoid(1.702 g) * (u + 1), with g at most 7 and u within 7 of 0: gpt-oss's."""
    gate = np.minimum(gate.astype(np.float64), 7)
    up = np.clip(up.astype(np.float64), -7, 7) + 1
    value = gate / (1 + np.exp(-1.702 * gate)) * up
    # A rounding of the exponent is one of the exponential, times the argument.
    return Expected(value, np.abs(value) * np.maximum(1, np.abs(1.702 * gate)) + np.abs(gate))


def route(logits, gating, num_slots, normalizes, scale=1, epsilon=0, bias=None, groups=(1, 1),
          factors=None):  # fmt: skip
    """(int64 [rows, num_slots] experts, the best first; float64 weights of the same shape).

    Args:
        logits: [rows, num_experts].
        gating: "softmax" of all, "sigmoid", or "chosen": softmax of the chosen alone.
        bias: [num_experts], added to what is ranked.
        factors: [num_experts], of what is chosen.
        groups: (how many there are, how many are kept: those whose two best add up to most).
    """
    logits = logits.astype(np.float64)
    scores = {"softmax": softmax, "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "chosen": np.array}
    scores = scores[gating](logits)
    ranks = scores if bias is None else scores + bias
    if groups[0] > 1:
        parts = ranks.reshape(len(ranks), groups[0], -1)
        best = np.sort(parts, axis=2)[:, :, -2:].sum(axis=2)
        kept = np.argsort(-best, axis=1, kind="stable")[:, : groups[1]]
        allowed = np.zeros(best.shape, bool)
        np.put_along_axis(allowed, kept, True, axis=1)
        ranks = np.where(allowed[:, :, None], parts, -np.inf).reshape(ranks.shape)
    ids = np.argsort(-ranks, axis=1, kind="stable")[:, :num_slots]
    weights = np.take_along_axis(scores, ids, axis=1)
    if gating == "chosen":
        weights = softmax(weights)
    if normalizes:
        weights = weights / (weights.sum(axis=1, keepdims=True) + epsilon)
    return ids, weights * scale * (1 if factors is None else factors[ids])


def softmax(x):
    """Shares of 1 along the last axis."""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
