"""Folders with config.json and safetensors: which tensors there are, Hugging Face's or the
project's own packed ones, and what these must look like. Refuses to know devices.
"""

import os
from dataclasses import dataclass

from marlin.errors import ModelFileError
from marlin.files.fields import file_fields
from marlin.files.strict_json import read_json_object
from marlin.models.plan import check_dtype, check_found, check_leftovers
from marlin.models.registry import config_from_hf, spec_of
from marlin.models.spec import ModelSpec, Tensor
from marlin.weights.block_types import BLOCK_TYPES, DENSE_KINDS
from marlin.weights.kinds import GROUP_SIZES, KINDS, MAY, MUST, PACKED_KINDS, ROW_TILE
from marlin.weights.native import PADDING_PREFIX, VERSION
from marlin.weights.safetensors_file import SafetensorsFolder
from marlin.weights.tensor_file import TensorInfo

# Where a packed weight's codes, scales and biases must begin: kernels load whole vectors of them.
PACKED_ALIGNMENT = 16


# How names begin in the folders of multimodal models, and in those of text models.
TEXT_PREFIXES = {
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a folder: as it is, or packed in the project's own form.

    Attributes:
        info: its values, or a packed one's codes.
        kind: a Weight's kind; None of what is no matrix.
        group_size, scales, biases: of a packed one, where biases may be None.
    """

    tensor: Tensor
    info: TensorInfo
    kind: str | None
    group_size: int = 0
    scales: TensorInfo | None = None
    biases: TensorInfo | None = None

    @property
    def parts(self) -> tuple[TensorInfo, ...]:
        return tuple(p for p in (self.info, self.scales, self.biases) if p is not None)

    @property
    def alignment(self) -> int:
        """Where each part must begin in a mapped file."""
        if self.scales is not None:
            return PACKED_ALIGNMENT
        return BLOCK_TYPES[self.info.dtype].bytes


def plan_folder(path: str) -> tuple[ModelSpec, str | None, list[StoredTensor]]:
    """Find every tensor of the model in a folder.

    Returns:
        (the model, the native format or None, its tensors).

    Raises:
        ModelFileError: config or tensors cannot be read, or contradict each other.
    """
    tensors = _text_names(path, SafetensorsFolder(path).tensors)
    spec = spec_of(config_from_hf(path))
    quantization = read_quantization(path)
    format = quantization["format"] if quantization else None
    plan, known = [], set()
    for tensor in spec.tensors:
        stem = tensor.name.removesuffix(".weight")
        if tensor.is_matrix and f"{stem}.codes" in tensors:
            plan.append(_plan_packed(tensor, stem, tensors, format))
        elif check_found(path, tensor, tensor.name, tensors.get(tensor.name), DENSE_KINDS):
            info = tensors[tensor.name]
            kind = DENSE_KINDS[info.dtype] if tensor.is_matrix else None
            plan.append(StoredTensor(tensor, info, kind))
        else:
            continue
        known |= {_text_name(info.name) for info in plan[-1].parts}
    if quantization:
        known |= {name for name in tensors if name.startswith(PADDING_PREFIX)}
    check_leftovers(spec, tensors, known)
    return spec, format, plan


def _text_names(path, tensors):
    """The tensors under the names that a text model gives them."""
    found = {}
    for info in tensors.values():
        name = _text_name(info.name)
        if name in found:
            message = f"is {name} of the language model, and {found[name].name} is, too"
            raise ModelFileError(path, message, tensor=info.name)
        found[name] = info
    return found


def _text_name(name):
    for prefix, plain in TEXT_PREFIXES.items():
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name


def _plan_packed(tensor, stem, tensors, format):
    n, k = tensor.shape
    codes = tensors[f"{stem}.codes"]
    tiles = -(-n // ROW_TILE)
    kind = _packed_kind(codes, n, k, format)
    scales = _part(tensors, codes, f"{stem}.scales", ("F16", "F32"))
    shapes = {(tiles, k // size, ROW_TILE): size for size in GROUP_SIZES if k % size == 0}
    group_size = shapes.get(scales.shape)
    if group_size is None:
        message = f"has shape {scales.shape}, expected one of {list(shapes)}"
        raise ModelFileError(scales.path, message, tensor=scales.name)
    biases, bias = None, KINDS[kind].bias
    if bias == MUST or (bias == MAY and f"{stem}.biases" in tensors):
        biases = _part(tensors, codes, f"{stem}.biases", (scales.dtype,))
        if biases.shape != scales.shape:
            message = f"has shape {biases.shape}, not {scales.shape}"
            raise ModelFileError(biases.path, message, tensor=biases.name)
    return StoredTensor(tensor, codes, kind, group_size, scales, biases)


def _part(tensors, codes, name, dtypes):
    info = tensors.get(name)
    if info is None:
        raise ModelFileError(codes.path, f"is missing beside {codes.name}", tensor=name)
    check_dtype(info, dtypes)
    return info


def _packed_kind(codes, n, k, format):
    shapes = {KINDS[name].code_dtype: KINDS[name].code_shape(n, k) for name in PACKED_KINDS}
    if shapes.get(codes.dtype) != codes.shape:
        expected = " or ".join(f"{dtype} {shape}" for dtype, shape in shapes.items())
        message = f"is {codes.dtype} {codes.shape}, expected {expected}"
        raise ModelFileError(codes.path, message, tensor=codes.name)
    fitting = [name for name in PACKED_KINDS if KINDS[name].code_dtype == codes.dtype]
    if len(fitting) == 1:
        return fitting[0]
    if format not in fitting:
        message = f"is 4-bit in a folder of format {format or 'safetensors'}"
        raise ModelFileError(codes.path, message, tensor=codes.name)
    return format


def read_quantization(folder: str) -> dict | None:
    """The "quantization" object of a native folder's config.json, or None for a plain checkpoint.

    Raises:
        ModelFileError: it is of a version or format that this package does not know, or another
            program's quantized checkpoint.
    """
    path = os.path.join(folder, "config.json")
    fields = file_fields(path, read_json_object(path))
    if fields.raw("quantization_config") is not None:
        fields.fail(
            "quantization_config", "a plain checkpoint or one that `metal-marlin quantize` wrote"
        )
    quantization = fields.raw("quantization")
    if quantization is None:
        return None
    if not isinstance(quantization, dict) or quantization.get("version") != VERSION:
        fields.fail(
            "quantization",
            f"version {VERSION} of what `metal-marlin quantize` writes from an original checkpoint",
        )
    native = fields.object("quantization")
    native.choice("format", PACKED_KINDS)
    if native.raw("tile_rows") != ROW_TILE:
        native.fail("tile_rows", f"{ROW_TILE}, the only tiles that kernels read")
    return quantization
