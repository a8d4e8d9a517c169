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
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
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
    """The ForeignMatrix that a reader finds in a folder's tensors; None without a reader, too."""
    write_tensors(folder / "model.safetensors", tensors)
    fields = file_fields(str(folder / "config.json"), config)
    reader = reader_of(fields, SafetensorsFile(folder / "model.safetensors").tensors)
    return reader and reader.matrix(stem, shape)


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
    return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4))).view("<u4")


def mlx_affine(values, bits, group_size, to_scale=bf16):
    """({part: tensor} of a module, the float32 matrix it stands for), by min and max."""
    groups = values.reshape(len(values), -1, group_size)
    low, span = groups.min(axis=2), np.ptp(groups, axis=2)
    scale, bias = bf16_values(span / (2**bits - 1)), bf16_values(low)
    codes = np.clip(np.rint((groups - bias[..., None]) / scale[..., None]), 0, 2**bits - 1)
    stored = bit_stream(codes.astype(np.uint8).reshape(values.shape), bits)
    parts = {"weight": stored, "scales": to_scale(scale), "biases": to_scale(bias)}
    return parts, (codes * scale[..., None] + bias[..., None]).reshape(values.shape)


def config(settings, **changes):
    return {"quantization_config": settings | changes}


def ct(format, num_bits=4, **weights):
    weights = {"num_bits": num_bits, "type": "int", "symmetric": True} | weights
    group = {"targets": ["Linear"], "weights": weights}
    settings = {"quant_method": "compressed-tensors", "format": format, "ignore": ["lm_head"]}
    return config(settings | {"config_groups": {"group_0": group}})


def parts_of(stored, **named):
    """{`m.NAME`: tensor} of a golden's arrays; `named` gives some of them another name or type."""
    return {f"m.{named.get(key, key)}": array for key, array in stored.items() if key != "values"}


def gptq_parts(bits, less, order=None, n=32, k=128, group_size=64):
    """(tensors, values) of random codes, as docs/formats.md says a GPTQ file stores them."""
    rng = np.random.default_rng(bits)
    order = np.arange(k) // group_size if order is None else order
    codes = rng.integers(0, 1 << bits, (n, k)).astype(np.uint8)
    zeros = rng.integers(1, (1 << bits) - 1, (k // group_size, n)).astype(np.uint8)
    scales = rng.uniform(0.01, 0.02, zeros.shape).astype(np.float16)
    tensors = {
        "m.qweight": bit_stream(codes, bits).T.copy().view(np.int32),
        "m.qzeros": bit_stream(zeros - np.uint8(less), bits).view(np.int32),
        "m.scales": scales,
        "m.g_idx": order.astype(np.int32),
    }
    grouped = scales.T[:, order].astype(np.float32)
    return tensors, grouped * (codes.astype(np.float32) - zeros.T[:, order])


def float8(shape, seed=0):
    """(bits of ordinary E4M3 numbers, their values), by the formula of docs/formats.md."""
    bits = np.random.default_rng(seed).integers(0, 126, shape).astype(np.uint8)
    exponent, mantissa = bits >> 3, (bits & 7).astype(np.float32)
    values = np.where(exponent == 0, mantissa / 512, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    return ("F8_E4M3", bits), values.astype(np.float32)


def original_parts(layout, n=24, k=128, group_size=64, rotate=0):
    """(tensors, values), as docs/formats.md says the original project stores them."""
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 16, (n, k)).astype(np.uint8)
    scales = rng.uniform(0.01, 0.02, (n, k // group_size)).astype(np.float16)
    values = E2M1[codes] * np.repeat(scales.astype(np.float32), group_size, axis=1)
    words = bit_stream(codes, 4)
    if layout == "A":
        tensors = {"m.weight": words.T.copy(), "m.weight.scales": scales.T.copy()}
    else:
        tensors = {"m.weight": words, "m.scales" if layout == "B2" else "m.weight.scales": scales}
    if layout != "B2":
        tensors["m.weight.group_size"] = np.array([group_size], np.int32)
    if rotate:
        tensors["m.weight.hadamard_block_size"] = np.array([rotate], np.int32)
        signs = [[(-1) ** bin(i & j).count("1") for j in range(rotate)] for i in range(rotate)]
        values = (values.reshape(-1, rotate) @ np.array(signs) / rotate**0.5).reshape(n, k)
    return tensors, values.astype(np.float32)
