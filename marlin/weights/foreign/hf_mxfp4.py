"""gpt-oss folders as OpenAI published them: experts of MXFP4, whose gates and ups take turns as
rows of one tensor; all else is bfloat16. Source: docs/formats.md, "MXFP4 experts".
"""

from dataclasses import replace

import numpy as np

from marlin.files.fields import Fields
from marlin.weights.foreign import matrix, numbers
from marlin.weights.foreign.matrix import ForeignMatrix
from marlin.weights.tensor_file import TensorInfo


class HfMxfp4:
    """See table.Reader; its matrices are those of fused() alone."""

    name = "mxfp4"

    def __init__(self, config: Fields, tensors: dict[str, TensorInfo]):
        self._tensors = tensors

    def matrix(self, stem: str, shape: tuple[int, ...]) -> ForeignMatrix | None:
        return None

    def fused(
        self, name: str, shape: tuple[int, ...], part: int, num_parts: int
    ) -> ForeignMatrix | None:
        """The matrices [experts, rows, columns] that are every num_parts-th row of a tensor, from
        row `part` on; None where there is no such tensor."""
        blocks = self._tensors.get(f"{name}_blocks")
        if blocks is None:
            return None
        scales = self._tensors.get(f"{name}_scales")
        if scales is None:
            raise numbers.missing(blocks, f"{name}_scales")
        experts, rows, k = shape
        stored = (experts, rows * num_parts, k // 32)
        numbers.check(blocks, ("U8",), (*stored, 16))
        numbers.check(scales, ("U8",), stored)
        flat = replace(blocks, shape=(experts * rows * num_parts, k // 2))

        def own_rows(info, start, stop):
            first, last = start * num_parts, stop * num_parts
            return np.ascontiguousarray(numbers.row_bytes(info, first, last)[part::num_parts])

        return matrix.exponential(
            "fp4",
            shape,
            (blocks, scales),
            lambda start, stop: numbers.stream_codes(own_rows(flat, start, stop), 4),
            lambda start, stop: own_rows(scales, start, stop),
        )

    def is_companion(self, name: str) -> bool:
        return False
