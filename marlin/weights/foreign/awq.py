"""AWQ folders in the gemm packing: 4-bit codes and zeros packed along the outputs, in an order of
their own. Source: docs/formats.md, "AWQ".
"""

import numpy as np

from marlin.files.fields import Fields
from marlin.weights.foreign import matrix, numbers
from marlin.weights.foreign.matrix import ForeignMatrix
from marlin.weights.tensor_file import TensorInfo

# Which nibble of its word each of eight columns is.
NIBBLES = np.array([0, 4, 1, 5, 2, 6, 3, 7], np.uint32)


class Awq:
    """See table.Reader; `config` is quantization_config."""

    name = "awq"

    def __init__(self, config: Fields, tensors: dict[str, TensorInfo]):
        self._tensors = tensors
        if config.count("bits") != 4:
            config.fail("bits", "4")
        config.choice("version", ("gemm", "GEMM"), "gemm")
        self._group_size = config.count("group_size", minimum=-1)

    def matrix(self, stem: str, shape: tuple[int, ...]) -> ForeignMatrix | None:
        weight = self._tensors.get(f"{stem}.qweight")
        if weight is None:
            return None
        n, k = shape
        group_size = k if self._group_size <= 0 else min(k, self._group_size)
        groups = -(-k // group_size)
        parts = weight, self._part(stem, "qzeros", weight), self._part(stem, "scales", weight)
        _, qzeros, qscales = parts
        numbers.check(weight, ("I32",), (k, numbers.words(weight, n, 4)))
        numbers.check(qzeros, ("I32",), (groups, numbers.words(qzeros, n, 4)))
        numbers.check(qscales, ("F16", "BF16", "F32"), (groups, n))
        return matrix.integers(
            4,
            shape,
            parts,
            lambda start, stop: _columns(weight, start, stop),
            lambda start, stop: np.ascontiguousarray(
                numbers.row_floats(qscales, 0, groups)[:, start:stop].T
            ),
            lambda start, stop: _columns(qzeros, start, stop).astype(np.float32),
            group_size,
        )

    def is_companion(self, name: str) -> bool:
        return False

    def _part(self, stem, part, beside):
        info = self._tensors.get(f"{stem}.{part}")
        if info is None:
            raise numbers.missing(beside, beside.name.removesuffix("qweight") + part)
        return info


def _columns(info, start, stop):
    """uint8 [stop - start, rows]: what columns [start, stop) hold; start is a multiple of 8."""
    words = numbers.column_bytes(info, start // 8, -(-stop // 8)).view("<u4")
    nibbles = (words[:, :, None] >> 4 * NIBBLES & 15).astype(np.uint8)
    return np.ascontiguousarray(nibbles.reshape(len(words), -1)[:, : stop - start].T)
