"""How foreign writers store numbers: streams of codes, one-byte floats, and rows of a tensor.

Owns these and no layout of any one writer. Sources: OCP Microscaling Formats v1.0 (E2M1, E4M3,
E8M0); the rest is arithmetic.
"""

import math
import os
from collections.abc import Collection

import numpy as np

from marlin.errors import ModelFileError
from marlin.weights import ggml_types, rounding
from marlin.weights.tensor_file import TensorInfo, read_bytes

# By byte; 0x7F and 0xFF are no numbers.
E4M3 = np.where(np.arange(256) % 128 == 127, np.float32("nan"), rounding.E4M3)


def row_bytes(info: TensorInfo, start: int, stop: int) -> np.ndarray:
    """uint8 [stop - start, bytes of a row]; all dimensions but the last count as rows."""
    num_rows = math.prod(info.shape[:-1])
    size = info.num_bytes // num_rows if num_rows else 0
    return read_bytes(info, start * size, (stop - start) * size).reshape(stop - start, size)


def row_floats(info: TensorInfo, start: int, stop: int) -> np.ndarray:
    """float32 [stop - start, columns] of a plain floating type."""
    raw = row_bytes(info, start, stop)
    return ggml_types.dequantize(info.dtype, raw, (stop - start, info.shape[-1]))


def column_bytes(info: TensorInfo, start: int, stop: int) -> np.ndarray:
    """uint8 [rows, (stop - start) * bytes of an element]: these columns of all rows."""
    num_rows, num_columns = info.shape
    size = info.num_bytes // (num_rows * num_columns)
    if 4 * (stop - start) >= num_columns:
        return row_bytes(info, 0, num_rows)[:, start * size : stop * size]
    found = np.empty((num_rows, (stop - start) * size), np.uint8)
    with open(info.path, "rb", buffering=0) as file:
        for row, wanted in enumerate(found):
            at = info.offset + (row * num_columns + start) * size
            if os.preadv(file.fileno(), [wanted.data], at) != len(wanted):
                raise ModelFileError(info.path, "became shorter", tensor=info.name)
    return found


def stream_codes(rows: np.ndarray, bits: int) -> np.ndarray:
    """Codes of a row's little-endian bit stream: uint8 [rows, bytes] to uint8 [rows, codes].

    Eight codes are `bits` bytes, whatever the words that a file says they are; what ends within
    them goes on with zeros.
    """
    if bits == 8:
        return rows
    if rest := -rows.shape[1] % bits:
        rows = np.pad(rows, ((0, 0), (0, rest)))
    eights = rows.reshape(len(rows), -1, bits)
    word_type: type = np.uint32 if bits <= 4 else np.uint64
    words = np.zeros(eights.shape[:2], word_type)
    for index in range(bits):
        words |= eights[:, :, index].astype(word_type) << word_type(8 * index)
    codes = np.empty((*words.shape, 8), np.uint8)
    for index in range(8):
        codes[:, :, index] = words >> word_type(bits * index) & word_type((1 << bits) - 1)
    return codes.reshape(len(rows), -1)


def column_words(info: TensorInfo, start: int, stop: int) -> np.ndarray:
    """Words [start, stop) of all rows, as rows of bytes: uint8 [stop - start, 4 * rows].

    A column of words becomes a row: what is packed along the first dimension is then a stream.
    """
    words = column_bytes(info, start, stop)
    return np.ascontiguousarray(words.view("<u4").T).view(np.uint8)


def floats(info: TensorInfo, raw: np.ndarray) -> np.ndarray:
    """All values of a plain floating type, float32 in its shape."""
    return ggml_types.dequantize(info.dtype, raw, info.shape)


def scalar(info: TensorInfo, share: float = 1.0) -> np.float32:
    """The number of a tensor of one, times `share`."""
    if int(np.prod(info.shape)) != 1:
        message = f"has shape {list(info.shape)}, expected one number"
        raise ModelFileError(info.path, message, tensor=info.name)
    found = ggml_types.dequantize(info.dtype, read_bytes(info), (1,))[0]
    with np.errstate(all="ignore"):
        return found * np.float32(share)


def inverse(info: TensorInfo) -> np.float32:
    """1 over the number of a tensor of one, or what is no finite number."""
    with np.errstate(all="ignore"):
        return np.float32(1) / scalar(info)


def missing(beside: TensorInfo, name: str) -> ModelFileError:
    """The error of a tensor that another one needs."""
    return ModelFileError(beside.path, f"is missing beside {beside.name}", tensor=name)


def check(info: TensorInfo, dtypes: Collection[str], shape: tuple[int, ...]) -> TensorInfo:
    """Refuse a tensor of another type or shape."""
    if info.dtype not in dtypes or info.shape != shape:
        expected = f"{' or '.join(dtypes)} {list(shape)}"
        message = f"is {info.dtype} {list(info.shape)}, expected {expected}"
        raise ModelFileError(info.path, message, tensor=info.name)
    return info


def words(info: TensorInfo, count: int, bits: int) -> int:
    """Words of 32 bits that so many codes of a tensor fill; refuses what fills no whole one."""
    if count * bits % 32:
        message = f"packs {count} codes of {bits} bits, which fill no whole words of 32"
        raise ModelFileError(info.path, message, tensor=info.name)
    return count * bits // 32
