"""fp4 folders of the original metal-marlin, which say nothing of themselves in config.json: codes
packed along the inputs with outputs side by side (A) or row by row (B), told apart by their shapes.

Owns what can be made right: a rotation of the columns that is marked is undone, by float16. Folders
of act-order GPTQ cannot: their scales are not in the order that their codes were chosen with, and
the order is in no file. Source: docs/formats.md, "The original project".
"""

import os
from functools import partial

import numpy as np

from marlin.errors import ModelFileError
from marlin.files.fields import file_fields
from marlin.files.strict_json import read_json_object
from marlin.weights.foreign import float4, matrix, numbers
from marlin.weights.foreign.matrix import ForeignMatrix
from marlin.weights.tensor_file import TensorInfo, read_bytes

SETTINGS = "quantization_config.json"
FORMATS = ("marlin_fp4", "mmfp4", "mmfp4_e2m1_marlin")
SCALES = ("weight.scales", "scales")
_FLOATS = ("F16", "BF16", "F32")
MAX_HADAMARD = 1024


def is_original(tensors: dict[str, TensorInfo]) -> bool:
    """Whether some matrix of a folder is words of codes, with scales that are no bytes."""

    def has_scales(stem):
        found = (tensors.get(f"{stem}.{part}") for part in SCALES)
        return any(info is not None and info.dtype in _FLOATS for info in found)

    stems = (name.removesuffix(".weight") for name, info in tensors.items() if info.dtype == "U32")
    return any(has_scales(stem) and f"{stem}.biases" not in tensors for stem in stems)


class OriginalFp4:
    """See table.Reader.

    Args:
        folder: of the model.
    """

    name = "original fp4"

    def __init__(self, folder: str, tensors: dict[str, TensorInfo]):
        self._tensors = tensors
        path = os.path.join(folder, SETTINGS)
        if os.path.exists(path):
            settings = file_fields(path, read_json_object(path))
            settings.choice("format", FORMATS)
            if settings.flag("actorder", False):
                settings.fail("actorder", "false: its scales lost their order; quantize it anew")

    def matrix(self, stem: str, shape: tuple[int, ...]) -> ForeignMatrix | None:
        weight = self._tensors.get(f"{stem}.weight")
        if weight is None or weight.dtype != "U32":
            return None
        names = [f"{stem}.{part}" for part in SCALES]
        scales = next((self._tensors[name] for name in names if name in self._tensors), None)
        if scales is None:
            raise numbers.missing(weight, names[0])
        read, group_size = _layout(weight, scales, shape)
        parts: tuple[TensorInfo, ...] = weight, scales
        for part, expected in (("group_size", group_size), ("hadamard_block_size", None)):
            info = self._tensors.get(f"{stem}.weight.{part}")
            if info is None:
                continue
            said = _integer(info)
            parts += (info,)
            if expected is None:
                return _rotated(shape, parts, read, group_size, said)
            if said != expected:
                message = f"says {said}; the scales are of {expected} columns"
                raise ModelFileError(info.path, message, tensor=info.name)
        codes, factors = read
        return matrix.packed("fp4", shape, parts, codes, factors, group_size)

    def is_companion(self, name: str) -> bool:
        return False


def _layout(weight, scales, shape):
    """((codes, factors), group size) of layout A or B; scales decide where a matrix is square."""
    n, k = shape
    groups_a, groups_b = ((*scales.shape, 0, 0)[i] for i in (0, 1))
    if scales.dtype in _FLOATS and weight.shape == (n, k // 8) and scales.shape == (n, groups_b):
        if groups_b and k % groups_b == 0:

            def rows(start, stop):
                return numbers.row_floats(scales, start, stop), None

            return (partial(float4.nibbles, weight), rows), k // groups_b
    if scales.dtype in _FLOATS and weight.shape == (k // 8, n) and scales.shape == (groups_a, n):
        if groups_a and k % groups_a == 0:

            def codes(start, stop):
                return numbers.stream_codes(numbers.column_words(weight, start, stop), 4)

            def columns(start, stop):
                every = numbers.row_floats(scales, 0, groups_a)
                return np.ascontiguousarray(every[:, start:stop].T), None

            return (codes, columns), k // groups_a
    message = f"is {list(weight.shape)} beside scales {scales.dtype} {list(scales.shape)}; "
    message += f"neither layout of a matrix {[n, k]}"
    raise ModelFileError(weight.path, message, tensor=weight.name)


def _rotated(shape, parts, read, group_size, size):
    """The matrix whose rows were multiplied by a Hadamard matrix of `size` columns at a time; it is
    its own inverse."""
    info = parts[-1]
    if not 1 < size <= MAX_HADAMARD or size & (size - 1) or shape[1] % size:
        message = f"is {size}; expected a power of two that divides {shape[1]}"
        raise ModelFileError(info.path, message, tensor=info.name)
    codes, factors = read
    rotated = matrix.packed("fp4", shape, parts, codes, factors, group_size)
    hadamard = np.ones((1, 1), np.float32)
    while len(hadamard) < size:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    hadamard /= np.float32(np.sqrt(size))

    def values(start, stop):
        found = rotated.values(start, stop).reshape(-1, size)
        return (found @ hadamard).reshape(stop - start, -1)

    return matrix.dense("f16", shape, parts, values)


def _integer(info):
    numbers.check(info, ("I32",), (1,))
    return int(read_bytes(info).view("<i4")[0])
