"""Where the tensors of safetensors files lie: of one file, and of a folder whose weights are one
file or several shards.

The `safetensors` library opens every file and validates it; what is told here is what it found.
Owns the index of shards, and which headers are refused although the library takes them: repeated
keys, more dimensions or other types than are read here. Refuses to know what the tensors mean, and
reads none of their data. Source: https://github.com/huggingface/safetensors (README, "Format").
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from safetensors import SafetensorError, safe_open

from marlin.errors import ModelFileError
from marlin.files.regular import open_regular
from marlin.files.sealed import nameless_file
from marlin.files.strict_json import parse_json_object, read_json_object
from marlin.weights.block_types import BLOCK_TYPES
from marlin.weights.tensor_file import TensorInfo, num_tensor_bytes

# The library's own limit, held before the header is read.
MAX_HEADER_BYTES = 100_000_000
MAX_DIMS = 8
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# The block-quantized types are GGUF's alone.
DTYPES = frozenset(name for name, row in BLOCK_TYPES.items() if row.values == 1)


class SafetensorsFile:
    """The header of one safetensors file.

    Attributes:
        path: the file.
        metadata: {str: str}, the header's `__metadata__`.
        tensors: {name: TensorInfo} in the order of their data.

    Raises:
        ModelFileError: the file is truncated, or its header is malformed or does not fit its data.
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        raw, header, size = _strict_header(self.path)
        data_start = len(raw)
        try:
            with _stand_in(self.path, raw, size) as place, safe_open(place, "numpy") as opened:
                self.metadata: dict[str, str] = opened.metadata() or {}
                slices = {name: opened.get_slice(name) for name in opened.offset_keys()}
        except (SafetensorError, OSError) as error:
            raise _refusal(self.path, error, header, data_start, size) from None
        self.tensors: dict[str, TensorInfo] = {}
        for name, found in slices.items():
            # The library has checked that data follows data, without a hole, to the file's end.
            info = _tensor_info(self.path, name, found.get_dtype(), found.get_shape(), data_start)
            self.tensors[name] = info
            data_start += info.num_bytes


class SafetensorsFolder:
    """The weights of a Hugging Face folder: `model.safetensors`, or the shards its index names.

    Attributes:
        path: the folder.
        metadata: {str: str} of the single file; empty for shards.
        tensors: {name: TensorInfo}; each info's path is its shard.

    Raises:
        ModelFileError: no weights, a missing shard, a tensor that its shard lacks, or an index that
        names
            a file outside the folder.
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        single = os.path.join(self.path, SINGLE_FILE)
        index = os.path.join(self.path, INDEX_FILE)
        if os.path.exists(single):
            file = SafetensorsFile(single)
            self.metadata, self.tensors = file.metadata, file.tensors
        elif os.path.exists(index):
            self.metadata, self.tensors = {}, _sharded_tensors(self.path, index)
        else:
            raise ModelFileError(self.path, f"holds neither {SINGLE_FILE} nor {INDEX_FILE}")


@contextmanager
def _stand_in(path: str, raw: bytes, size: int) -> Iterator[str]:
    """A path that is as long as the file and has its header alone, where there can be one.

    The library maps what it opens: a file that is truncated in that moment would end the process by
    SIGBUS. Without data a stand-in takes no memory but the header's.
    """
    if not hasattr(os, "memfd_create"):
        yield path
        return
    fd = nameless_file("metal-marlin-header")
    try:
        os.write(fd, raw)
        os.ftruncate(fd, size)
    except OSError:  # files may not be as long here (RLIMIT_FSIZE)
        os.close(fd)
        yield path
        return
    try:
        yield f"/dev/fd/{fd}"
    finally:
        os.close(fd)


def _strict_header(path: str) -> tuple[bytes, dict[str, Any], int]:
    """(all up to the data, the header as strict JSON, bytes of the file)."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if size < 8:
            raise ModelFileError(path, f"{size} bytes; a safetensors file has at least 8")
        if length > MAX_HEADER_BYTES:
            message = f"header length {length} is over the limit of {MAX_HEADER_BYTES}"
            raise ModelFileError(path, message + "; is this a safetensors file?")
        if 8 + length > size:
            message = f"truncated: the header is {length} bytes and {size - 8} follow its length"
            raise ModelFileError(path, message)
        header = file.read(length)
    if len(header) < length:
        raise ModelFileError(path, "truncated: it became shorter while its header was read")
    return first + header, parse_json_object(path, header), size


def _refusal(path, error, header, data_start, size):
    """The library's complaint, with the tensor that it is about where that can be told."""
    reason = str(error).removeprefix("Error while deserializing header: ")
    message = f"not a valid safetensors file: {reason}"
    end = data_start + max((_data_offsets(entry)[1] for entry in header.values()), default=0)
    if end != size:
        message += f" (its tensors end at byte {end}, and it has {size})"
    tensor = next((name for name, entry in header.items() if not _fits(name, entry)), None)
    return ModelFileError(path, message, tensor=tensor)


def _data_offsets(entry):
    found: Any = entry.get("data_offsets") if isinstance(entry, dict) else None
    known = _are_sizes(found) and len(found) == 2
    return found if known else (0, 0)


def _fits(name, entry):
    """Whether an entry agrees with itself."""
    if name == "__metadata__":
        return True
    if not isinstance(entry, dict) or not _are_sizes(entry.get("shape")):
        return False
    begin, end = _data_offsets(entry)
    dtype = entry.get("dtype")
    known = isinstance(dtype, str) and dtype in DTYPES
    return known and num_tensor_bytes(dtype, entry["shape"]) == end - begin


def _are_sizes(value):
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _tensor_info(path, name, dtype, shape, offset):
    if dtype not in DTYPES:
        message = f"dtype {dtype!r} is not supported; {', '.join(sorted(DTYPES))} are"
        raise ModelFileError(path, message, tensor=name)
    if len(shape) > MAX_DIMS:
        raise ModelFileError(path, f"has {len(shape)} dimensions, over {MAX_DIMS}", tensor=name)
    return TensorInfo(name, dtype, tuple(shape), offset, num_tensor_bytes(dtype, shape), path)


def _sharded_tensors(folder, index):
    """The tensors of every shard that the index names: those that it omits, too."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(index, "weight_map must be an object {tensor: file}, not empty")
    for name, file_name in weight_map.items():
        _check_shard_name(index, name, file_name)
    tensors = {}
    for file_name in dict.fromkeys(weight_map.values()):
        for name, info in SafetensorsFile(os.path.join(folder, file_name)).tensors.items():
            if weight_map.get(name, file_name) != file_name:
                continue  # the index says which of two is meant
            if name in tensors:
                message = f"is in {os.path.basename(tensors[name].path)} and in {file_name}"
                raise ModelFileError(index, f"{message}, and the index names neither", tensor=name)
            tensors[name] = info
    for name, file_name in weight_map.items():
        if name not in tensors:
            message = f"the index places it in {file_name}, which does not hold it"
            raise ModelFileError(index, message, tensor=name)
    return tensors


def _check_shard_name(index, name, file_name):
    # One plain name inside the folder. Links are followed: download caches are made of them.
    plain = isinstance(file_name, str) and not set(file_name) & set("/\\\0")
    if not plain or not file_name.endswith(".safetensors") or file_name.startswith("."):
        message = f"{file_name!r} is not the plain name of a .safetensors file in this folder"
        raise ModelFileError(index, message, tensor=name)
