"""Reads the header of a GGUF file (version 2 or 3, little-endian): metadata and tensor places.

Owns the byte format and refuses to know what the metadata means. No tensor data is read. Every
length, count and offset of the file is checked against the file before it is used, so that a
hostile file costs one ModelFileError and memory in proportion to its own size.
Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import os
import struct

import numpy as np

from marlin.errors import ModelFileError
from marlin.files.fields import file_fields
from marlin.files.regular import open_regular
from marlin.weights.block_types import GGUF_TYPES, UNREAD_GGUF_TYPES
from marlin.weights.tensor_file import TensorInfo, num_tensor_bytes

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_DIMS = 4
# The specification's own limits are 65535 bytes a key and 64 a tensor name; writers exceed the
# second.
MAX_KEY_BYTES = 65535
MAX_NAME_BYTES = 1024
# The smallest possible entry bounds a count before anything is allocated for it:
# key length 8 + key 1 + type 4 + value 1, and name length 8 + name 1 + num_dims 4 + dim 8 + type 4
# + offset 8.
MIN_METADATA_BYTES = 14
MIN_TENSOR_BYTES = 33

# Of the file at first; headers have some hundred kB, or 10 MB with a vocabulary.
READ_BYTES = 1 << 18

BOOL, STRING, ARRAY = 7, 8, 9
# By the numbers of the specification, in the letters of `struct`; those up to BOOL have no gap.
SCALARS = {
    kind: struct.Struct("<" + letter)
    for kind, letter in (*enumerate("BbHhIifB"), (10, "Q"), (11, "q"), (12, "d"))
}
U32, U64 = SCALARS[4], SCALARS[10]


class GGUFFile:
    """The header of one GGUF file.

    Attributes:
        path: the file.
        version: 2 or 3.
        metadata: {key: value}; numbers, bools and strings are Python's, an array of strings is a
            list, an array of numbers or bools is a read-only numpy array.
        tensors: {name: TensorInfo} in the file's order; shapes are outermost first, the file's
            reversed.

    Raises:
        ModelFileError: the file is not GGUF, is truncated, or says something that cannot be true.
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        with open_regular(self.path) as file:
            cursor = _Cursor(self.path, file)
            self.version = _read_version(cursor)
            num_tensors = cursor.count("tensor count", MIN_TENSOR_BYTES)
            num_entries = cursor.count("metadata count", MIN_METADATA_BYTES)
            self.metadata = _read_metadata(cursor, num_entries)
            self.tensors = _read_tensors(cursor, num_tensors, _alignment(self.path, self.metadata))


class _Cursor:
    """A position in the file; every read is checked against the end.

    The header is read and not mapped, so that a file which becomes shorter meanwhile is an error.
    """

    def __init__(self, path, file):
        self.path = path
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0
        self.data = b""  # from the start of the file, as far as it was needed
        self._file = file
        if self.size == 0:
            raise ModelFileError(path, "the file is empty")

    def reach(self, end):
        """The file's bytes to `end` at least, or to where it ends."""
        wanted = min(self.size, max(end, 2 * len(self.data), READ_BYTES))
        pieces = [self.data]
        missing = wanted - len(self.data)
        while missing > 0:
            try:
                piece = self._file.read(missing)
            except OSError as error:
                self.fail(f"cannot be read: {error.strerror}")
            if not piece:
                self.fail(f"became shorter than {wanted} bytes while it was read")
            pieces.append(piece)
            missing -= len(piece)
        self.data = b"".join(pieces)
        return self.data

    def fail(self, message, tensor=None):
        raise ModelFileError(self.path, f"{message} (at byte {self.position})", tensor=tensor)

    def take(self, num_bytes, what):
        end = self.position + num_bytes
        if end > self.size:
            left = self.size - self.position
            self.fail(f"truncated: {what} needs {num_bytes} bytes and {left} are left")
        if end > len(self.data):
            self.reach(end)
        chunk = self.data[self.position : end]
        self.position = end
        return chunk

    def scalar(self, layout, what):
        return layout.unpack(self.take(layout.size, what))[0]

    def count(self, what, min_bytes):
        """A u64 count of things of at least min_bytes each: what is left of the file bounds it."""
        value = self.scalar(U64, what)
        if value > (self.size - self.position) // min_bytes:
            self.fail(f"{what} is {value}, more than the rest of the file could hold")
        return value

    def string(self, what, max_bytes=None):
        length = self.scalar(U64, f"the length of {what}")
        if max_bytes is not None and not 0 < length <= max_bytes:
            self.fail(f"{what} is {length} bytes long; 1 to {max_bytes} are allowed")
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8")

    def strings(self, num_strings, what):
        """A run of strings. One tight loop: vocabularies and merge lists hold 10^5 of them."""
        data, position = self.data, self.position
        unpack, found = U64.unpack_from, []
        try:
            for _ in range(num_strings):
                start = position + 8
                if start > len(data):
                    data = self.reach(start)
                position = start + unpack(data, position)[0]
                if position > len(data):
                    if position > self.size:
                        self.fail(f"truncated: string {len(found)} of {what} runs past the end")
                    data = self.reach(position)
                found.append(data[start:position].decode())
        except UnicodeDecodeError:
            self.fail(f"string {len(found)} of {what} is not UTF-8")
        except struct.error:
            self.fail(f"truncated: {what} ends after {len(found)} of {num_strings} strings")
        self.position = position
        return found


