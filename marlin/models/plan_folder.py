"""Folders with config.json and safetensors: which tensors there are, Hugging Face's, the project's
own packed ones, whose look is said here, or those of another program (weights/foreign). Refuses to
know devices.
"""

import os
from dataclasses import dataclass
from typing import NamedTuple

from marlin.errors import ModelFileError
from marlin.files.fields import Fields, file_fields
from marlin.files.strict_json import read_json_object
from marlin.models.plan import check_dtype, check_leftovers, split_fused
from marlin.models.plan_experts import check_tiles, find_packed, find_plain, find_stack, stem_of
from marlin.models.plan_mlx import without_plus
from marlin.models.registry import config_from_hf, spec_of
from marlin.models.slab_plan import SlabPlan
from marlin.models.spec import ModelSpec, Tensor
from marlin.weights.block_types import BLOCK_TYPES, DENSE_KINDS
from marlin.weights.foreign.matrix import ForeignMatrix
from marlin.weights.foreign.table import reader_of
from marlin.weights.formats import FORMATS
from marlin.weights.kinds import GROUP_SIZES, KINDS, MAY, MUST, ROW_TILE, STEP_GROUPS
from marlin.weights.native import MIXED, PADDING_PREFIX, SCALE_BYTES, VERSION
from marlin.weights.safetensors_file import SafetensorsFolder
from marlin.weights.tensor_file import TensorInfo

# Where a packed weight's codes, scales and biases must begin: kernels load whole vectors of them.
PACKED_ALIGNMENT = 16

# How names begin in the folders of multimodal models, and in those of text models; and where an
# encoder lies beside a head.
TEXT_PREFIXES = {
    "model.language_model.": "model.",
    "model.text_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "bert.": "",
    "roberta.": "",
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a folder: as it is, packed in the project's own form, or to be repacked.

    Attributes:
        info: its values, or a packed one's codes.
        kind: a Weight's kind; None of what is no matrix.
        group_size, scales, biases: of a packed one, where biases may be None.
        foreign: of one that is to be repacked or put together, with the slab and the offset where
            it will lie; slab is -1 of what is no matrix.
    """

    tensor: Tensor
    info: TensorInfo
    kind: str | None
    group_size: int = 0
    scales: TensorInfo | None = None
    biases: TensorInfo | None = None
    foreign: ForeignMatrix | None = None
    slab: int = -1
    offset: int = 0

    @property
    def parts(self) -> tuple[TensorInfo, ...]:
        if self.foreign is not None:
            return self.foreign.parts
        return tuple(p for p in (self.info, self.scales, self.biases) if p is not None)

    @property
    def alignment(self) -> int:
        """Where each part must begin in a mapped file."""
        if self.scales is not None:
            return PACKED_ALIGNMENT
        return BLOCK_TYPES[self.info.dtype].bytes


class FolderPlan(NamedTuple):
    """What a folder holds.

    Attributes:
        spec: the model.
        format: a native folder's, or the name of another program's; None of a plain one.
        tensors: all of the model's.
        slab_bytes: of each slab of repacked ones.
    """

    spec: ModelSpec
    format: str | None
    tensors: list[StoredTensor]
    slab_bytes: list[int]


def plan_folder(path: str) -> FolderPlan:
    """Find every tensor of the model in a folder.

    Raises:
        ModelFileError: config or tensors cannot be read, or contradict each other.
    """
    tensors = _text_names(path, SafetensorsFolder(path).tensors)
    spec = spec_of(config_from_hf(path))
    tensors = split_fused(spec, tensors, "name")
    config_path = os.path.join(path, "config.json")
    config = file_fields(config_path, read_json_object(config_path))
    native = _native_format(config)
    reader = None if native else reader_of(config, tensors)
    plan, known, slabs = [], set(), SlabPlan()
    for tensor in spec.tensors:
        stem = stem_of(tensor, tensors)
        foreign = find_packed(tensor, stem, reader) if reader and tensor.has_rows else None
        if foreign is None and tensor.stack:
            foreign = find_stack(path, tensor, tensors, reader)
        if foreign is not None:
            kind, place = None, (-1, 0)
            if tensor.is_matrix:
                kind = foreign.form.kind
                place = slabs.place(sum(foreign.form.part_bytes(*foreign.shape)))
            plan.append(StoredTensor(tensor, foreign.info, kind, 0, None, None, foreign, *place))
        elif tensor.is_matrix and f"{stem}.codes" in tensors:
            plan.append(_plan_packed(tensor, stem, tensors, native))
        elif info := find_plain(path, tensor, stem, tensors):
            plan.append(
                StoredTensor(tensor, info, DENSE_KINDS[info.dtype] if tensor.is_matrix else None)
            )
        else:
            continue
        if plan[-1].kind:
            check_tiles(tensor, plan[-1].kind, plan[-1].info)
        known |= {_text_name(info.name) for info in plan[-1].parts}
    if native:
        known |= {name for name in tensors if name.startswith(PADDING_PREFIX)}
    if reader:
        known |= {name for name in tensors if reader.is_companion(name)}
        if not slabs.sizes:
            message = f"says that {reader.name} has quantized these weights, and no matrix is"
            raise ModelFileError(config_path, message)
    check_leftovers(spec, tensors, known)
    return FolderPlan(spec, reader.name if reader else native, without_plus(plan), slabs.sizes)


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
    n, k = tensor.rows
    codes = tensors[f"{stem}.codes"]
    tiles = -(-n // ROW_TILE)
    kind = _packed_kind(codes, n, k, format, f"{stem}.biases" in tensors)
    scales = _part(tensors, codes, f"{stem}.scales", tuple(SCALE_BYTES))
    more = STEP_GROUPS if scales.dtype == "I8" else 0
    shapes = {(tiles, k // size + more, ROW_TILE): size for size in GROUP_SIZES if k % size == 0}
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


def _packed_kind(codes, n, k, format, has_biases):
    kinds = [KINDS[name] for name in FORMATS]
    stored = {kind.name: f"{kind.code_dtype} {kind.code_shape(n, k)}" for kind in kinds}
    fitting = [name for name in stored if stored[name] == f"{codes.dtype} {codes.shape}"]
    if not fitting:
        expected = " or ".join(dict.fromkeys(stored.values()))
        message = f"is {codes.dtype} {codes.shape}, expected {expected}"
        raise ModelFileError(codes.path, message, tensor=codes.name)
    if len(fitting) == 1:
        return fitting[0]
    if format == MIXED:
        format = "int4" if has_biases else "iq4"
    if format not in fitting:
        message = f"is 4-bit in a folder of format {format or 'safetensors'}"
        raise ModelFileError(codes.path, message, tensor=codes.name)
    return format


def _native_format(config: Fields) -> str | None:
    """The format of a native folder, by `quantization` of its config.json; None of another one.

    Raises:
        ModelFileError: it is of a version or format that this package does not know.
    """
    quantization = config.raw("quantization")
    if not isinstance(quantization, dict) or "version" not in quantization:
        return None
    if config.raw("quantization_config") is not None:
        config.fail("quantization_config", "nothing beside quantization")
    native = config.object("quantization")
    if native.raw("version") != VERSION:
        native.fail("version", f"{VERSION}, of what `metal-marlin quantize` writes")
    format = native.choice("format", (*FORMATS, MIXED))
    if native.raw("tile_rows") != ROW_TILE:
        native.fail("tile_rows", f"{ROW_TILE}, the only tiles that kernels read")
    return format
