"""Builds GGUF files byte by byte, for tests: well-formed ones, and ones a field of which lies."""

import struct

import numpy as np

TYPE_IDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14, "BF16": 30}
TYPE_IDS |= {"Q5_0": 6, "Q5_1": 7, "Q2_K": 10, "Q3_K": 11, "Q5_K": 13, "IQ4_NL": 20, "IQ4_XS": 23}
TYPE_IDS |= {"IQ2_XXS": 16, "IQ1_S": 19, "IQ3_S": 21, "TQ1_0": 34, "TQ2_0": 35, "NVFP4": 40}
TYPE_IDS |= {"Q1_0": 41, "Q2_0": 42, "MXFP4_PAIRS": 4, "MXFP4": 39}
VALUE_IDS = {"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7}
VALUE_IDS |= {"str": 8, "arr": 9, "u64": 10, "i64": 11, "f64": 12}
LAYOUTS = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f"}
LAYOUTS |= {"bool": "B", "u64": "Q", "i64": "q", "f64": "d"}


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def scalar(kind, value):
    return string(value) if kind == "str" else struct.pack("<" + LAYOUTS[kind], value)


def entry(key, kind, value):
    """One metadata entry; kind "arr:u32" is an array of u32."""
    if kind.startswith("arr:"):
        element = kind[4:]
        body = struct.pack("<IQ", VALUE_IDS[element], len(value))
        body += b"".join(scalar(element, item) for item in value)
        return string(key) + struct.pack("<I", VALUE_IDS["arr"]) + body
    return string(key) + struct.pack("<I", VALUE_IDS[kind]) + scalar(kind, value)


def tensor_entry(name, shape, type_id, offset):
    """One tensor's entry; shape is outermost first, as in numpy."""
    dims = shape[::-1]
    body = string(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return body + struct.pack("<IQ", type_id, offset)


def head(num_tensors, metadata, version=3, magic=b"GGUF"):
    """What a file begins with, before the entries of its tensors."""
    start = magic + struct.pack("<IQQ", version, num_tensors, len(metadata))
    return start + b"".join(entry(*item) for item in metadata)


def build(metadata=(), tensors=(), version=3, alignment=32, magic=b"GGUF"):
    """The bytes of a GGUF file.

    Args:
        metadata: (key, kind, value) of each entry.
        tensors: (name, dtype, shape, raw bytes) of each tensor.
    """
    metadata, tensors = list(metadata), list(tensors)
    start, data = head(len(tensors), metadata, version, magic), b""
    for name, dtype, shape, raw in tensors:
        start += tensor_entry(name, shape, TYPE_IDS[dtype], len(data))
        data += bytes(raw) + b"\0" * (-len(raw) % alignment)
    return start + b"\0" * (-len(start) % alignment) + data


def f32(array):
    return np.ascontiguousarray(array, "<f4").tobytes()
