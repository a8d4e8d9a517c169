"""Which program wrote a folder's quantized weights, and the reader of its files.

The only list of foreign writers: a new one is a file and a row here. Refuses to know what their
tensors mean.
"""

import os
from typing import Protocol

from marlin.files.fields import Fields, file_fields
from marlin.files.strict_json import read_json_object
from marlin.weights.foreign.awq import Awq
from marlin.weights.foreign.bitsandbytes import BitsAndBytes
from marlin.weights.foreign.compressed_tensors import CompressedTensors
from marlin.weights.foreign.float8 import Float8
from marlin.weights.foreign.gptq import Gptq
from marlin.weights.foreign.hf_mxfp4 import HfMxfp4
from marlin.weights.foreign.matrix import ForeignMatrix
from marlin.weights.foreign.mlx import Mlx
from marlin.weights.foreign.modelopt import ModelOpt
from marlin.weights.foreign.original import OriginalFp4, is_original
from marlin.weights.tensor_file import TensorInfo


class Reader(Protocol):
    """Reads the modules of one writer's folders.

    Attributes:
        name: of the writer or its format, as `format` of the model that is served.
    """

    name: str

    def matrix(self, stem: str, shape: tuple[int, ...]) -> ForeignMatrix | None:
        """The matrix of a module, or None of one that is not quantized.

        Args:
            stem: what the model calls it, without `.weight`.
            shape: outermost first; all but the last are rows.

        Raises:
            ModelFileError: config.json and tensors, or the tensors, do not fit together.
        """

    def is_companion(self, name: str) -> bool:
        """Whether a tensor lies beside the weights unread: what it says is not needed here."""


# By `quant_method` of config.json's quantization_config.
METHODS: dict[str, type] = {
    "gptq": Gptq,
    "awq": Awq,
    "compressed-tensors": CompressedTensors,
    "fp8": Float8,
    "modelopt": ModelOpt,
    "mxfp4": HfMxfp4,
    "bitsandbytes": BitsAndBytes,
}


def reader_of(config: Fields, tensors: dict[str, TensorInfo]) -> Reader | None:
    """The reader of a folder that another program quantized; None of one that is not quantized.

    Args:
        config: config.json.
        tensors: {name: TensorInfo} of the folder, by the names that the model gives them.

    Raises:
        ModelFileError: no reader knows the method, or one of its settings.
    """
    section = config.raw("quantization_config")
    if isinstance(section, dict) and "quant_method" in section:
        if config.raw("quantization") is not None:
            config.fail("quantization", "nothing beside quantization_config")
        found = config.object("quantization_config")
        return METHODS[found.choice("quant_method", METHODS)](found, tensors)
    # MLX says the same under both names.
    name = "quantization" if config.raw("quantization") is not None else "quantization_config"
    if config.raw(name) is None:
        return _reader_beside(os.path.dirname(config.path), tensors)
    if section not in (None, config.raw(name)):
        config.fail("quantization_config", "what quantization says, or an object with quant_method")
    return Mlx(config.object(name), tensors)


def _reader_beside(folder, tensors):
    """The reader of a folder whose config.json says nothing: by a file beside it, or its tensors.

    ModelOpt and AutoGPTQ have written their settings to such files before, and beside config.json.
    """
    path = os.path.join(folder, "hf_quant_config.json")
    if os.path.exists(path):
        return ModelOpt(file_fields(path, read_json_object(path)).object("quantization"), tensors)
    path = os.path.join(folder, "quantize_config.json")
    if os.path.exists(path):
        return Gptq(file_fields(path, read_json_object(path)), tensors)
    return OriginalFp4(folder, tensors) if is_original(tensors) else None
