"""NVIDIA ModelOpt's folders: NVFP4 and FP8, whose scales of a tensor multiply (compressed-tensors'
divide). Which of the two a module is, its tensors tell. Source: docs/formats.md, "ModelOpt".
"""

from marlin.files.fields import Fields
from marlin.weights.foreign import float4, float8, numbers
from marlin.weights.foreign.matrix import ForeignMatrix
from marlin.weights.tensor_file import TensorInfo

ALGORITHMS = ("NVFP4", "FP8", "MIXED_PRECISION")


class ModelOpt:
    """See table.Reader; `config` is quantization_config."""

    name = "modelopt"

    def __init__(self, config: Fields, tensors: dict[str, TensorInfo]):
        self._tensors = tensors
        config.choice("quant_algo", ALGORITHMS)

    def matrix(self, stem: str, shape: tuple[int, ...]) -> ForeignMatrix | None:
        parts = [self._tensors.get(f"{stem}.{part}") for part in ("weight", "weight_scale")]
        weight, scale = parts
        if weight is None or scale is None:
            return None
        if weight.dtype == "F8_E4M3":
            return float8.scaled(shape, weight, scale, None)
        factor = self._tensors.get(f"{stem}.weight_scale_2")
        if factor is None:
            raise numbers.missing(weight, f"{stem}.weight_scale_2")
        return float4.nvfp4(shape, (weight, scale, factor), numbers.scalar(factor))

    def is_companion(self, name: str) -> bool:
        return name.endswith(float8.ACTIVATION_SCALES)
