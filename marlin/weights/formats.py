"""The packed weight kinds: their byte layout.

Owns what docs/formats.md specifies of it; refuses to know files, names and devices, and how codes
are chosen (rounding.py, and feedback.py with what a model was seen to do). A packed weight
stands for a matrix W [N, K] of N output rows. Rows are stored in tiles of ROW_TILE, interleaved so
that one load takes the same columns of every row of a tile; N is padded with zero codes and scales.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from marlin.weights.kinds import (
    BLOCK_COLUMNS,
    EXPONENTS,
    GROUP_SIZES,
    KINDS,
    OF_ROWS,
    ROW_TILE,
    native_form,
)
from marlin.weights.rounding import MAX_HALF, decode, encode, fit
from marlin.weights.row_scales import (
    RowScales,
    numbers_of,
    snap,
    steps_of,
    tile_rows,
    untile_rows,
)

# Those that quantize() makes.
FORMATS = ("fp4", "int4", "int8", "iq4", "int5", "int6")
# Values searched at a time, so that the search's temporaries stay in a core's second-level cache.
CHUNK_VALUES = 1 << 16
# By exponent, 2^(e - 127); 255 is no number.
E8M0 = np.append(np.ldexp(np.float32(1), np.arange(255) - 127), np.float32("nan"))


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """One packed matrix. With T = ceil(N / 16) and G = group_size:

    Attributes:
        format: a packed kind of kinds.KINDS.
        shape: (N, K).
        group_size: columns that share a scale.
        codes: uint32 [T, K * bits / 32, 16], or uint8 [T, K/4, 16, 4] of 8-bit ones.
        scales: float16 or float32 [T, K/G, 16], uint8 exponents, block_scales(G) [T, K/256], or
            int8 [T, K/G + 2, 16] as row_scales.py has it.
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
        if self.scales.dtype == np.uint8:
            return EXPONENTS
        if self.scales.dtype == np.int8:
            return OF_ROWS
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
        format: a packed kind.
        codes: uint8 [N, K]: numbers of the kind's bits, or for int8 the value + 128. K is a
            multiple of 32.
        scales: float16, float32 or uint8 exponents [N, K/G], BlockScales or RowScales.
        biases: like scales, or None.

    Returns:
        PackedWeight.
    """
    num_rows, num_columns = codes.shape
    num_groups = (scales.numbers if isinstance(scales, (BlockScales, RowScales)) else scales).shape[
        1
    ]
    group_size = num_columns // num_groups
    assert num_columns % 32 == 0 and group_size * num_groups == num_columns, num_groups
    return PackedWeight(
        format,
        (num_rows, num_columns),
        group_size,
        _pack_bytes(codes) if KINDS[format].bits == 8 else _pack_words(codes, KINDS[format].bits),
        _tile_groups(scales),
        None if biases is None else _tile_groups(biases),
    )


def unpack(packed):
    """Undo pack(): (codes uint8 [N, K], scales [N, K/G], biases [N, K/G] or None); those of
    blocks and rows and exponents as float32."""
    num_rows, num_columns = packed.shape
    words = np.ascontiguousarray(packed.codes).view(np.uint8)
    words = words.reshape(len(packed.codes), -1, ROW_TILE, 4)
    if KINDS[packed.format].bits < 8:
        words = _unpack_words(words, KINDS[packed.format].bits)
    codes = words.transpose(0, 2, 1, 3).reshape(-1, num_columns)[:num_rows]
    biases = None if packed.biases is None else _untile_groups(packed.biases, num_rows)
    return codes, _untile_groups(packed.scales, num_rows), biases


def dequantize(packed):
    """The matrix a PackedWeight stands for, float32 [N, K]."""
    codes, scales, biases = unpack(packed)
    grouped = codes.reshape(codes.shape[0], -1, packed.group_size)
    factors = [scales] if biases is None else [scales, biases]
    values = decode(packed.format, grouped, np.stack(factors).astype(np.float32))
    return values.reshape(packed.shape)


def quantize(format, weights, group_size, importance=None, native=False):
    """Quantize with one of FORMATS.

    All but int8 search each group's scale (and bias) for the least squared error. int8 takes plain
    absmax: at 127 steps a search gains nothing worth its time.

    Args:
        weights: float32 [N, K], K a multiple of group_size.
        group_size: one of GROUP_SIZES.
        importance: float32 [K] over 0, what squared errors of a column count; None: all alike.
        native: whether scales shall be those of kinds.native_form(), else float16.

    Returns:
        PackedWeight; with float16 scales no group's error exceeds that of plain absmax (int4 and
        int5: min/max).

    Raises:
        ValueError: a weight is NaN, infinite or too large for a float16 scale.
    """
    groups = grouped(weights, group_size)
    if importance is not None:
        importance = importance.reshape(-1, group_size)
    codes = np.empty(groups.shape, np.uint8)
    chosen, of_rows = [], native and has_row_scales(format)
    for chunk in _row_chunks(groups) or [slice(0, 0)]:
        factors, steps = fit(format, groups[chunk], importance), None
        if of_rows:
            steps = steps_of(factors)
            factors = snap(format, groups[chunk], importance, factors, steps)
        codes[chunk] = encode(format, groups[chunk], factors)
        chosen.append(stored(factors, steps))
    scales = [joined(parts) for parts in zip(*chosen, strict=True)]
    return pack(format, codes.reshape(weights.shape), *scales)


def quantize_native(format, weights, group_size):
    """quantize() with the scales of a native folder."""
    return quantize(format, weights, group_size, native=True)


def has_row_scales(format):
    """Whether a native folder's scales of a format are of rows."""
    return native_form(format, 0).scale_bytes == OF_ROWS


