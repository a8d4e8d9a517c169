"""A matrix of each head out of one that has the rows of all heads (latent attention's kv_b_proj):
as rows, or turned round. Refuses to know devices.

Rows keep what they are stored as. What is turned is dense as it is stored, and float16 of what
another program has quantized along the columns: its scales are of rows then.
"""

import logging

import numpy as np

from marlin.errors import ModelFileError
from marlin.models.head_rows import HeadRows
from marlin.models.plan import check_dtype
from marlin.models.spec import Tensor
from marlin.weights import ggml_types
from marlin.weights.block_types import DENSE_KINDS
from marlin.weights.foreign import matrix
from marlin.weights.foreign.matrix import ForeignMatrix
from marlin.weights.kinds import ROW_TILE, Form
from marlin.weights.tensor_file import TensorInfo, read_bytes

_ELEMENTS: dict[str, type] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}

logger = logging.getLogger(__name__)


def find_heads(tensor: Tensor, tensors: dict[str, TensorInfo], reader) -> ForeignMatrix | None:
    """A matrix of each head, where the folder has one of all heads.

    Args:
        tensors: {name: TensorInfo}, what the folder holds.
        reader: of matrices that another program has quantized, or None.

    Raises:
        ModelFileError: that one has another shape or dtype.
    """
    assert tensor.stack is not None and tensor.stack.heads is not None, tensor
    rows = tensor.stack.heads
    whole = (tensor.shape[0] * rows.rows, tensor.shape[1 if rows.turned else 2])
    packed = reader.matrix(rows.name.removesuffix(".weight"), whole) if reader else None
    if packed is not None:
        return of_packed(tensor, rows, packed)
    info = tensors.get(rows.name)
    return None if info is None else of_dense(tensor, rows, info, whole)


def of_dense(
    tensor: Tensor, rows: HeadRows, info: TensorInfo, whole: tuple[int, int]
) -> ForeignMatrix:
    """Of one that is stored as elements; errors as find_heads()'s."""
    if info.shape != whole:
        message = f"has shape {list(info.shape)}; the config implies {list(whole)}"
        raise ModelFileError(info.path, message, tensor=info.name)
    check_dtype(info, DENSE_KINDS)
    element, columns = _ELEMENTS[info.dtype], whole[1]
    row_bytes, own = columns * np.dtype(element).itemsize, _own_rows(tensor, rows)

    def read(head):
        first = (head * rows.rows + rows.first) * row_bytes
        return read_bytes(info, first, own * row_bytes).view(element).reshape(own, columns)

    def stored(start, stop):
        return _rows_of_heads(tensor, rows, read, start, stop)

    def values(start, stop):
        found = stored(start, stop)
        return ggml_types.dequantize(info.dtype, found.view(np.uint8), found.shape)

    def arrays(start, stop):
        return (stored(start, stop),)

    return ForeignMatrix(_shape(tensor), (info,), Form(DENSE_KINDS[info.dtype]), values, arrays)


def of_packed(tensor: Tensor, rows: HeadRows, whole: ForeignMatrix) -> ForeignMatrix:
    """Of one that is repacked; errors as find_heads()'s."""
    own = _own_rows(tensor, rows)

    def read(head):
        first = head * rows.rows + rows.first
        return whole.values(first, first + own)

    def values(start, stop):
        return _rows_of_heads(tensor, rows, read, start, stop)

    are_tiles = rows.rows % ROW_TILE == 0 and rows.first % ROW_TILE == 0 and own % ROW_TILE == 0
    if rows.turned or not are_tiles:
        return as_floats(tensor, whole, values)

    def arrays(start, stop):
        made = []
        for head in range(start // own, -(-stop // own)):
            at = head * rows.rows + rows.first
            first, last = max(start - head * own, 0), min(stop - head * own, own)
            made.append(whole.arrays(at + first, at + last))
        return tuple(np.concatenate(parts) for parts in zip(*made, strict=True))

    return ForeignMatrix(_shape(tensor), whole.parts, whole.form, values, arrays)


def as_floats(tensor: Tensor, whole: ForeignMatrix, values) -> ForeignMatrix:
    """float16 of values(start, stop) of what is in `whole`, as the log says."""
    logger.info("%s of %s becomes float16", tensor.name, whole.info.name)
    return matrix.dense("f16", tensor.shape, whole.parts, values)


def _shape(tensor: Tensor) -> tuple[int, int]:
    heads, rows, columns = tensor.shape
    return heads * rows, columns


def _own_rows(tensor, rows):
    """Rows that a head's matrix is made of."""
    return tensor.shape[2 if rows.turned else 1]


def _rows_of_heads(tensor, rows, read, start, stop):
    """Rows [start, stop) of all heads' matrices, one below the other; read(head) gives the rows
    that a head's is made of."""
    size, parts = tensor.shape[1], []
    for head in range(start // size, -(-stop // size)):
        own = read(head).T if rows.turned else read(head)
        parts.append(own[max(start - head * size, 0) : stop - head * size])
    return np.ascontiguousarray(np.concatenate(parts))
