"""The experts of a layer in a folder: one tensor or one an expert, in whatever order of rows, as
the matrices of all experts one below the other. Refuses to know devices.

A tensor that holds them as kernels read them is found by name alone and used in place; what is said
here is how the others are put together, once, when the model is loaded.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from marlin.errors import ModelFileError
from marlin.models.plan import check_dtype, check_found
from marlin.models.plan_heads import as_floats, find_heads
from marlin.models.spec import Tensor
from marlin.weights import ggml_types
from marlin.weights.block_types import DENSE_KINDS
from marlin.weights.foreign.hf_mxfp4 import HfMxfp4
from marlin.weights.foreign.matrix import ForeignMatrix
from marlin.weights.kinds import ROW_TILE, Form
from marlin.weights.tensor_file import TensorInfo, read_bytes

_ELEMENTS: dict[str, type] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


@dataclass(frozen=True, slots=True)
class Pieces:
    """Equal pieces of rows that lie one below the other.

    Attributes:
        size: rows of a piece.
        read: read(piece) is its elements as stored, [size, columns].
    """

    size: int
    read: Callable[[int], np.ndarray]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of all of them."""
        parts = []
        for piece in range(start // self.size, -(-stop // self.size)):
            first = piece * self.size
            parts.append(self.read(piece)[max(start - first, 0) : stop - first])
        return np.ascontiguousarray(np.concatenate(parts))


def find_stack(path: str, tensor: Tensor, tensors: dict, reader) -> ForeignMatrix | None:
    """What all experts have, where no tensor holds it as kernels read it.

    Args:
        path: of the folder.
        tensors: {name: TensorInfo}, what the folder holds.
        reader: of matrices that another program has quantized, or None.

    Returns:
        None where a tensor of its own name holds it, or nothing does.

    Raises:
        ModelFileError: a part is missing, or of another shape or dtype.
    """
    stack = tensor.stack
    assert stack is not None, tensor
    stem = tensor.name.removesuffix(".weight")
    if tensor.name in tensors or f"{stem}.codes" in tensors:
        return None
    if stack.heads is not None:
        return find_heads(tensor, tensors, reader)
    if stack.single and reader is not None:
        if (found := _packed_singles(path, tensor, reader)) is not None:
            return found
    if stack.single and stack.single.format(0) in tensors:
        return _dense_singles(path, tensor, tensors)
    if stack.fused and isinstance(reader, HfMxfp4) and tensor.is_matrix:
        return reader.fused(stack.fused, tensor.shape, stack.part, stack.num_parts)
    if stack.fused in tensors:
        return _fused(tensor, tensors[stack.fused])
    return None


def find_packed(tensor: Tensor, stem: str, reader) -> ForeignMatrix | None:
    """A matrix that another program has quantized, by its stem; None where it has not. Those of
    heads that do not begin with a tile of rows each become float16."""
    found = reader.matrix(stem, tensor.shape)
    if found is None or tensor.stack is None or tensor.stack.heads is None:
        return found
    return found if tensor.shape[1] % ROW_TILE == 0 else as_floats(tensor, found, found.values)


def _packed_singles(path, tensor, reader):
    """Matrices that another program has quantized one by one; None where it has not."""
    count, rows, columns = tensor.shape if tensor.is_matrix else (0, 0, 0)
    stems = [tensor.stack.single.format(expert).removesuffix(".weight") for expert in range(count)]
    found = [reader.matrix(stem, (rows, columns)) for stem in stems]
    if not found or found[0] is None:
        return None
    for stem, matrix in zip(stems, found, strict=True):
        if matrix is None or matrix.form != found[0].form:
            message = "is not stored as expert 0's is, to which its rows would be put"
            raise ModelFileError(path, message, tensor=stem)

    def pieces(start, stop):
        """(matrix, its first row, the row behind its last) of rows [start, stop)."""
        for expert in range(start // rows, -(-stop // rows)):
            first = expert * rows
            yield found[expert], max(start - first, 0), min(stop - first, rows)

    def values(start, stop):
        return np.concatenate([one.values(*part) for one, *part in pieces(start, stop)])

    def arrays(start, stop):
        made = [one.arrays(*part) for one, *part in pieces(start, stop)]
        return tuple(np.concatenate(parts) for parts in zip(*made, strict=True))

    parts = tuple(info for matrix in found for info in matrix.parts)
    return ForeignMatrix(tensor.rows, parts, found[0].form, values, arrays)


def _dense_singles(path, tensor, tensors):
    count, *shape = tensor.shape
    names = [tensor.stack.single.format(expert) for expert in range(count)]
    infos = []
    for name in names:
        info = tensors.get(name)
        if info is None:
            message = f"is missing; the config implies {count} experts"
            raise ModelFileError(path, message, tensor=name)
        _check(info, tuple(shape))
        infos.append(info)
    if len({info.dtype for info in infos}) > 1:
        message = f"is {infos[-1].dtype}, and expert 0's is {infos[0].dtype}"
        raise ModelFileError(infos[-1].path, message, tensor=infos[-1].name)
    element = _ELEMENTS[infos[0].dtype]

    def read(expert):
        return read_bytes(infos[expert]).view(element).reshape(shape)

    return _dense(tensor, tuple(infos), Pieces(shape[0], read))


def _fused(tensor, info):
    """Part of a tensor [experts, parts * rows, columns], or [experts, columns, rows * parts] whose
    parts take turns; of biases, without columns."""
    stack, (count, rows, *columns) = tensor.stack, tensor.shape
    all_rows = rows * stack.num_parts
    inner = [*columns, all_rows] if stack.transposed else [all_rows, *columns]
    _check(info, (count, *inner))
    element = _ELEMENTS[info.dtype]
    size = math.prod(inner) * np.dtype(element).itemsize

    def read(expert):
        values = read_bytes(info, expert * size, size).view(element).reshape(inner)
        if stack.transposed:
            values = values[..., stack.part :: stack.num_parts].T
        else:
            values = values[stack.part * rows : (stack.part + 1) * rows]
        return values.reshape(-1, tensor.shape[-1])

    return _dense(tensor, (info,), Pieces(rows if columns else 1, read))


def _check(info: TensorInfo, shape: tuple[int, ...]) -> None:
    if info.shape != shape:
        message = f"has shape {list(info.shape)}; the config implies {list(shape)}"
        raise ModelFileError(info.path, message, tensor=info.name)
    check_dtype(info, DENSE_KINDS)


def _dense(tensor, infos, pieces):
    """Elements as they are stored."""
    dtype = infos[0].dtype

    def values(start, stop):
        rows = pieces.rows(start, stop)
        return ggml_types.dequantize(dtype, rows.view(np.uint8), rows.shape)

    def arrays(start, stop):
        return (pieces.rows(start, stop),)

    return ForeignMatrix(tensor.rows, infos, Form(DENSE_KINDS[dtype]), values, arrays)


def check_tiles(tensor: Tensor, kind: str, info: TensorInfo) -> None:
    """Packed experts begin with a tile of rows each.

    Raises:
        ModelFileError: these would not.
    """
    if tensor.stack and kind not in DENSE_KINDS.values() and tensor.shape[1] % ROW_TILE:
        message = f"has experts of {tensor.shape[1]} rows, expected a multiple of {ROW_TILE}"
        raise ModelFileError(info.path, message, tensor=info.name)


def stem_of(tensor: Tensor, tensors: dict) -> str:
    """The name that the folder has for a tensor, without ".weight"."""
    other = tensor.stack.stacked if tensor.stack else tensor.also
    return (other if other in tensors else tensor.name).removesuffix(".weight")


def find_plain(path: str, tensor: Tensor, stem: str, tensors: dict) -> TensorInfo | None:
    """The TensorInfo of what is stored as it is, or None of an optional one that is absent."""
    name = f"{stem}.weight" if tensor.name.endswith(".weight") else stem
    info = tensors.get(name)
    if info is not None and tensor.stack and info.shape == tensor.rows:
        info = replace(info, shape=tensor.shape)
    return info if check_found(path, tensor, name, info, DENSE_KINDS) else None
