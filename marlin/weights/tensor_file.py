"""What every file of tensors has in common: where a tensor lies, and opening such a file safely.

Knows nothing of any one file format, of models or of devices; block_types.py has the dtypes.
"""

from dataclasses import dataclass

import numpy as np

from marlin.errors import ModelFileError
from marlin.weights.block_types import BLOCK_TYPES


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor's place in a file. Its bytes are [offset, offset + num_bytes) of `path`.

    Attributes:
        name: the file's own name of it.
        dtype: a key of block_types.BLOCK_TYPES.
        shape: dimensions, outermost first; a matrix that maps K inputs to N outputs is (N, K).
        offset: bytes from the start of the file.
        num_bytes: its length; the reader has checked that it fits the file and agrees with dtype
            and shape.
        path: the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int
    path: str

    def read(self, start: int, num_bytes: int) -> np.ndarray:
        """A copy of bytes [start, start + num_bytes), which it has; raises as read_bytes()."""
        raw = np.empty(num_bytes, np.uint8)
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset + start)
                got = file.readinto(raw.data)
        except OSError as error:
            message = f"cannot be read: {error.strerror}"
            raise ModelFileError(self.path, message, tensor=self.name) from error
        if got != num_bytes:
            place = f"{num_bytes} bytes expected at byte {self.offset + start}"
            raise ModelFileError(self.path, f"{place}, the file holds {got}", tensor=self.name)
        return raw


def num_tensor_bytes(dtype, shape):
    """Bytes that `shape` (outermost first) takes as `dtype`.

    Raises:
        ValueError: the innermost dimension is not whole blocks.
    """
    block = BLOCK_TYPES[dtype]
    innermost = shape[-1] if shape else 1
    if innermost % block.values:
        raise ValueError(
            f"{dtype} rows are whole blocks of {block.values} values; a row here has {innermost}"
        )
    total = innermost // block.values * block.bytes
    for dim in shape[:-1]:
        total *= dim
    return total


def read_bytes(info, start=0, num_bytes=None):
    """Copy part of a tensor's bytes out of its file.

    Args:
        info: TensorInfo.
        start: first byte, counted from the tensor's own start.
        num_bytes: how many; None is all that follow.

    Returns:
        uint8 [num_bytes].

    Raises:
        ModelFileError: the file went away or became shorter since its header was read.
    """
    wanted = info.num_bytes - start if num_bytes is None else num_bytes
    assert 0 <= start and 0 <= wanted and start + wanted <= info.num_bytes, (info, start, wanted)
    return info.read(start, wanted)
