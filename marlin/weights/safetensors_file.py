"""Reads safetensors headers: of one file, and of a folder whose weights are one file or several
shards.

Owns the byte format and the index of shards; refuses to know what the tensors mean, and reads none
of their data. Source: https://github.com/huggingface/safetensors (README, "Format").
"""

import os

from marlin.errors import ModelFileError
from marlin.files.strict_json import parse_json_object, read_json_object
from marlin.weights.tensor_file import BLOCK_SIZES, TensorInfo, mapped, num_tensor_bytes

# The reference implementation's own limit.
MAX_HEADER_BYTES = 100_000_000
MAX_DIMS = 8
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Safetensors spells its types as BLOCK_SIZES does; the block-quantized ones are GGUF's alone.
DTYPES = frozenset(name for name, (elements, _) in BLOCK_SIZES.items() if elements == 1)


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
        with mapped(self.path) as data:
            header_bytes = _header_length(self.path, data)
            header = parse_json_object(self.path, data[8 : 8 + header_bytes])
            data_start, size = 8 + header_bytes, len(data)
        self.metadata = _checked_metadata(self.path, header.pop("__metadata__", {}))
        infos = [_tensor_info(self.path, name, header[name], data_start) for name in header]
        infos.sort(key=lambda info: (info.offset, info.num_bytes))
        _check_coverage(self.path, infos, data_start, size)
        self.tensors = {info.name: info for info in infos}


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


def _header_length(path, data):
    if len(data) < 8:
        raise ModelFileError(path, f"{len(data)} bytes; a safetensors file has at least 8")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        message = f"header length {length} is over the limit of {MAX_HEADER_BYTES}"
        raise ModelFileError(path, message + "; is this a safetensors file?")
    if 8 + length > len(data):
        message = f"truncated: the header is {length} bytes and {len(data) - 8} follow its length"
        raise ModelFileError(path, message)
    return length


def _checked_metadata(path, metadata):
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ModelFileError(path, "__metadata__ must be an object of strings")
    return metadata


def _tensor_info(path, name, entry, data_start):
    def fail(message):
        raise ModelFileError(path, message, tensor=name)

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        fail("its entry must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        fail(f"dtype {dtype!r} is not supported; {', '.join(sorted(DTYPES))} are")
    if not _is_list_of_sizes(shape) or len(shape) > MAX_DIMS:
        fail(f"shape {shape!r:.80} is not a list of up to {MAX_DIMS} sizes")
    if not _is_list_of_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        fail(f"data_offsets {offsets!r:.80} are not [begin, end]")
    begin, end = offsets
    expected = num_tensor_bytes(dtype, shape)
    if end - begin != expected:
        fail(f"{dtype} {shape} takes {expected} bytes and data_offsets hold {end - begin}")
    return TensorInfo(name, dtype, tuple(shape), data_start + begin, expected, path)


def _is_list_of_sizes(value):
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 1 << 63 for item in value
    )


def _check_coverage(path, infos, data_start, size):
    """The tensors' data must follow one another from data_start to the end, no byte to spare."""
    position = data_start
    for info in infos:
        if info.offset != position:
            kind = "overlaps the tensor before it" if info.offset < position else "leaves a hole"
            message = f"its data starts at byte {info.offset} and {kind}; expected {position}"
            raise ModelFileError(path, message, tensor=info.name)
        position += info.num_bytes
        if position > size:
            message = f"truncated: its data ends at byte {position} and the file has {size}"
            raise ModelFileError(path, message, tensor=info.name)
    if position != size:
        raise ModelFileError(path, f"{size - position} bytes follow the last tensor's data")


def _sharded_tensors(folder, index):
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(index, "weight_map must be an object {tensor: file}, not empty")
    shards, tensors = {}, {}
    for name, file_name in weight_map.items():
        _check_shard_name(index, name, file_name)
        if file_name not in shards:
            shards[file_name] = SafetensorsFile(os.path.join(folder, file_name)).tensors
        if name not in shards[file_name]:
            message = f"the index places it in {file_name}, which does not hold it"
            raise ModelFileError(index, message, tensor=name)
        tensors[name] = shards[file_name][name]
    return tensors


def _check_shard_name(index, name, file_name):
    # One plain name inside the folder. Links are followed: download caches are made of them.
    plain = isinstance(file_name, str) and not set(file_name) & set("/\\\0")
    if not plain or not file_name.endswith(".safetensors") or file_name.startswith("."):
        message = f"{file_name!r} is not the plain name of a .safetensors file in this folder"
        raise ModelFileError(index, message, tensor=name)
