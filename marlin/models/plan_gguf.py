"""GGUF files: which tensors there are, and where those that are repacked or put in another order
will lie, before any of them is read. Refuses to know devices.
"""

import math
from dataclasses import dataclass, replace

from marlin.errors import ModelFileError
from marlin.models.plan import check_found, check_leftovers, split_fused
from marlin.models.plan_experts import check_tiles
from marlin.models.registry import config_from_gguf, spec_of
from marlin.models.slab_plan import SlabPlan
from marlin.models.spec import ModelSpec, Tensor
from marlin.weights.block_types import BLOCK_TYPES, DENSE_KINDS, REPACKED, BlockType
from marlin.weights.gguf import GGUFFile
from marlin.weights.gguf_writers import Apart
from marlin.weights.tensor_file import TensorInfo, read_bytes

_MATRIX_TYPES = (*DENSE_KINDS, *REPACKED)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of a GGUF file.

    Attributes:
        form: its type, if it is repacked.
        slab, offset: where it will lie, if repacked or put in another order; slab is -1 of what is
            used in place or copied.
        factor: what all of its values are multiplied by.
    """

    tensor: Tensor
    info: TensorInfo
    form: BlockType | None
    slab: int = -1
    offset: int = 0
    factor: float = 1.0

    @property
    def part_bytes(self) -> tuple[int, int, int]:
        """Bytes of the codes (or values), scales and biases of a matrix on the device."""
        return self.form.part_bytes(*self.info.shape) if self.form else (self.info.num_bytes, 0, 0)


def plan_gguf(file: GGUFFile) -> tuple[ModelSpec, list[GgufTensor], list[int]]:
    """Find every tensor of the model in a file.

    Returns:
        (the model, its tensors, bytes of each slab).

    Raises:
        ModelFileError: header or tensors cannot be read, or contradict each other.
    """
    spec = spec_of(config_from_gguf(file))
    tensors = split_fused(spec, file.tensors, "gguf")
    plan, slabs, known = [], SlabPlan(), set()
    for tensor in spec.tensors:
        found = tensors.get(tensor.gguf)
        dtypes = _MATRIX_TYPES if tensor.has_rows else DENSE_KINDS
        if not check_found(file.path, tensor, tensor.gguf, found, dtypes):
            continue
        info = tensors[tensor.gguf]
        if tensor.is_matrix:
            check_tiles(tensor, BLOCK_TYPES[info.dtype].kind, info)
            info = replace(info, shape=tensor.rows)
        planned = GgufTensor(tensor, info, REPACKED.get(info.dtype) if tensor.is_matrix else None)
        if tensor.is_matrix and (planned.form or tensor.rope_heads or isinstance(info, Apart)):
            place = slabs.place(sum(planned.part_bytes))
            factor = _factor(file, tensor, info, known)
            planned = GgufTensor(tensor, info, planned.form, *place, factor)
        plan.append(planned)
    known |= {planned.info.name for planned in plan}
    check_leftovers(spec, tensors, known)
    return spec, plan, slabs.sizes


def _factor(file, tensor, info, known):
    """The number that a matrix of NVFP4 is multiplied by; names of what says it become known."""
    stem = tensor.gguf.removesuffix(".weight")
    known.add(f"{stem}.input_scale")  # of activations, where they are rounded to four bits, too
    said = file.tensors.get(f"{stem}.scale")
    if said is None or info.dtype != "NVFP4":
        return 1.0
    if said.dtype != "F32" or said.shape != (1,):
        message = f"is {said.dtype} {list(said.shape)}, expected F32 [1]"
        raise ModelFileError(said.path, message, tensor=said.name)
    factor = float(read_bytes(said).view("<f4")[0])
    if not math.isfinite(factor):
        raise ModelFileError(said.path, f"is {factor}", tensor=said.name)
    known.add(said.name)
    return factor