def stored(factors, steps):
    """What pack() takes for factors [1 or 2, N, K/G] of these steps; without steps as float16."""
    if steps is None:
        return list(factors.astype(np.float16))
    numbers = numbers_of(factors, steps).astype(np.int8)
    return [RowScales(step[:, 0], part) for step, part in zip(steps, numbers, strict=True)]


def joined(parts):
    """Scales of rows one after the other, each as pack() takes them."""
    if isinstance(parts[0], RowScales):
        return RowScales(*map(np.concatenate, zip(*parts, strict=True)))
    return np.concatenate(parts)


def _pad_rows(rows):
    missing = -rows.shape[0] % ROW_TILE
    return np.pad(rows, ((0, missing), (0, 0))) if missing else rows


def _pack_words(codes, bits):
    """Words of nibbles; of more bits, after those of as many columns as a word has room for in what
    lies above nibbles, one of that."""
    above, rows = bits - 4, _pad_rows(codes)
    span = 32 // above if above else 8
    spans = rows.reshape(-1, ROW_TILE, codes.shape[1] // span, span // 4, 4)
    words = np.empty((*spans.shape[:3], span // 8 + (above > 0), 4), np.uint8)
    if above:
        high = spans >> 4
        high <<= (above * np.arange(span // 4, dtype=np.uint8))[:, None]
        words[:, :, :, -1] = np.bitwise_or.reduce(high, axis=3)
        del high
    low = spans & 15
    low[:, :, :, 1::2] <<= 4
    words[:, :, :, : span // 8] = low[:, :, :, 0::2] | low[:, :, :, 1::2]
    del low
    words = words.reshape(len(words), ROW_TILE, -1, 4)
    return np.ascontiguousarray(words.transpose(0, 2, 1, 3)).view("<u4")[..., 0]


def _unpack_words(words, bits):
    """[T, words, 16, 4] as _pack_words() made them, to codes [T, K/4, 16, 4]."""
    above = bits - 4
    span = 32 // above if above else 8
    spans = words.reshape(len(words), -1, span // 8 + (above > 0), ROW_TILE, 4)
    nibbles = spans[:, :, : span // 8]
    codes = np.stack([nibbles & 15, nibbles >> 4], axis=3)
    codes = codes.reshape(len(words), -1, span // 4, ROW_TILE, 4)
    if above:
        places = (above * np.arange(span // 4, dtype=np.uint8))[:, None, None]
        codes = codes | (spans[:, :, -1:] >> places & (1 << above) - 1) << 4
    return codes.reshape(len(words), -1, ROW_TILE, 4)


def _pack_bytes(codes):
    words = _pad_rows(codes).reshape(-1, ROW_TILE, codes.shape[1] // 4, 4)
    return np.ascontiguousarray(words.transpose(0, 2, 1, 3))


def _tile_groups(values):
    if isinstance(values, RowScales):
        return tile_rows(values)
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
    if tiles.dtype == np.int8:
        return untile_rows(tiles, num_rows)
    if tiles.dtype.names:
        products = tiles["steps"].astype(np.float32)[:, :, None] * tiles["numbers"]
        tiles = products.reshape(len(tiles), -1, ROW_TILE)
    elif tiles.dtype == np.uint8:
        tiles = E8M0[tiles]
    return tiles.transpose(0, 2, 1).reshape(-1, tiles.shape[1])[:num_rows]


def grouped(weights, group_size):
    """Weights [N, K] as float32 [N, K/G, G]; raises ValueError as quantize() does."""
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
