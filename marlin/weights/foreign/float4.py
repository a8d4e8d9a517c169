"""Matrices of 4-bit floats (E2M1) with a scale of one byte for 16 or 32 columns, which several
programs write alike: NVFP4 and MXFP4. Source: OCP Microscaling Formats v1.0; docs/formats.md.
"""

from functools import partial

import numpy as np

from marlin.weights.foreign import matrix, numbers
from marlin.weights.foreign.matrix import ForeignMatrix
from marlin.weights.tensor_file import TensorInfo


def nibbles(weight: TensorInfo, start: int, stop: int) -> np.ndarray:
    """Codes of which a byte holds two, the first one in its low half."""
    return numbers.stream_codes(numbers.row_bytes(weight, start, stop), 4)


def nvfp4(
    shape: tuple[int, ...], parts: tuple[TensorInfo, ...], factor: np.float32
) -> ForeignMatrix:
    """E2M1 * E4M3 * factor; parts are codes, scales, and what says the factor."""
    weight, scales, *_ = parts
    check_shapes(shape, weight, scales, ("F8_E4M3", "U8"), 16)

    def factors(start, stop):
        return numbers.E4M3[numbers.row_bytes(scales, start, stop)] * factor, None

    return matrix.packed("fp4", shape, parts, partial(nibbles, weight), factors, 16)


def mxfp4(shape: tuple[int, ...], parts: tuple[TensorInfo, TensorInfo]) -> ForeignMatrix:
    """E2M1 * 2^(byte - 127); parts are codes and scales."""
    weight, scales = parts
    check_shapes(shape, weight, scales, ("U8", "F8_E8M0"), 32)
    exponents = partial(numbers.row_bytes, scales)
    return matrix.exponential("fp4", shape, parts, partial(nibbles, weight), exponents)


def check_shapes(
    shape: tuple[int, ...],
    weight: TensorInfo,
    scales: TensorInfo,
    dtypes: tuple[str, ...],
    group_size: int,
) -> None:
    """Refuse codes, in bytes or words, or scales that are not those of the matrix."""
    *rows, k = shape
    size = {"U8": 1}.get(weight.dtype, 4)
    numbers.check(weight, ("U8", "U32"), (*rows, k // (2 * size)))
    numbers.check(scales, dtypes, (*rows, k // group_size))
