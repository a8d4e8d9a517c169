"""What the bytes of each GGUF tensor type mean, as plain numpy: the oracle of the native repackers.

Owns block layouts; refuses to know files and names. Speed is no concern here beyond being
vectorised. Source: ggml's block structures (ggml-common.h), described in docs/formats.md.

A block layout is a structured dtype; a decoder maps blocks [num_blocks] of it to
float32 [num_blocks, elements a block].
"""

from collections.abc import Callable

import numpy as np

from marlin.weights.block_types import BLOCK_TYPES
from marlin.weights.formats import E2M1

HALF = np.dtype("<f2")
Q4_0 = np.dtype([("d", HALF), ("qs", "u1", 16)])
Q4_1 = np.dtype([("d", HALF), ("m", HALF), ("qs", "u1", 16)])
Q5_0 = np.dtype([("d", HALF), ("qh", "u1", 4), ("qs", "u1", 16)])
Q5_1 = np.dtype([("d", HALF), ("m", HALF), ("qh", "u1", 4), ("qs", "u1", 16)])
Q8_0 = np.dtype([("d", HALF), ("qs", "i1", 32)])
Q4_K = np.dtype([("d", HALF), ("dmin", HALF), ("scales", "u1", 12), ("qs", "u1", 128)])
Q5_K = np.dtype(
    [("d", HALF), ("dmin", HALF), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)]
)
MXFP4 = np.dtype([("e", "u1"), ("qs", "u1", 16)])
Q6_K = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", HALF)])


def dequantize(dtype, raw, shape):
    """Decode a tensor's bytes.

    Args:
        dtype: a key of DECODERS ("Q4_K", "BF16", …).
        raw: uint8 [num_bytes], the tensor or whole rows of it.
        shape: outermost first.

    Returns:
        float32 [*shape].

    Raises:
        ValueError: dtype has no decoder, or raw is not as long as shape needs.
    """
    if dtype not in DECODERS:
        raise ValueError(f"{dtype} cannot be decoded; {', '.join(DECODERS)} can")
    layout, decode = DECODERS[dtype]
    assert layout.itemsize == BLOCK_TYPES[dtype].bytes, dtype
    raw = np.ascontiguousarray(raw, np.uint8).reshape(-1)
    num_values = raw.size // layout.itemsize * BLOCK_TYPES[dtype].values
    if raw.size % layout.itemsize or num_values != np.prod(shape, dtype=object):
        raise ValueError(f"{raw.size} bytes of {dtype} are not a tensor of shape {list(shape)}")
    return decode(raw.view(layout)).reshape(shape)


def _plain(values):
    return values.astype(np.float32)


def _bfloat16(words):
    return (words.astype(np.uint32) << 16).view(np.float32)


def _f32(column):
    """[num_blocks] float16 as a float32 column [num_blocks, 1]."""
    return column.astype(np.float32)[:, None]


def _nibbles(qs):
    """[num_blocks, n] bytes to [num_blocks, 2n]: all low nibbles, then all high ones."""
    return np.concatenate([qs & 15, qs >> 4], axis=1)


def _fifth_bits(qh):
    """[num_blocks, 4] bytes to the value's bit 4, [num_blocks, 32] of 0 or 16."""
    return np.unpackbits(qh, axis=1, bitorder="little") << 4


def _q4_0(blocks):
    return _f32(blocks["d"]) * (_nibbles(blocks["qs"]).astype(np.float32) - 8)


def _q4_1(blocks):
    return _f32(blocks["d"]) * _nibbles(blocks["qs"]) + _f32(blocks["m"])


def _q5_0(blocks):
    codes = _nibbles(blocks["qs"]) | _fifth_bits(blocks["qh"])
    return _f32(blocks["d"]) * (codes.astype(np.float32) - 16)


def _q5_1(blocks):
    codes = _nibbles(blocks["qs"]) | _fifth_bits(blocks["qh"])
    return _f32(blocks["d"]) * codes + _f32(blocks["m"])


def _q8_0(blocks):
    return _f32(blocks["d"]) * blocks["qs"]


def _k_scales(blocks):
    """The eight 6-bit scales and minima of a super-block, as float32 factors [num_blocks, 8, 1].

    Bytes 0-3 and 4-7 hold the low six bits of scales and minima 0-3; bytes 8-11 hold the low four
    bits of both of 4-7, whose upper two bits are the upper two of bytes 0-7.
    """
    packed = blocks["scales"]
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)
    scales = _f32(blocks["d"]) * scales
    minima = _f32(blocks["dmin"]) * minima
    return scales[:, :, None], minima[:, :, None]


def _k_nibbles(qs):
    """[num_blocks, 128] to [num_blocks, 8, 32]: 32 bytes are two groups, low nibbles first."""
    runs = qs.reshape(-1, 4, 1, 32)
    return np.concatenate([runs & 15, runs >> 4], axis=2).reshape(-1, 8, 32)


def _q4_k(blocks):
    scales, minima = _k_scales(blocks)
    return (scales * _k_nibbles(blocks["qs"]) - minima).reshape(-1, 256)


def _q5_k(blocks):
    scales, minima = _k_scales(blocks)
    # Bit g of qh[i] is the fifth bit of value i of group g.
    shifts = np.arange(8, dtype=np.uint8)[None, :, None]
    fifth = (blocks["qh"][:, None, :] >> shifts & 1) << 4
    return (scales * (_k_nibbles(blocks["qs"]) | fifth) - minima).reshape(-1, 256)


def _q6_k(blocks):
    # Each half of 128 values: 64 bytes of low nibbles, 32 bytes of upper bit pairs.
    low = blocks["ql"].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    high = (blocks["qh"].reshape(-1, 2, 1, 32) >> shifts & 3) << 4
    codes = (low | high).reshape(-1, 16, 16).astype(np.float32) - 32
    scales = _f32(blocks["d"]) * blocks["scales"]
    return (scales[:, :, None] * codes).reshape(-1, 256)


def _mxfp4(blocks):
    # E2M1 codes, and a power of two (E8M0) whose largest number is no number.
    with np.errstate(over="ignore"):
        scales = np.ldexp(np.float32(1), blocks["e"].astype(np.int32) - 127)
        scales[blocks["e"] == 255] = np.nan
        return scales[:, None] * np.concatenate([E2M1, -E2M1])[_nibbles(blocks["qs"])]


DECODERS: dict[str, tuple[np.dtype, Callable[[np.ndarray], np.ndarray]]] = {
    "F64": (np.dtype("<f8"), _plain),
    "F32": (np.dtype("<f4"), _plain),
    "F16": (HALF, _plain),
    "BF16": (np.dtype("<u2"), _bfloat16),
    "Q4_0": (Q4_0, _q4_0),
    "Q4_1": (Q4_1, _q4_1),
    "Q5_0": (Q5_0, _q5_0),
    "Q5_1": (Q5_1, _q5_1),
    "Q8_0": (Q8_0, _q8_0),
    "Q4_K": (Q4_K, _q4_k),
    "Q5_K": (Q5_K, _q5_k),
    "Q6_K": (Q6_K, _q6_k),
    "MXFP4": (MXFP4, _mxfp4),
}
