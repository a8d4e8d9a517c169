"""The packed weight formats fp4, int4 and int8: their byte layout, and quantizers that fill them.

Owns what docs/formats.md specifies; refuses to know files, names and devices. A packed weight
stands for a matrix W [N, K] of N output rows. Rows are stored in tiles of ROW_TILE, interleaved so
that one load takes the same columns of every row of a tile; N is padded with zero codes and scales.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from marlin.weights.kinds import BLOCK_COLUMNS, GROUP_SIZES, KINDS, MUST, PACKED_KINDS, ROW_TILE

FORMATS = PACKED_KINDS
# Magnitudes of fp4's codes 0-7 (OCP Microscaling Formats v1.0, E2M1); bit 3 is the sign.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
FP4_CODE_OF_DOUBLED = np.searchsorted(2 * E2M1, np.arange(13)).astype(np.uint8)
MAX_HALF = 65504.0
TINY_HALF = 2.0**-24
# Below float32's normal range a scale has no finite inverse; such weights round to zero.
TINY_FLOAT = 2.0**-126

# Divisors of a group's largest magnitude tried as its fp4 scale, before least squares. 6 puts the
# largest weight on the largest code (plain absmax); smaller ones place the bulk of the group
# better, larger ones clip.
FP4_DIVISORS = (6.0, 4.0, 4.6, 5.2, 6.8)
# Shares of a group's range tried as its int4 range, before least squares; 1 is plain min/max.
INT4_SHARES = (1.0, 0.94, 0.88, 0.82)
# Values searched at a time, so that the search's temporaries stay in a core's second-level cache.
CHUNK_VALUES = 1 << 16


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """One packed matrix. With T = ceil(N / 16) and G = group_size:

    Attributes:
        format: "fp4", "int4" or "int8".
        shape: (N, K).
        group_size: columns that share a scale.
        codes: uint32 [T, K/8, 16] of 4-bit codes or uint8 [T, K/4, 16, 4] of 8-bit ones.
        scales: float16 or float32 [T, K/G, 16], or block_scales(G) [T, K/256].
        biases: like scales, or None; kinds.py says which formats have them.
    """

    format: str
    shape: tuple[int, int]
    group_size: int
    codes: np.ndarray
    scales: np.ndarray
    biases: np.ndarray | None

    @property
    def scale_bytes(self) -> int:
        """As kinds.Form has it."""
        return 1 if self.scales.dtype.names else self.scales.dtype.itemsize


class BlockScales(NamedTuple):
    """Scales or biases of blocks: exact products of float16 steps [N, K/256] and int8 numbers
    [N, K/G]."""

    steps: np.ndarray
    numbers: np.ndarray


def block_scales(group_size):
    """The dtype of the scales of a block of a tile."""
    numbers = BLOCK_COLUMNS // group_size, ROW_TILE
    return np.dtype([("steps", "<f2", ROW_TILE), ("numbers", "i1", numbers)])


def pack(format, codes, scales, biases=None):
    """Interleave row-major codes and scales.

    Args:
        format: one of FORMATS.
        codes: uint8 [N, K]: nibbles, or for int8 the value + 128. K is a multiple of 32.
        scales: float16 or float32 [N, K/G], or BlockScales.
        biases: like scales, or None.

    Returns:
        PackedWeight.
    """
    num_rows, num_columns = codes.shape
    num_groups = (scales.numbers if isinstance(scales, BlockScales) else scales).shape[1]
    group_size = num_columns // num_groups
    assert num_columns % 32 == 0 and group_size * num_groups == num_columns, num_groups
    return PackedWeight(
        format,
        (num_rows, num_columns),
        group_size,
        _pack_bytes(codes) if KINDS[format].bits == 8 else _pack_nibbles(codes),
        _tile_groups(scales),
        None if biases is None else _tile_groups(biases),
    )


def unpack(packed):
    """Undo pack(): (codes uint8 [N, K], scales [N, K/G], biases [N, K/G] or None); BlockScales
    as float32."""
    num_rows, num_columns = packed.shape
    words = np.ascontiguousarray(packed.codes).view(np.uint8)
    words = words.reshape(len(packed.codes), -1, ROW_TILE, 4)
    if KINDS[packed.format].bits == 4:
        words = np.concatenate([words & 15, words >> 4], axis=3)
    codes = words.transpose(0, 2, 1, 3).reshape(-1, num_columns)[:num_rows]
    biases = None if packed.biases is None else _untile_groups(packed.biases, num_rows)
    return codes, _untile_groups(packed.scales, num_rows), biases


def dequantize(packed):
    """The matrix a PackedWeight stands for, float32 [N, K]."""
    codes, scales, biases = unpack(packed)
    grouped = codes.reshape(codes.shape[0], -1, packed.group_size)
    if packed.format == "fp4":
        values = np.concatenate([E2M1, -E2M1])[grouped]
    elif packed.format == "int8":
        values = grouped.astype(np.float32) - 128
    else:
        values = grouped.astype(np.float32)
    values *= scales.astype(np.float32)[:, :, None]
    if biases is not None:
        values += biases.astype(np.float32)[:, :, None]
    return values.reshape(packed.shape)


def quantize(format, weights, group_size):
    """Quantize with one of FORMATS.

    fp4 and int4 search each group's scale (and bias) for the least squared error. int8 takes plain
    absmax: at 127 steps a search gains nothing worth its time.

    Args:
        weights: float32 [N, K], K a multiple of group_size.
        group_size: one of GROUP_SIZES.

    Returns:
        PackedWeight with float16 scales; no group's error exceeds that of plain absmax (int4:
        min/max).

    Raises:
        ValueError: a weight is NaN, infinite or too large for a float16 scale.
    """
    groups = _grouped(weights, group_size)
    codes = np.empty(groups.shape, np.uint8)
    has_bias = KINDS[format].bias == MUST
    factors = np.empty((1 + has_bias, *groups.shape[:2]), np.float16)
    quantize_groups = {"fp4": _quantize_fp4, "int4": _quantize_int4, "int8": _quantize_int8}[format]
    for chunk in _row_chunks(groups):
        codes[chunk], factors[:, chunk] = quantize_groups(groups[chunk])
    return pack(format, codes.reshape(weights.shape), *factors)


def _quantize_fp4(groups):
    magnitudes = np.abs(groups)
    scale = _search_fp4_scale(magnitudes)
    # Doubled, the levels are integers that index the codes: 0 1 2 3 4 6 8 12.
    doubled = (2 * _fp4_levels(magnitudes, scale)).astype(np.uint8)
    return FP4_CODE_OF_DOUBLED[doubled] | np.signbit(groups) << 3, [scale]


def _quantize_int4(groups):
    affine = _search_int4_affine(groups)
    return _int4_codes(groups, affine), affine


def _quantize_int8(groups):
    scale = _half_scale(np.abs(groups).max(axis=2) / np.float32(127))
    ratio = groups * _inverse(scale)[:, :, None]
    return np.clip(np.rint(ratio), -127, 127) + 128, [scale]


def _pad_rows(rows):
    missing = -rows.shape[0] % ROW_TILE
    return np.pad(rows, ((0, missing), (0, 0))) if missing else rows


def _pack_nibbles(codes):
    words = _pad_rows(codes).reshape(-1, ROW_TILE, codes.shape[1] // 8, 8)
    packed = words[..., :4] | words[..., 4:] << 4
    return np.ascontiguousarray(packed.transpose(0, 2, 1, 3)).view("<u4")[..., 0]


def _pack_bytes(codes):
    words = _pad_rows(codes).reshape(-1, ROW_TILE, codes.shape[1] // 4, 4)
    return np.ascontiguousarray(words.transpose(0, 2, 1, 3))


def _tile_groups(values):
    if isinstance(values, BlockScales):
        steps, numbers = map(_tile_groups, values)
        packed = np.empty(
            steps.shape[:2], block_scales(BLOCK_COLUMNS * steps.shape[1] // numbers.shape[1])
        )
        packed["steps"], packed["numbers"] = steps, numbers.reshape(packed["numbers"].shape)
        return packed
    tiles = _pad_rows(values).reshape(-1, ROW_TILE, values.shape[1])
    return np.ascontiguousarray(tiles.transpose(0, 2, 1))


def _untile_groups(tiles, num_rows):
    if tiles.dtype.names:
        products = tiles["steps"].astype(np.float32)[:, :, None] * tiles["numbers"]
        tiles = products.reshape(len(tiles), -1, ROW_TILE)
    return tiles.transpose(0, 2, 1).reshape(-1, tiles.shape[1])[:num_rows]


def _grouped(weights, group_size):
    num_rows, num_columns = weights.shape
    assert group_size in GROUP_SIZES and num_columns % group_size == 0, (weights.shape, group_size)
    weights = np.ascontiguousarray(weights, np.float32)
    if not np.isfinite(weights).all():
        row, column = np.argwhere(~np.isfinite(weights))[0]
        raise ValueError(f"weight [{row}, {column}] is {weights[row, column]}")
    if weights.size and (largest := np.abs(weights).max()) > MAX_HALF:
        raise ValueError(f"a weight of magnitude {largest:g} is over the limit of {MAX_HALF:g}")
    return weights.reshape(num_rows, num_columns // group_size, group_size)


def _row_chunks(groups):
    rows = max(1, CHUNK_VALUES // max(1, groups[0].size)) if len(groups) else 1
    return [slice(start, start + rows) for start in range(0, len(groups), rows)]


def _half_scale(scale):
    """Round scales to float16's values; one that is not 0 does not become 0."""
    rounded = scale.astype(np.float16).astype(np.float32)
    return np.where((rounded == 0) & (scale > 0), np.float32(TINY_HALF), rounded)


