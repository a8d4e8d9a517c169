"""Writes the weights of a native folder: packed and dense tensors in safetensors files.

Owns the files' layout (docs/formats.md): every tensor starts on a multiple of ALIGNMENT bytes. All
sizes are known before the first byte is written, so tensors are filled in any order, in pieces,
from several threads, and nothing is held in memory. Refuses to know where the values come from.
"""

import json
import os
from dataclasses import dataclass
from typing import Any

from marlin.weights.kinds import KINDS, OF_ROWS, ROW_TILE, STEP_GROUPS, native_form
from marlin.weights.safetensors_file import INDEX_FILE, SINGLE_FILE, SafetensorsFile
from marlin.weights.tensor_file import num_tensor_bytes

VERSION = 1
# The format of a folder whose matrices take whichever of the kinds a mix is of.
MIXED = "mixed"
# Form.scale_bytes of what scales are stored as: those of rows are written, all are read.
SCALE_BYTES = {"F16": 2, "F32": 4, "I8": OF_ROWS}
# A cache line, and the largest vector a kernel loads.
ALIGNMENT = 64
# Tensors of this name fill what another leaves of an ALIGNMENT; safetensors allows no holes.
PADDING_PREFIX = "padding."
# With header and padding well below the largest buffer of a Mac with 8 GB, 4 GiB, so that a shard
# is mapped whole.
MAX_SHARD_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class NativeEntry:
    """One weight to be written.

    Attributes:
        name: for a packed weight the Hugging Face name without `.weight`, else the whole name.
        shape: (N, K) of a packed weight, any shape of a dense one.
        format: one of formats.FORMATS; "F32" for a dense one.
        group_size: of a packed weight; 0 for a dense one.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    group_size: int = 0

    def tensors(self):
        """{tensor name: (dtype, shape)} that the weight is stored as."""
        if not self.group_size:
            return {self.name: (self.format, self.shape)}
        kind, (num_rows, num_columns) = KINDS[self.format], self.shape
        form = native_form(self.format, self.group_size)
        parts = num_columns // self.group_size + (form.scale_bytes == OF_ROWS) * STEP_GROUPS
        dtype = next(name for name, size in SCALE_BYTES.items() if size == form.scale_bytes)
        scales = (dtype, (-(-num_rows // ROW_TILE), parts, ROW_TILE))
        codes = (kind.code_dtype, kind.code_shape(*self.shape))
        stored = {f"{self.name}.codes": codes, f"{self.name}.scales": scales}
        if form.has_bias:
            stored[f"{self.name}.biases"] = scales
        return stored

    @property
    def num_bytes(self):
        return sum(num_tensor_bytes(*stored) for stored in self.tensors().values())


def quantization_object(format, group_size):
    """`quantization` of the folder's config.json; what each weight became, its tensors tell."""
    return {"version": VERSION, "format": format, "group_size": group_size, "tile_rows": ROW_TILE}


class NativeWriter:
    """Creates the weight files of a folder and fills them.

    Args:
        folder: exists, and holds no weights but those that a writer of the same entries has left.
        entries: NativeEntry of every weight; none may lack its data when close() is called.
        max_shard_bytes: a file over this becomes several. One weight's tensors share a file.
    """

    def __init__(self, folder, entries, max_shard_bytes=MAX_SHARD_BYTES):
        shards = _split(entries, max_shard_bytes)
        self._files = []
        self._places = {}
        self._num_bytes = 0
        weight_map = {}
        for number, shard in enumerate(shards, 1):
            name = SINGLE_FILE
            if len(shards) > 1:
                name = f"model-{number:05}-of-{len(shards):05}.safetensors"
            stored = _with_padding(shard)
            self._create(os.path.join(folder, name), stored)
            weight_map |= dict.fromkeys(stored, name)
        if len(shards) > 1:
            index = {"metadata": {"total_size": self._num_bytes}, "weight_map": weight_map}
            with open(os.path.join(folder, INDEX_FILE), "w", encoding="utf-8") as file:
                json.dump(index, file, indent=1)

    def write(self, name, array, start_bytes=0):
        """Store a run of one tensor's bytes. Any thread; runs of one tensor do not overlap.

        Args:
            name: of the tensor (`….codes`), not of the weight.
            array: contiguous, of the tensor's dtype.
            start_bytes: where the run starts within the tensor.
        """
        file, offset, num_bytes = self._places[name]
        data = memoryview(array).cast("B")
        assert start_bytes + len(data) <= num_bytes, (name, start_bytes, len(data))
        position = offset + start_bytes
        while data:
            written = os.pwrite(file.fileno(), data, position)
            data, position = data[written:], position + written

    def sync(self):
        """Put on disk what was written."""
        for file in self._files:
            os.fsync(file.fileno())

    def close(self):
        """Put everything on disk, close the files, and have the library read back their headers.

        Raises:
            ModelFileError: what lies there is no safetensors file; the disk is at fault.
        """
        self.sync()
        for file in self._files:
            file.close()
        found = {file.name: SafetensorsFile(file.name).tensors for file in self._files}
        for name, (file, offset, _) in self._places.items():
            info = found[file.name].get(name)
            assert name.startswith(PADDING_PREFIX) or (info and info.offset == offset), name

    def _create(self, path, stored):
        header: dict[str, Any] = {"__metadata__": {"format": "marlin"}}
        offset = 0
        for name, (dtype, shape) in stored.items():
            end = offset + num_tensor_bytes(dtype, shape)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        # The format allows trailing spaces, and they put the first tensor on a boundary.
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        file = open(path, "r+b" if os.path.exists(path) else "wb")
        self._files.append(file)
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
        file.flush()
        self._num_bytes += offset
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                self._places[name] = file, 8 + len(text) + begin, end - begin


def _split(entries, max_shard_bytes):
    shards, size = [[]], 0
    for entry in entries:
        if shards[-1] and size + entry.num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.num_bytes
    return shards


def _with_padding(entries):
    stored, num_fillers = {}, 0
    for entry in entries:
        for name, (dtype, shape) in entry.tensors().items():
            stored[name] = dtype, shape
            if missing := -num_tensor_bytes(dtype, shape) % ALIGNMENT:
                stored[f"{PADDING_PREFIX}{num_fillers}"] = "U8", (missing,)
                num_fillers += 1
    return stored
