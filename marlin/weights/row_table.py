"""Matrices of which rows of tokens are read where they lie: never a copy of them in memory, and no
buffer of a device, which would hold them whole.

Owns what stays open for that. Refuses to know what rows are for.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import BinaryIO

import numpy as np

from marlin.errors import ModelFileError
from marlin.weights import ggml_types
from marlin.weights.foreign.matrix import ForeignMatrix
from marlin.weights.tensor_file import TensorInfo


@dataclass(frozen=True, slots=True)
class HeldTensor(TensorInfo):
    """A tensor whose file stays open, so that it is read whatever lies at its path later."""

    file: BinaryIO

    def read(self, start: int, num_bytes: int) -> np.ndarray:
        """As TensorInfo.read(), and from several threads."""
        raw, got = np.empty(num_bytes, np.uint8), 0
        try:
            while got < num_bytes:
                at = self.offset + start + got
                count = os.preadv(self.file.fileno(), [raw[got:].data], at)
                if count == 0:
                    message = f"ends at byte {at}, before its tensor does"
                    raise ModelFileError(self.path, message, tensor=self.name)
                got += count
        except OSError as error:
            message = f"cannot be read: {error.strerror}"
            raise ModelFileError(self.path, message, tensor=self.name) from error
        return raw


def hold(info: TensorInfo) -> TensorInfo:
    """The same tensor, held open; one that is made of pieces of another stays as it is."""
    if type(info) is not TensorInfo:
        return info
    values = {field.name: getattr(info, field.name) for field in fields(TensorInfo)}
    try:
        return HeldTensor(**values, file=open(info.path, "rb", buffering=0))
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        raise ModelFileError(info.path, message, tensor=info.name) from error


class RowTable:
    """A matrix [rows, columns] in its file.

    Args:
        info: how it is stored, row after row.
        foreign: of one that another program has quantized.
    """

    def __init__(self, info: TensorInfo, foreign: ForeignMatrix | None = None):
        self._info, self._foreign = info, foreign
        self.num_rows, self.num_columns = foreign.shape if foreign else info.shape

    def rows(self, indices: Sequence[int]) -> np.ndarray:
        """float32 [len(indices), columns].

        Raises:
            ModelFileError: the file was cut short, or holds what is no finite number.
        """
        if self._foreign is not None:
            return np.concatenate([self._foreign.values(row, row + 1) for row in indices])
        info = self._info
        size = info.num_bytes // self.num_rows
        raw = np.concatenate([info.read(row * size, size) for row in map(int, indices)])
        return ggml_types.dequantize(info.dtype, raw, (len(indices), self.num_columns))