def _half_affine(scale, bias):
    bias = np.clip(bias, -MAX_HALF, MAX_HALF).astype(np.float16).astype(np.float32)
    return np.stack([_half_scale(scale), bias])


def _inverse(scale):
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale >= TINY_FLOAT)


def _dot(left, right):
    return np.einsum("ngk,ngk->ng", left, right)


def _search_fp4_scale(magnitudes):
    """float32 [n, groups] scales, exact in float16, for magnitudes [n, groups, group_size]."""
    largest = magnitudes.max(axis=2)
    fitted, best_gain = np.zeros_like(largest), np.zeros_like(largest)
    for divisor in FP4_DIVISORS:
        levels = _fp4_levels(magnitudes, largest / np.float32(divisor))
        # Levels fixed, the best scale is a.l / l.l; it lowers the squared error by (a.l)^2 / l.l.
        cross, power = _dot(magnitudes, levels), _dot(levels, levels)
        scale = cross / np.maximum(power, np.float32(TINY_HALF))
        better = scale * cross > best_gain
        fitted = np.where(better, scale, fitted)
        best_gain = np.where(better, scale * cross, best_gain)
    plain, fitted = _half_scale(largest / np.float32(6)), _half_scale(fitted)
    return np.where(_fp4_error(magnitudes, fitted) < _fp4_error(magnitudes, plain), fitted, plain)


