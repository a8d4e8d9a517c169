"""Scales and biases that are int8 numbers times a bfloat16 of their row: half the bits of a float16
each, at no loss that shows.

Owns how a row's step and a group's number are chosen, and where they lie (docs/formats.md). Refuses
to know how codes are stored (formats.py) and what a group's best factors were without a step
(rounding.py).
"""

from typing import NamedTuple

import numpy as np

from marlin.weights.kinds import ROW_TILE, STEP_GROUPS
from marlin.weights.rounding import decode, encode

TOP_NUMBER = 127
# The number of a row's largest factor: what feeds errors forward makes some a little larger later.
FIRST_NUMBER = 120
# What is added to the nearest number to be tried.
_NEIGHBOURS = (0, -1, 1)


class RowScales(NamedTuple):
    """Scales or biases of a matrix: the exact products of steps and numbers.

    Attributes:
        steps: float32 [N], exact in bfloat16.
        numbers: int8 [N, K/G].
    """

    steps: np.ndarray
    numbers: np.ndarray


def steps_of(factors):
    """float32 [1 or 2, n, 1], exact in bfloat16, for factors [1 or 2, n, groups]: each row's."""
    largest = np.abs(factors).max(axis=2, keepdims=True, initial=0)
    bits = (largest / np.float32(FIRST_NUMBER)).astype(np.float32).view(np.uint32)
    # Rounded up, so that the largest number is no larger; a step below float32's normal range is 0.
    rounded = (bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)
    return np.where(bits < 1 << 23, np.uint32(0), rounded).view(np.float32)


def numbers_of(factors, steps):
    """float32, whole numbers of the nearest products; a scale that is not 0 does not become 0."""
    ratios = np.divide(factors, steps, out=np.zeros_like(factors), where=steps > 0)
    numbers = np.rint(ratios)
    scales = ratios[:1]
    numbers[:1] = np.where((numbers[:1] == 0) & (scales != 0), np.copysign(1, scales), numbers[:1])
    return np.clip(numbers, -TOP_NUMBER, TOP_NUMBER)


def snap(format, groups, importance, factors, steps):
    """Of the products near to factors those with the least squared error.

    Args:
        groups, importance, factors: as rounding.fit() takes and returns them.
        steps: as steps_of() returns them.

    Returns:
        float32, like factors.
    """
    shares = np.float32(1) / groups.shape[2]
    if importance is not None:
        shares = importance / importance.sum(axis=1, keepdims=True)
    nearest = numbers_of(factors, steps)
    best, least = nearest * steps, None
    for offset in _NEIGHBOURS:
        numbers = nearest.copy()
        numbers[0] = np.clip(nearest[0] + offset, -TOP_NUMBER, TOP_NUMBER)
        tried = numbers * steps
        left = _left(format, groups, tried)
        if len(tried) > 1:
            tried[1] += (left * shares).sum(axis=2)
            tried = numbers_of(tried, steps) * steps
            left = _left(format, groups, tried)
        error = (np.square(left) * shares).sum(axis=2)
        if least is None:
            best, least = tried, error
            continue
        better = (error < least) & (numbers[0] * nearest[0] > 0)
        best, least = np.where(better, tried, best), np.where(better, error, least)
    return best


def _left(format, groups, factors):
    return groups - decode(format, encode(format, groups, factors), factors)


def tile_rows(scales):
    """RowScales as int8 [T, K/G + 2, 16]: of each tile sixteen bfloat16, and then its numbers."""
    missing = -len(scales.steps) % ROW_TILE
    steps = np.pad(scales.steps, (0, missing)).reshape(-1, ROW_TILE)
    halves = (steps.view(np.uint32) >> 16).astype("<u2").view(np.int8)
    numbers = np.pad(scales.numbers, ((0, missing), (0, 0)))
    numbers = numbers.reshape(-1, ROW_TILE, scales.numbers.shape[1]).transpose(0, 2, 1)
    return np.concatenate([halves.reshape(-1, STEP_GROUPS, ROW_TILE), numbers], axis=1)


def untile_rows(tiles, num_rows):
    """float32 [N, K/G], the products that tile_rows() stored."""
    halves = np.ascontiguousarray(tiles[:, :STEP_GROUPS]).reshape(len(tiles), -1).view("<u2")
    steps = (halves.astype(np.uint32) << 16).view(np.float32)
    values = tiles[:, STEP_GROUPS:] * steps[:, None]
    return values.transpose(0, 2, 1).reshape(-1, values.shape[1])[:num_rows]
