"""compressed-tensors folders (llm-compressor): packed and plain integers, 8-bit floats, NVFP4 and
MXFP4, as `format` of quantization_config or of one of its config_groups says.

Which group a module is of, its tensors tell: those that a group's format does not have, or at other
shapes, are refused. Source: docs/formats.md, "compressed-tensors".
"""

from functools import partial

import numpy as np

from marlin.errors import ModelFileError
from marlin.files.fields import Fields
from marlin.weights.foreign import float4, float8, matrix, numbers
from marlin.weights.foreign.float8 import ACTIVATION_SCALES
from marlin.weights.foreign.gptq import order_of
from marlin.weights.foreign.matrix import ForeignMatrix
from marlin.weights.tensor_file import TensorInfo, read_bytes

FORMATS = (
    *("pack-quantized", "int-quantized", "float-quantized", "naive-quantized"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized", "mixed-precision"),
)


class CompressedTensors:
    """See table.Reader; `config` is quantization_config."""

    name = "compressed-tensors"

    def __init__(self, config: Fields, tensors: dict[str, TensorInfo]):
        self._tensors = tensors
        config.choice("format", FORMATS)
        config.choice("quantization_status", ("compressed",), "compressed")
        for name in ("sparsity_config", "transform_config"):
            section = config.section(name)
            if section is not None and section.values and section.raw("format") != "dense":
                config.fail(name, "nothing")
        groups = config.object("config_groups")
        self._bits, self._blocks = set(), []
        for name in groups.values:
            group = groups.object(name)
            group.choice("format", FORMATS, None)
            weights = group.object("weights")
            weights.choice("type", ("int", "float"), "int")
            self._bits.add(weights.count("num_bits", maximum=8))
            self._blocks.append(weights.counts("block_structure") or None)
        self._config = config

    def matrix(self, stem: str, shape: tuple[int, ...]) -> ForeignMatrix | None:
        scale = self._tensors.get(f"{stem}.weight_scale")
        if scale is None:
            return None
        packed = self._tensors.get(f"{stem}.weight_packed")
        weight = self._tensors.get(f"{stem}.weight")
        if packed is not None:
            if packed.dtype == "U8":
                return self._fp4(stem, shape, packed, scale)
            return self._packed(stem, shape, packed, scale)
        if weight is None:
            raise numbers.missing(scale, scale.name.removesuffix("_scale"))
        if weight.dtype == "I8":
            return self._integers(stem, shape, weight, scale)
        if weight.dtype == "F8_E4M3" and scale.dtype == "U8":
            return float8.mxfp8(shape, (weight, scale))
        return float8.scaled(shape, weight, scale, next(filter(None, self._blocks), None))

    def is_companion(self, name: str) -> bool:
        return name.endswith((*ACTIVATION_SCALES, ".input_global_scale", ".weight_shape"))

    def _packed(self, stem, shape, weight, scale):
        """Streams of codes, half of their range too large."""
        n, k = shape
        fitting = [bits for bits in self._bits if weight.shape == (n, -(-k * bits // 32))]
        if weight.dtype != "I32" or len(fitting) != 1:
            message = f"is {weight.dtype} {list(weight.shape)}, expected I32 codes of "
            message += f"{' or '.join(map(str, sorted(self._bits)))} bits for {list(shape)}"
            raise ModelFileError(weight.path, message, tensor=weight.name)
        self._check_shape(stem, shape)
        parts: tuple[TensorInfo, ...] = weight, scale
        bits, zeros = fitting[0], None

        def codes(start, stop):
            row = numbers.row_bytes(weight, start, stop)[:, : k * bits // 8]
            return numbers.stream_codes(row, bits)

        groups, group_size = _groups(scale, n, k)
        order = np.arange(k) // group_size
        if (g_idx := self._tensors.get(f"{stem}.weight_g_idx")) is not None:
            order, parts = order_of(numbers.check(g_idx, ("I32",), (k,)), groups), (*parts, g_idx)
        if (zero := self._tensors.get(f"{stem}.weight_zero_point")) is not None:
            numbers.check(zero, ("I32",), (-(-n * bits // 32), groups))
            words = numbers.column_words(zero, 0, groups)
            stream = numbers.stream_codes(words, bits)[:, :n]
            zeros, parts = stream.T.astype(np.float32), (*parts, zero)
        scales = partial(_scales, scale, groups)
        return matrix.ordered(bits, shape, parts, codes, scales, zeros, order)

    def _integers(self, stem, shape, weight, scale):
        n, k = shape
        numbers.check(weight, ("I8",), shape)
        groups, group_size = _groups(scale, n, k)
        zero = self._tensors.get(f"{stem}.weight_zero_point")
        parts: tuple[TensorInfo, ...] = weight, scale
        zeros = None
        if zero is not None:
            numbers.check(zero, ("I8",), scale.shape)
            raw = read_bytes(zero).view(np.int8).astype(np.float32) + 128
            zeros, parts = np.broadcast_to(raw.reshape(-1, groups), (n, groups)), (*parts, zero)

        def codes(start, stop):
            return numbers.row_bytes(weight, start, stop) ^ np.uint8(128)

        order, scales = np.arange(k) // group_size, partial(_scales, scale, groups)
        return matrix.ordered(8, shape, parts, codes, scales, zeros, order)

    def _fp4(self, stem, shape, weight, scale):
        if scale.dtype != "F8_E4M3":
            return float4.mxfp4(shape, (weight, scale))
        factor = self._tensors.get(f"{stem}.weight_global_scale")
        if factor is None:
            raise numbers.missing(weight, f"{stem}.weight_global_scale")
        return float4.nvfp4(shape, (weight, scale, factor), numbers.inverse(factor))

    def _check_shape(self, stem, shape):
        info = self._tensors.get(f"{stem}.weight_shape")
        if info is not None:
            numbers.check(info, ("I64", "I32"), (2,))
            said = read_bytes(info).view({"I64": "<i8", "I32": "<i4"}[info.dtype]).tolist()
            if said != list(shape):
                message = f"says {said}; the config implies {list(shape)}"
                raise ModelFileError(info.path, message, tensor=info.name)


def _groups(scale, n, k):
    """(groups of a row, columns of one) of a scale a group, a row or the whole matrix."""
    whole = scale.shape in ((1,), (), (1, 1))
    groups = 1 if whole or scale.shape == (n,) else scale.shape[-1]
    if (not whole and scale.shape not in ((n,), (n, groups))) or groups == 0 or k % groups:
        message = f"has shape {list(scale.shape)}; expected [{n}, groups of {k} columns]"
        raise ModelFileError(scale.path, message, tensor=scale.name)
    return groups, k // groups


def _scales(scale, groups, start, stop):
    if int(np.prod(scale.shape)) == 1:
        return np.full((stop - start, 1), numbers.scalar(scale))
    raw = numbers.floats(scale, read_bytes(scale)).reshape(-1, groups)
    return raw[start:stop]
