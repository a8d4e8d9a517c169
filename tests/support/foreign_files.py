"""Quantized weights as other programs store them: files of raw tensors, the goldens of
tests/data/formats, and a folder as MLX writes it.

Encoders are written from docs/formats.md and share no code with the readers.
"""

import json
from pathlib import Path

import numpy as np

from marlin.files.fields import file_fields
from marlin.weights import formats, ggml_types
from marlin.weights.foreign.table import reader_of
from marlin.weights.safetensors_file import SafetensorsFile

GOLDENS = Path(__file__).parents[1] / "data" / "formats"
# What safetensors calls numpy's types; bfloat16 and float8 are given as their bits.
_NAMES = {"f4": "F32", "f2": "F16", "u4": "U32", "i4": "I32", "u1": "U8", "i1": "I8", "i8": "I64"}


def bf16(values):
    """The bits of float32 values, rounded to nearest even: a tensor that is said to be BF16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ("BF16", ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16))


def bf16_values(values):
    return (bf16(values)[1].astype(np.uint32) << 16).view(np.float32)


def write_tensors(path, tensors):
    """Write {name: array, or (dtype, array of its bits)} as a safetensors file."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        dtype, array = tensor if isinstance(tensor, tuple) else (None, tensor)
        raw = np.ascontiguousarray(array).tobytes()
        dtype = dtype or _NAMES[np.dtype(array.dtype).str[1:]]
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + data)


def golden(name):
    """{key: array} of one file."""
    with np.load(GOLDENS / f"{name}.npz") as file:
        return dict(file)


def matrix_of(folder, config, tensors, shape, stem="m"):
    """The ForeignMatrix that a reader finds in a folder's tensors."""
    write_tensors(folder / "model.safetensors", tensors)
    fields = file_fields(str(folder / "config.json"), config)
    reader = reader_of(fields, SafetensorsFile(folder / "model.safetensors").tensors)
    return reader.matrix(stem, shape)


def device_values(matrix):
    """What the arrays of a device stand for, float32 [N, K]."""
    form, (n, k) = matrix.form, matrix.shape
    arrays = matrix.arrays(0, n)
    assert sum(a.nbytes for a in arrays) == sum(form.part_bytes(n, k))
    if not form.group_size:
        return ggml_types.dequantize(form.kind.upper(), arrays[0].view(np.uint8), (n, k))
    codes, scales, *biases = arrays
    parts = codes, scales, biases[0] if biases else None
    return formats.dequantize(formats.PackedWeight(form.kind, (n, k), form.group_size, *parts))


def bit_stream(codes, bits):
    """uint32 words of rows of codes, each `bits` bits of a little-endian stream."""
    unpacked = (codes[:, :, None] >> np.arange(bits)) & 1
    packed = np.packbits(
        unpacked.reshape(len(codes), -1).astype(np.uint8), axis=1, bitorder="little"
    )
    return packed.view("<u4")


def mlx_affine(values, bits, group_size, to_scale=bf16):
    """({part: tensor} of a module, the float32 matrix it stands for), by min and max."""
    groups = values.reshape(len(values), -1, group_size)
    low, span = groups.min(axis=2), np.ptp(groups, axis=2)
    scale, bias = bf16_values(span / (2**bits - 1)), bf16_values(low)
    codes = np.clip(np.rint((groups - bias[..., None]) / scale[..., None]), 0, 2**bits - 1)
    stored = bit_stream(codes.astype(np.uint8).reshape(values.shape), bits)
    parts = {"weight": stored, "scales": to_scale(scale), "biases": to_scale(bias)}
    return parts, (codes * scale[..., None] + bias[..., None]).reshape(values.shape)
