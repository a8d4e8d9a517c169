"""Matrices of 8-bit floats (E4M3) with a scale a block, a row or the whole: DeepSeek's and Qwen's
FP8 folders, and what compressed-tensors and ModelOpt store alike.

They stay bytes, with a scale for each group of columns (kind fp8), where groups divide the columns.
Elsewhere, where all scales are powers of two the products are bfloat16's, to the bit, and the
nearest float16 where not. Source: docs/formats.md, "FP8".
"""

from functools import partial

import numpy as np

from marlin.errors import ModelFileError
from marlin.files.fields import Fields
from marlin.weights import formats
from marlin.weights.foreign import matrix, numbers
from marlin.weights.foreign.matrix import ForeignMatrix
from marlin.weights.kinds import GROUP_SIZES
from marlin.weights.tensor_file import TensorInfo, read_bytes

# What says how activations are to be rounded, where they are.
ACTIVATION_SCALES = (".input_scale", ".activation_scale", ".k_scale", ".v_scale")


class Float8:
    """See table.Reader; `config` is quantization_config."""

    name = "fp8"

    def __init__(self, config: Fields, tensors: dict[str, TensorInfo]):
        self._tensors = tensors
        config.choice("fmt", ("e4m3", "float8_e4m3fn"), "e4m3")
        self._block = config.counts("weight_block_size") or None
        if self._block is not None and len(self._block) != 2:
            config.fail("weight_block_size", "rows and columns")

    def matrix(self, stem: str, shape: tuple[int, ...]) -> ForeignMatrix | None:
        weight = self._tensors.get(f"{stem}.weight")
        if weight is None or weight.dtype != "F8_E4M3":
            return None
        names = [f"{stem}.weight_scale_inv", f"{stem}.weight_scale"]
        scale = next((self._tensors[name] for name in names if name in self._tensors), None)
        if scale is None:
            raise numbers.missing(weight, names[0])
        return scaled(shape, weight, scale, self._block)

    def is_companion(self, name: str) -> bool:
        return name.endswith(ACTIVATION_SCALES)


def scaled(
    shape: tuple[int, ...], weight: TensorInfo, scale: TensorInfo, block: list[int] | None
) -> ForeignMatrix:
    """weight * scale, of which there is one a block [rows, columns], one a row, or one."""
    numbers.check(weight, ("F8_E4M3",), shape)
    (n, k), parts = shape, (weight, scale)
    if scale.num_bytes == 0 or scale.dtype not in ("F32", "BF16", "F16", "F8_E8M0"):
        raise ModelFileError(scale.path, f"is {scale.dtype}, not a scale", tensor=scale.name)
    raw = read_bytes(scale)
    factors = formats.E8M0[raw] if scale.dtype == "F8_E8M0" else numbers.floats(scale, raw)
    if factors.size == 1:
        factors, block = factors.reshape(1, 1), [n, k]
    elif block is None:
        block = [1, k]
    block = [min(block[0], n), min(block[1], k)]
    wanted = (-(-n // block[0]), -(-k // block[1]))
    if factors.shape not in (wanted, wanted[: factors.ndim]) or factors.size != np.prod(wanted):
        message = f"has shape {list(scale.shape)}, expected {list(wanted)}"
        raise ModelFileError(scale.path, message, tensor=scale.name)
    factors = factors.reshape(wanted)
    if not np.isfinite(factors).all():
        raise ModelFileError(scale.path, "holds no finite number", tensor=scale.name)

    group = next((g for g in GROUP_SIZES[::-1] if k % g == 0 and block[1] % g == 0), None)
    if group is not None:
        columns = np.arange(0, k, group) // block[1]

        def scales(start, stop):
            return factors[np.arange(start, stop) // block[0]][:, columns], None

        return matrix.packed("fp8", shape, parts, partial(codes, weight), scales, group)

    def values(start, stop):
        found = numbers.E4M3[numbers.row_bytes(weight, start, stop)]
        rows = factors[np.arange(start, stop) // block[0]]
        return found * np.repeat(rows, block[1], axis=1)[:, :k]

    mantissas = np.frexp(factors)[0]
    kind = "bf16" if (np.abs(mantissas) == 0.5).all() else "f16"
    return matrix.dense(kind, shape, parts, values)


def codes(weight: TensorInfo, start: int, stop: int) -> np.ndarray:
    """uint8 [stop - start, K], none of which is E4M3's NaN."""
    found = numbers.row_bytes(weight, start, stop)
    if (found & 127 == 127).any():
        row = start + int(np.argwhere(found & 127 == 127)[0][0])
        message = f"holds a value in row {row} that is no finite number"
        raise ModelFileError(weight.path, message, tensor=weight.name)
    return found


def mxfp8(shape: tuple[int, ...], parts: tuple[TensorInfo, TensorInfo]) -> ForeignMatrix:
    """E4M3 * 2^(byte - 127), a byte for 32 columns; parts are codes, in bytes or words, and
    scales."""
    weight, scales = parts
    *rows, k = shape
    size = 4 if weight.dtype == "U32" else 1
    numbers.check(weight, ("F8_E4M3", "U8", "U32"), (*rows, k // size))
    numbers.check(scales, ("U8", "F8_E8M0"), (*rows, k // 32))
    exponents = partial(numbers.row_bytes, scales)
    return matrix.exponential("fp8", shape, parts, partial(codes, weight), exponents)
