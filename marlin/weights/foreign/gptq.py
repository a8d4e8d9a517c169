"""GPTQ folders, as AutoGPTQ and GPTQModel write them: codes packed along the inputs, zeros along
the outputs.

Owns the versions of the format (1 stores a zero less 1) and g_idx, which says the group of each
column (matrix.ordered). Source: docs/formats.md, "GPTQ".
"""

import numpy as np

from marlin.errors import ModelFileError
from marlin.files.fields import Fields
from marlin.weights.foreign import matrix, numbers
from marlin.weights.foreign.matrix import ForeignMatrix
from marlin.weights.tensor_file import TensorInfo, read_bytes

BITS = (2, 3, 4, 8)
# By checkpoint_format: what a stored zero is less by.
VERSIONS = {"gptq": 1, "gptq_v2": 0}


class Gptq:
    """See table.Reader; `config` is quantization_config."""

    name = "gptq"

    def __init__(self, config: Fields, tensors: dict[str, TensorInfo]):
        self._tensors = tensors
        self._bits = config.count("bits")
        if self._bits not in BITS:
            config.fail("bits", f"one of {', '.join(map(str, BITS))}")
        self._group_size = config.count("group_size", minimum=-1)
        self._less = VERSIONS[config.choice("checkpoint_format", VERSIONS, "gptq")]
        if config.raw("dynamic"):
            config.fail("dynamic", "nothing: all modules alike")
        config.choice("pack_dtype", ("int32",), "int32")

    def matrix(self, stem: str, shape: tuple[int, ...]) -> ForeignMatrix | None:
        weight = self._tensors.get(f"{stem}.qweight")
        if weight is None:
            return None
        (n, k), bits = shape, self._bits
        group_size = k if self._group_size <= 0 else min(k, self._group_size)
        groups = -(-k // group_size)
        numbers.check(weight, ("I32",), (numbers.words(weight, k, bits), n))
        zeros, scales = (self._part(stem, part, weight) for part in ("qzeros", "scales"))
        numbers.check(zeros, ("I32",), (groups, numbers.words(zeros, n, bits)))
        numbers.check(scales, ("F16", "BF16", "F32"), (groups, n))
        parts: tuple[TensorInfo, ...] = weight, zeros, scales
        order = np.arange(k) // group_size
        g_idx = self._tensors.get(f"{stem}.g_idx")
        if g_idx is not None:
            order = order_of(numbers.check(g_idx, ("I32",), (k,)), groups)
            parts += (g_idx,)
        return self._matrix(shape, parts, order)

    def is_companion(self, name: str) -> bool:
        return False

    def _part(self, stem, part, beside):
        info = self._tensors.get(f"{stem}.{part}")
        if info is None:
            raise numbers.missing(beside, beside.name.removesuffix("qweight") + part)
        return info

    def _matrix(self, shape, parts, order):
        weight, zeros, scales, *_ = parts

        def codes(start, stop):
            return numbers.stream_codes(numbers.column_words(weight, start, stop), self._bits)

        def scales_of(start, stop):
            return numbers.row_floats(scales, 0, scales.shape[0])[:, start:stop].T

        return matrix.ordered(
            self._bits, shape, parts, codes, scales_of, self._zeros(zeros).T, order
        )

    def _zeros(self, info):
        """float32 [groups, n]; a zero that may have been cut off is refused."""
        stored = numbers.stream_codes(numbers.row_bytes(info, 0, info.shape[0]), self._bits)
        if self._less and (stored == (1 << self._bits) - 1).any():
            message = f"stores a zero of {(1 << self._bits) - 1}, which version 1 of the format "
            message += "says of 0 and of one more"
            raise ModelFileError(info.path, message, tensor=info.name)
        return stored.astype(np.float32) + np.float32(self._less)


def order_of(info: TensorInfo, groups: int) -> np.ndarray:
    """The group of each column, from g_idx, checked."""
    order = read_bytes(info).view("<i4")
    if order.min() < 0 or order.max() >= groups:
        message = f"names groups {order.min()} to {order.max()} of {groups}"
        raise ModelFileError(info.path, message, tensor=info.name)
    return order
