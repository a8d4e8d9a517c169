"""Reads a .metallib: its kernels' names, and each one's AIR as LLVM's text.

Owns Apple's container and the metadata that its compiler leaves about a kernel's arguments.
"""

import re
import struct
import subprocess
from typing import NamedTuple

DISASSEMBLER = "llvm-dis-19"
MAGIC = b"MTLB"
HEADER = struct.Struct("<8Q")  # offset and bytes of four parts, from byte 24 on
LIST, CODE = 0, 6  # of those numbers: the list of functions, their bitcode


class Argument(NamedTuple):
    """One parameter of a kernel: kind is buffer, threadgroup or builtin; index its slot, or the
    builtin's name."""

    kind: str
    index: int | str
    name: str
    type: str
    size: int
    is_read: bool


class MetalLib:
    """The bytes of a .metallib."""

    def __init__(self, data):
        assert data[:4] == MAGIC
        self._data = data
        parts = HEADER.unpack_from(data, 24)
        self._code, self.functions = parts[CODE], {}
        (count,) = struct.unpack_from("<I", data, parts[LIST])
        at = parts[LIST] + 4
        for _ in range(count):
            (size,) = struct.unpack_from("<I", data, at)
            entry = self._tags(at + 4)
            self.functions[entry["NAME"].rstrip(b"\0").decode()] = entry
            at += size

    def _tags(self, at):
        entry = {}
        while (tag := self._data[at : at + 4]) != b"ENDT":
            (size,) = struct.unpack_from("<H", self._data, at + 4)
            entry[tag.decode()] = self._data[at + 6 : at + 6 + size]
            at += 6 + size
        return entry

    def ir(self, name):
        """A kernel's module as text."""
        entry = self.functions[name]
        begin = self._code + struct.unpack("<3Q", entry["OFFT"])[2]
        (size,) = struct.unpack("<Q", entry["MDSZ"])
        code = self._data[begin : begin + size]
        command = [DISASSEMBLER, "-o", "-"]
        return subprocess.run(command, input=code, capture_output=True, check=True).stdout.decode()


def arguments_of(ir):
    """[Argument] in the order of the kernel's parameters."""
    nodes = dict(re.findall(r"^(![0-9]+) = (?:distinct )?!\{(.*)\}$", ir, re.M))
    root = re.search(r"^!air\.kernel = !\{(![0-9]+)\}", ir, re.M)[1]
    listed = nodes[nodes[root].split(",")[2].strip()]
    return [_argument(nodes[node.strip()]) for node in listed.split(",") if node.strip()]


def _argument(node):
    fields = re.findall(r'!"([^"]*)"|i32 (-?\d+)|(![0-9]+)', node)
    values = [text or (int(number) if number else other) for text, number, other in fields]

    def after(key, default=None):
        return values[values.index(key) + 1] if key in values else default

    words = [value for value in values[1:] if isinstance(value, str)]
    kind = next(w for w in words if w.startswith("air.") and w != "air.function_constant")
    name, type_name = after("air.arg_name", ""), after("air.arg_type_name", "")
    if kind != "air.buffer":
        return Argument("builtin", kind.removeprefix("air."), name, type_name, 4, True)
    place = "threadgroup" if after("air.address_space") == 3 else "buffer"
    size = after("air.arg_type_size", 1)
    return Argument(place, after("air.location_index"), name, type_name, size, "air.read" in words)