def _read_version(cursor):
    if (magic := cursor.reach(4)[:4]) != MAGIC:
        cursor.fail(f"not a GGUF file: it starts with {magic!r}, expected {MAGIC!r}")
    cursor.position = 4
    version = cursor.scalar(U32, "version")
    if version in (2, 3):
        return version
    if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, 2, 3):
        cursor.fail("a big-endian GGUF file; only little-endian files are supported")
    cursor.fail(f"GGUF version {version}; versions 2 and 3 are supported")


def _read_metadata(cursor, num_entries):
    metadata = {}
    for _ in range(num_entries):
        key = cursor.string("a metadata key", MAX_KEY_BYTES)
        if key in metadata:
            cursor.fail(f"metadata key {key!r} appears twice")
        metadata[key] = _read_value(cursor, key)
    return metadata


def _read_value(cursor, key):
    """A number, a bool or a string, or an array of them."""
    what = f"metadata {key!r}"
    kind, part = cursor.scalar(U32, f"the type of {what}"), "value"
    if kind == ARRAY:
        kind, part = cursor.scalar(U32, f"the element type of {what}"), "element"
        if kind == ARRAY:
            cursor.fail(f"{what} is an array of arrays, which is not supported")
    if kind != STRING and kind not in SCALARS:
        cursor.fail(f"{what} has unknown {part} type {kind}")
    layout, length = SCALARS.get(kind, U64), 1
    if part == "element":
        length = cursor.count(f"the length of {what}", layout.size)
    if kind == STRING:
        return cursor.string(what) if part == "value" else cursor.strings(length, what)
    values = np.frombuffer(cursor.take(length * layout.size, what), np.dtype(layout.format))
    if kind == BOOL:
        if values.size and values.max() > 1:
            cursor.fail(f"{what} holds a bool with the value {values.max()}")
        values = values.view(np.bool_)
    return values if part == "element" else values[0].item()


def _alignment(path, metadata):
    fields = file_fields(path, metadata)
    alignment = fields.count("general.alignment", DEFAULT_ALIGNMENT, minimum=0)
    if not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        fields.fail("general.alignment", f"a power of two from 8 to {MAX_ALIGNMENT}")
    return alignment


def _read_tensors(cursor, num_tensors, alignment):
    entries = {}
    for _ in range(num_tensors):
        name = cursor.string("a tensor name", MAX_NAME_BYTES)
        if name in entries:
            cursor.fail("the name appears twice", name)
        entries[name] = _read_tensor_entry(cursor, name, alignment)
    data_start = -(-cursor.position // alignment) * alignment
    tensors = {}
    for name, (dtype, shape, offset, num_bytes) in entries.items():
        if data_start + offset + num_bytes > cursor.size:
            message = f"truncated: its data is bytes {data_start + offset} to"
            message += f" {data_start + offset + num_bytes}, and the file has {cursor.size}"
            raise ModelFileError(cursor.path, message, tensor=name)
        tensors[name] = TensorInfo(name, dtype, shape, data_start + offset, num_bytes, cursor.path)
    _check_no_overlap(tensors)
    return tensors


def _read_tensor_entry(cursor, name, alignment):
    num_dims = cursor.scalar(U32, "a dimension count")
    if not 1 <= num_dims <= MAX_DIMS:
        cursor.fail(f"{num_dims} dimensions; 1 to {MAX_DIMS} are allowed", name)
    dims = struct.unpack(f"<{num_dims}q", cursor.take(8 * num_dims, "dimensions"))
    if min(dims) < 1:
        cursor.fail(f"dimensions {list(dims)}; each must be at least 1", name)
    kind = cursor.scalar(U32, "a tensor type")
    if kind not in GGUF_TYPES:
        known = ", ".join(row.name for row in GGUF_TYPES.values())
        spelled = f"type {kind} ({UNREAD_GGUF_TYPES.get(kind, 'unknown')})"
        cursor.fail(f"{spelled} is not supported; {known} are", name)
    offset = cursor.scalar(U64, "a tensor offset")
    if offset % alignment:
        cursor.fail(f"offset {offset} is not a multiple of the alignment {alignment}", name)
    dtype, shape = GGUF_TYPES[kind].name, dims[::-1]
    try:
        num_bytes = num_tensor_bytes(dtype, shape)
    except ValueError as error:
        cursor.fail(str(error), name)
    return dtype, shape, offset, num_bytes


def _check_no_overlap(tensors):
    previous = None
    for info in sorted(tensors.values(), key=lambda info: info.offset):
        if previous and previous.offset + previous.num_bytes > info.offset:
            message = f"its data overlaps that of {previous.name!r}"
            raise ModelFileError(info.path, message, tensor=info.name)
        previous = info
