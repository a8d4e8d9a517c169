"""What llama.cpp and MLX make of a matrix, for quality.py: by llama.cpp's own library, and by the
formulas that MLX publishes. All give float32 weights as they are read back. Knows no models.
"""

import ctypes
import math
from pathlib import Path

import numpy as np

from marlin.weights import ggml_types
from marlin.weights.block_types import BLOCK_TYPES
from marlin.weights.rounding import E2M1

GGML_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "Q4_K": 12, "IQ4_NL": 20, "IQ4_XS": 23}
# A row of K types is whole blocks of this many values; shorter ones are joined.
SUPER_BLOCK = 256


def mlx_affine(weights, group_size):
    """MLX's affine mode of 4 bits, scales and biases in float16."""
    groups = weights.reshape(-1, group_size)
    low, high = groups.min(axis=1), groups.max(axis=1)
    from_low = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / 15, 1e-7)
    scale = np.where(from_low, scale, -scale)
    edge = np.where(from_low, low, high)
    steps = np.rint(edge / scale)
    scale = np.where(steps != 0, edge / np.where(steps != 0, steps, 1), scale)
    bias = np.where(steps != 0, edge, 0)
    codes = np.clip(np.rint((groups - bias[:, None]) / scale[:, None]), 0, 15)
    scale, bias = (part.astype(np.float16).astype(np.float32)[:, None] for part in (scale, bias))
    return (codes * scale + bias).reshape(weights.shape)


def mlx_fp4(weights, group_size, round_scale):
    """MLX's mxfp4 and nvfp4: the largest magnitude over 6, rounded, is a group's scale."""
    groups = weights.reshape(-1, group_size)
    scale = round_scale(np.abs(groups).max(axis=1) / np.float32(6))[:, None]
    ratio = np.abs(groups) / np.where(scale > 0, scale, 1)
    middles = (E2M1[1:] + E2M1[:-1]) / 2
    return (np.sign(groups) * E2M1[np.searchsorted(middles, ratio)] * scale).reshape(weights.shape)


def e8m0(scale):
    return np.exp2(np.rint(np.log2(np.maximum(scale, 2.0**-126)))).astype(np.float32)


def e4m3(scale):
    exponent = np.floor(np.log2(np.maximum(scale, 2.0**-6)))
    step = np.exp2(exponent - 3)
    return np.minimum(np.rint(scale / step) * step, 448).astype(np.float32)


class Ggml:
    """llama.cpp's quantizers, by its library."""

    def __init__(self, folder):
        (path, *_) = sorted(Path(folder).glob("**/libggml-base.*"))
        self._quantize = ctypes.CDLL(str(path)).ggml_quantize_chunk
        self._quantize.restype = ctypes.c_size_t
        numbers = [ctypes.c_int64] * 3
        floats = ctypes.c_void_p
        self._quantize.argtypes = [ctypes.c_int, floats, floats, *numbers, floats]

    def __call__(self, weights, power, name, weighted):
        """weights as they are read back; power: mean squares of inputs."""
        joined = 1
        if BLOCK_TYPES[name].values == SUPER_BLOCK:
            joined = SUPER_BLOCK // math.gcd(SUPER_BLOCK, weights.shape[1])
        rows, columns = weights.shape[0] // joined, weights.shape[1] * joined
        source = np.ascontiguousarray(weights, np.float32)
        block = BLOCK_TYPES[name]
        out = np.zeros(rows * columns // block.values * block.bytes, np.uint8)
        importance = np.tile(power, joined).astype(np.float32) if weighted else None
        address = None if importance is None else importance.ctypes.data
        sizes = 0, rows, columns
        self._quantize(GGML_TYPES[name], source.ctypes.data, out.ctypes.data, *sizes, address)
        return ggml_types.dequantize(name, out, (rows, columns)).reshape(weights.shape)
