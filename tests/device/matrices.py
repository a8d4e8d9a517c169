"""Random weights of every kind, and activations that every device quantizes alike."""

import numpy as np
import reference

from marlin.weights import formats
from marlin.weights.kinds import KINDS, MUST
from marlin.weights.row_scales import RowScales

DENSE = ("f32", "f16", "bf16")
# Packed kinds of floats, for which no device quantizes activations.
FLOATS = ("fp8", "nf4")


def activations(rows, k, seed=0):
    """float32 [rows, k] whose groups have one clearly best quantization step, so that no device may
    choose another; their sizes differ by row and group."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, k // 32, 32)) * np.exp2(rng.integers(-8, 8, (rows, k // 32, 1)))
    x = x.astype(np.float32)
    while not (settled := reference.quantize_activations(x.reshape(rows, k)).settled).all():
        x[~settled] = rng.standard_normal((np.sum(~settled), 32))
    return x.reshape(rows, k)


def packed_weight(kind, n, k, group_size, scale_dtype=np.float16, with_bias=None, seed=1):
    """PackedWeight of random codes, scales of both signs and, where the kind has them, biases;
    scale_dtype "block": those of formats.BlockScales; "rows": of RowScales; uint8: exponents."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << KINDS[kind].bits, (n, k)).astype(np.uint8)
    factors = [_scales_of(rng, scale_dtype, n, k, group_size, size) for size in (1, 4)]
    with_bias = KINDS[kind].bias == MUST if with_bias is None else with_bias
    return formats.pack(kind, codes, factors[0], factors[1] if with_bias else None)


def _scales_of(rng, scale_dtype, n, k, group_size, size):
    values = rng.standard_normal((n, k // group_size)) * size
    if scale_dtype == np.uint8:
        return rng.integers(118, 130, values.shape).astype(np.uint8)
    if scale_dtype == "rows":
        steps = reference.bfloat16(rng.standard_normal(n).astype(np.float32) * size / 32)[0]
        return RowScales(steps, np.clip(values * 32 / size, -127, 127).astype(np.int8))
    if scale_dtype != "block":
        return values.astype(scale_dtype)
    steps = (rng.standard_normal((n, k // 256)) * size / 32).astype(np.float16)
    return formats.BlockScales(steps, np.clip(values * 32 / size, -128, 127).astype(np.int8))


def dense_weight(kind, n, k, seed=1):
    """((kind, stored array), the float32 values it stands for)."""
    values = np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)
    if kind == "bf16":
        values, stored = reference.bfloat16(values)
    else:
        stored = values.astype({"f32": np.float32, "f16": np.float16}[kind])
        values = stored.astype(np.float32)
    return (kind, stored), values


def bias_of(n):
    """float32 [n], an output bias."""
    return np.random.default_rng(n).standard_normal(n).astype(np.float32)