def _fp4_levels(magnitudes, scale):
    """The nearest E2M1 magnitude of each weight over its scale, as float32."""
    ratio = magnitudes * _inverse(scale)[:, :, None]
    np.minimum(ratio, 6, out=ratio)
    # From 1 up, E2M1 keeps one mantissa bit; below 1 its values are 0.5 apart.
    rounded = ((ratio.view(np.uint32) + (1 << 21)) & 0xFFC00000).view(np.float32)
    return np.where(ratio < 1, np.rint(ratio + ratio) * np.float32(0.5), rounded)


def _fp4_error(magnitudes, scale):
    difference = _fp4_levels(magnitudes, scale) * scale[:, :, None] - magnitudes
    return _dot(difference, difference)


def _search_int4_affine(groups):
    """float32 [2, n, groups] scales and biases, exact in float16, for [n, groups, group_size]."""
    low, high, mean = groups.min(axis=2), groups.max(axis=2), groups.mean(axis=2)
    span, middle = high - low, low / 2 + high / 2
    fitted, best_gain = np.stack([span / 15, low]), np.zeros_like(low)
    for share in INT4_SHARES:
        first = np.stack([span * np.float32(share / 15), middle - span * np.float32(share / 2)])
        codes = _int4_codes(groups, first)
        # Least squares line through (code, weight); it lowers the squared error by slope * cross.
        mean_code = codes.mean(axis=2)
        codes -= mean_code[:, :, None]
        cross, power = _dot(codes, groups), _dot(codes, codes)
        slope = cross / np.maximum(power, np.float32(TINY_HALF))
        better = slope * cross > best_gain
        fitted = np.where(better, np.stack([slope, mean - slope * mean_code]), fitted)
        best_gain = np.where(better, slope * cross, best_gain)
    plain, fitted = _half_affine(span / 15, low), _half_affine(*fitted)
    return np.where(_int4_error(groups, fitted) < _int4_error(groups, plain), fitted, plain)


def _int4_codes(groups, affine):
    scale, bias = affine
    codes = groups - bias[:, :, None]
    codes *= _inverse(scale)[:, :, None]
    np.rint(codes, out=codes)
    return np.clip(codes, 0, 15, out=codes)


def _int4_error(groups, affine):
    scale, bias = affine[:, :, :, None]
    difference = _int4_codes(groups, affine) * scale + bias - groups
    return _dot(difference, difference)
