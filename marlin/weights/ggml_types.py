"""What the bytes of each GGUF tensor type mean, as plain numpy: the oracle of the native repackers.

Owns block layouts; refuses to know files and names. Speed is no concern here beyond being
vectorised. Source: ggml's block structures (ggml-common.h), described in docs/formats.md.

A block layout is a structured dtype; a decoder maps blocks [num_blocks] of it to
float32 [num_blocks, elements a block].
"""

from collections.abc import Callable

import numpy as np

from marlin.weights.block_types import BLOCK_TYPES
from marlin.weights.rounding import E2M1, IQ4

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
NVFP4 = np.dtype([("es", "u1", 4), ("qs", "u1", (4, 8))])
IQ4_NL = np.dtype([("d", HALF), ("qs", "u1", 16)])
IQ4_XS = np.dtype([("d", HALF), ("high", "<u2"), ("low", "u1", 4), ("qs", "u1", (8, 16))])
Q1_0 = np.dtype([("d", HALF), ("qs", "u1", 16)])
Q2_0 = np.dtype([("d", HALF), ("qs", "u1", 16)])
Q2_K = np.dtype([("scales", "u1", 16), ("qs", "u1", (2, 32)), ("d", HALF), ("dmin", HALF)])
Q3_K = np.dtype([("hmask", "u1", 32), ("qs", "u1", (2, 32)), ("scales", "u1", 12), ("d", HALF)])
TQ1_0 = np.dtype([("qs", "u1", 48), ("qh", "u1", 4), ("d", HALF)])
TQ2_0 = np.dtype([("qs", "u1", (2, 32)), ("d", HALF)])
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


def _nvfp4(blocks):
    # Four groups of 16 with a scale each: E4M3 whose sign counts for nothing; 0x7F is 0.
    bits = blocks["es"].astype(np.int32)
    exponent, mantissa = bits >> 3 & 15, (bits & 7).astype(np.float32)
    scales = np.where(exponent == 0, mantissa / 512, np.ldexp(1 + mantissa / 8, exponent - 7))
    scales = np.where(bits == 127, 0, scales).astype(np.float32)[:, :, None]
    codes = np.concatenate([blocks["qs"] & 15, blocks["qs"] >> 4], axis=2)
    return (scales * np.concatenate([E2M1, -E2M1])[codes]).reshape(-1, 64)


def _iq4_nl(blocks):
    return _f32(blocks["d"]) * IQ4[_nibbles(blocks["qs"])]


def _iq4_xs(blocks):
    groups = np.arange(8)
    low = blocks["low"][:, groups // 2] >> (4 * (groups % 2)).astype(np.uint8) & 15
    high = blocks["high"][:, None] >> (2 * groups).astype(np.uint16) & 3
    scales = _f32(blocks["d"]) * ((low | high << 4).astype(np.float32) - 32)
    codes = np.concatenate([blocks["qs"] & 15, blocks["qs"] >> 4], axis=2)
    return (scales[:, :, None] * IQ4[codes]).reshape(-1, 256)


def _two_bits(qs):
    """[num_blocks, 2, 32] to codes [num_blocks, 256]: of each half the bits 0-1 of all bytes, then
    2-3, and so on."""
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    return (qs[:, :, None, :] >> shifts & 3).reshape(-1, 256)


def _q2_k(blocks):
    codes = _two_bits(blocks["qs"]).reshape(-1, 16, 16)
    scales = _f32(blocks["d"]) * (blocks["scales"] & 15)
    minima = _f32(blocks["dmin"]) * (blocks["scales"] >> 4)
    return (scales[:, :, None] * codes - minima[:, :, None]).reshape(-1, 256)


def _q3_k(blocks):
    # Scales are six bits: the low four of 0-7 and of 8-15 in the nibbles of bytes 0-7, the upper
    # two of all in bytes 8-11. A bit of hmask is a code's third.
    packed, groups = blocks["scales"], np.arange(16)
    low = packed[:, groups % 8] >> (groups // 8 * 4).astype(np.uint8) & 15
    high = packed[:, 8 + groups % 4] >> (groups // 4 * 2).astype(np.uint8) & 3
    scales = _f32(blocks["d"]) * ((low | high << 4).astype(np.float32) - 32)
    third = blocks["hmask"][:, None, :] >> np.arange(8, dtype=np.uint8)[None, :, None] & 1
    codes = (_two_bits(blocks["qs"]) | third.reshape(-1, 256) << 2).astype(np.float32) - 4
    return (scales[:, :, None] * codes.reshape(-1, 16, 16)).reshape(-1, 256)


def _tq1_0(blocks):
    # Five digits of base 3 a byte, as a fraction of 256; four in each byte of qh.
    runs = (blocks["qs"][:, :32], 5), (blocks["qs"][:, 32:], 5), (blocks["qh"], 4)
    powers = np.array([1, 3, 9, 27, 81], np.uint8)[None, :, None]
    shifted = [(run[:, None, :] * powers[:, :n]).reshape(len(run), -1) for run, n in runs]
    digits = np.concatenate(shifted, axis=1).astype(np.uint16) * 3 >> 8
    return _f32(blocks["d"]) * (digits.astype(np.float32) - 1)


def _tq2_0(blocks):
    return _f32(blocks["d"]) * (_two_bits(blocks["qs"]).astype(np.float32) - 1)


def _q1_0(blocks):
    bits = np.unpackbits(blocks["qs"], axis=1, bitorder="little").astype(np.float32)
    return _f32(blocks["d"]) * (2 * bits - 1)


def _q2_0(blocks):
    codes = blocks["qs"][:, :, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    return _f32(blocks["d"]) * (codes.reshape(-1, 64).astype(np.float32) - 1)


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
    "NVFP4": (NVFP4, _nvfp4),
    "IQ4_NL": (IQ4_NL, _iq4_nl),
    "IQ4_XS": (IQ4_XS, _iq4_xs),
    "Q1_0": (Q1_0, _q1_0),
    "Q2_0": (Q2_0, _q2_0),
    "Q2_K": (Q2_K, _q2_k),
    "Q3_K": (Q3_K, _q3_k),
    "TQ1_0": (TQ1_0, _tq1_0),
    "TQ2_0": (TQ2_0, _tq2_0),
}
