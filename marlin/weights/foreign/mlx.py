"""MLX's quantized folders (mlx-lm, mlx-vlm): affine codes of 2 to 8 bits, and fp4 and fp8 with
one-byte scales.

Owns the layout of their tensors and `quantization` of config.json, which says bits, group size and
mode of all modules and, under their names, of single ones. Both must say the same of a module.
Source: docs/formats.md, "MLX".
"""

import numpy as np

from marlin.files.fields import Fields
from marlin.weights.foreign import float4, float8, matrix, numbers
from marlin.weights.foreign.matrix import ForeignMatrix
from marlin.weights.tensor_file import TensorInfo

AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUPS = (32, 64, 128)
# Bits and group size of the modes whose scales are bytes.
BYTE_SCALES = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}
# nvfp4 with a scale of the whole tensor: that is the largest magnitude of its values, of which the
# largest E4M3 times the largest E2M1 is to be had.
NVFP4_SHARE = 1 / (448 * 6)


class Mlx:
    """Reads modules of a folder.

    Args:
        config: `quantization` of config.json.
        tensors: {name: TensorInfo} of the folder.
    """

    name = "mlx"

    def __init__(self, config: Fields, tensors: dict[str, TensorInfo]):
        self._config = config
        self._tensors = tensors
        self._settings(config)

    def matrix(self, stem: str, shape: tuple[int, ...]) -> ForeignMatrix | None:
        """The matrix of a module, or None of one that is not quantized.

        Args:
            stem: what the model calls it, without `.weight`.
            shape: outermost first.

        Raises:
            ModelFileError: config.json and tensors, or the tensors, do not fit together.
        """
        weight, scales = (self._tensors.get(f"{stem}.{part}") for part in ("weight", "scales"))
        if weight is None or scales is None:
            return None
        module = weight.name.removesuffix(".weight")
        bits, group_size, mode = self._of_module(module)
        rows, k = shape[:-1], shape[-1]
        numbers.check(weight, ("U32",), (*rows, k * bits // 32))
        grouped = (*rows, k // group_size)
        if mode == "affine":
            numbers.check(scales, ("F16", "BF16", "F32"), grouped)
            biases = self._part(stem, "biases", scales)
            numbers.check(biases, (scales.dtype,), grouped)
            return _affine(shape, (weight, scales, biases), bits, group_size)
        numbers.check(scales, ("U8",), grouped)
        factor = self._tensors.get(f"{stem}.global_scale") if mode == "nvfp4" else None
        return _byte_scaled(shape, (weight, scales), mode, factor)

    def is_companion(self, name: str) -> bool:
        """Whether a tensor lies beside the weights unread."""
        return False

    def _of_module(self, module):
        said = self._config.raw(module)
        if said is False:
            self._config.fail(module, f"true, since {module}.scales is there")
        return self._settings(
            self._config.object(module) if isinstance(said, dict) else self._config
        )

    def _settings(self, fields):
        """(bits, group size, mode)."""
        mode = fields.choice("mode", ("affine", *BYTE_SCALES), "affine")
        bits, group_size = fields.count("bits"), fields.count("group_size")
        if mode != "affine" and (bits, group_size) != BYTE_SCALES[mode]:
            fields.fail("mode", f"one with {bits} bits in groups of {group_size}")
        if mode == "affine" and bits not in AFFINE_BITS:
            fields.fail("bits", f"one of {', '.join(map(str, AFFINE_BITS))}")
        if mode == "affine" and group_size not in AFFINE_GROUPS:
            fields.fail("group_size", f"one of {', '.join(map(str, AFFINE_GROUPS))}")
        return bits, group_size, mode

    def _part(self, stem, part, beside):
        info = self._tensors.get(f"{stem}.{part}")
        if info is None:
            raise numbers.missing(beside, beside.name.removesuffix("scales") + part)
        return info


def _affine(shape, parts, bits, group_size):
    """scale * code + bias, code from 0: int4, or int8 whose values are code - 128."""
    weight, scales, biases = parts
    kind = "int4" if bits <= 4 else "int8"

    def codes(start, stop):
        found = numbers.stream_codes(numbers.row_bytes(weight, start, stop), bits)
        # Codes of 8 bits are moved by 128, and the bias makes good for it; fewer bits fit as they
        # are.
        return found if bits in (2, 3, 4, 8) else found + np.uint8(128)

    def factors(start, stop):
        scale, bias = (numbers.row_floats(part, start, stop) for part in (scales, biases))
        return scale, bias + np.float32(128) * scale if bits == 8 else bias

    return matrix.packed(kind, shape, parts, codes, factors, group_size)


def _byte_scaled(shape, parts, mode, factor):
    if mode == "mxfp8":
        return float8.mxfp8(shape, parts)
    if mode == "mxfp4":
        return float4.mxfp4(shape, parts)
    if factor is None:
        return float4.nvfp4(shape, parts, np.float32(1))
    return float4.nvfp4(shape, (*parts, factor), numbers.scalar(factor, NVFP4_SHARE))
