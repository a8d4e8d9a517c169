"""Files of every foreign format with something changed in them: what they stand for, or one
sentence, and nothing else. METAL_MARLIN_FUZZ_CASES says how many of each format (20,000 take
minutes)."""

import copy
import os
import random
import shutil

import numpy as np
import pytest
from foreign_files import (
    AWQ,
    BNB,
    FP8,
    GPTQ,
    bf16,
    bit_stream,
    config,
    ct,
    float8,
    golden,
    gptq_parts,
    matrix_of,
    mlx_affine,
    original_parts,
    parts_of,
    write_tensors,
)
from test_foreign_folder import MLX

from marlin.errors import ModelFileError
from marlin.files.fields import file_fields
from marlin.models.plan_folder import plan_folder
from marlin.weights.foreign.hf_mxfp4 import HfMxfp4
from marlin.weights.foreign.table import reader_of
from marlin.weights.safetensors_file import SafetensorsFile

MODELOPT = {"quant_method": "modelopt"}
NUM_CASES = int(os.environ.get("METAL_MARLIN_FUZZ_CASES", "120"))
# Values for a field of JSON: of every type, at the edges of what readers expect.
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3, 4, 5, 8, 16, 31, 32, 48, 64, 128, 1 << 31, 1 << 64, 0.5),
    *(-0.0, 1e308, "", "4", "affine", "nvfp4", "mxfp8", "gptq_v2", [], [0], [1, 1], [128, 0]),
    *([64, 64, 64], {}, {"bits": 4}, {"group_size": 64, "bits": 8}, {"": None}),
)
DTYPES = ("F32", "F16", "BF16", "U8", "I8", "U32", "I32", "I64", "F8_E4M3", "F8_E5M2", "BOOL")


def mlx_case(mode):
    if mode == "affine":
        values = np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32)
        parts, _ = mlx_affine(values, 4, 64)
        return {"quantization": {"group_size": 64, "bits": 4}}, parts, (16, 128)
    stored = golden({"nvfp4": "mlx_nvfp4_global"}.get(mode, f"mlx_{mode}"))
    bits, group_size = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}[mode]
    shape = stored.pop("values").shape
    settings = {"group_size": group_size, "bits": bits, "mode": mode}
    return {"quantization": settings}, stored, shape


def ct_case(format):
    if format == "pack-quantized":
        codes = np.random.default_rng(0).integers(0, 16, (32, 64)).astype(np.uint8)
        parts = {
            "weight_packed": bit_stream(codes, 4).view(np.int32),
            "weight_scale": bf16(np.full((32, 2), 0.01)),
            "weight_zero_point": bit_stream(codes[:2, :32].copy(), 4).T.copy().view(np.int32),
            "weight_g_idx": np.repeat([1, 0], 32).astype(np.int32),
            "weight_shape": np.array([32, 64]),
        }
        return ct(format), parts, (32, 64)
    if format == "int-quantized":
        parts = {"weight": np.ones((20, 64), np.int8), "weight_zero_point": np.ones((20, 1), "i1")}
        return ct(format, 8), parts | {"weight_scale": bf16(np.full((20, 1), 0.01))}, (20, 64)
    stored = golden("modelopt_nvfp4")
    parts = {"weight_packed": stored["weight"], "weight_global_scale": np.ones(1, np.float32)}
    scales = ("F8_E4M3", stored["weight_scale_e4m3"])
    return ct(format), parts | {"weight_scale": scales}, stored["values"].shape


def bnb_case(name):
    stored = golden(name)
    shape = stored.pop("values").shape
    parts = {"weight": stored.pop("weight")}
    for key, array in stored.items():
        key = key.replace("quant_state__bitsandbytes", "quant_state.bitsandbytes")
        parts[f"weight.{key}"] = np.atleast_1d(array)
    return config(BNB), parts, shape


def fp8_case(settings, scale, shape):
    weight, _ = float8((20, 64))
    return settings, {"weight": weight, scale: np.ones(shape, np.float32)}, (20, 64)


def experts_case():
    stored = golden("hf_mxfp4")
    experts, rows, k = stored.pop("values").shape
    return config({"quant_method": "mxfp4"}), stored, (experts, rows // 2, k)


def modelopt_case():
    stored = golden("modelopt_nvfp4")
    parts = {"weight": stored["weight"], "weight_scale_2": stored["weight_scale_2"].reshape(1)}
    parts["weight_scale"] = ("F8_E4M3", stored["weight_scale_e4m3"])
    return config(MODELOPT | {"quant_algo": "NVFP4"}), parts, stored["values"].shape


def plain(tensors):
    return {name.removeprefix("m."): tensor for name, tensor in tensors.items()}


def gptq_case():
    tensors, values = gptq_parts(4, 1)
    return config(GPTQ), plain(tensors), values.shape


def awq_case():
    stored = golden("awq4")
    return config(AWQ), plain(parts_of(stored)), stored["values"].shape


def original_case(layout, rotate=0):
    tensors, values = original_parts(layout, rotate=rotate)
    return {}, plain(tensors), values.shape


CASES = {
    **{f"mlx {mode}": (mlx_case, mode) for mode in ("affine", "mxfp4", "nvfp4", "mxfp8")},
    **{
        f"compressed-tensors {format}": (ct_case, format)
        for format in ("pack-quantized", "int-quantized", "nvfp4-pack-quantized")
    },
    **{"gptq": (gptq_case,), "awq": (awq_case,), "bitsandbytes": (bnb_case, "bnb_nf4_double")},
    **{"bitsandbytes, plain": (bnb_case, "bnb_nf4"), "modelopt": (modelopt_case,)},
    "fp8": (fp8_case, config(FP8), "weight_scale_inv", (1, 1)),
    "fp8 of rows": (fp8_case, ct("float-quantized", 8, type="float"), "weight_scale", (20, 1)),
    "fp8 of modelopt": (fp8_case, config(MODELOPT | {"quant_algo": "FP8"}), "weight_scale", (1,)),
    **{"original A": (original_case, "A"), "original B rotated": (original_case, "B1", 64)},
    **{"original B2": (original_case, "B2"), "mxfp4 experts": (experts_case,)},
}


def objects_of(value):
    """Every object within a JSON value that has fields."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [value] if isinstance(value, dict) and value else []
    return found + [inner for item in items for inner in objects_of(item)]


def change_json(value, rng):
    """Another value, or none, in a field at any depth."""
    objects = objects_of(value)
    if not objects:
        return
    chosen = rng.choice(objects)
    name = rng.choice(sorted(chosen))
    if rng.random() < 0.2:
        del chosen[name]
    else:
        chosen[name] = copy.deepcopy(rng.choice(VALUES))


def change_tensor(tensors, rng):
    """A tensor dropped, renamed, of another type or shape, or with other bytes."""
    name = rng.choice(sorted(tensors))
    tensor = tensors.pop(name)
    dtype, array = tensor if isinstance(tensor, tuple) else (None, tensor)
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy()
    kind = rng.randrange(5)
    if kind == 0:
        return
    if kind == 1:
        tensors[name + rng.choice(["s", "_2", ".weight"])] = tensor
        return
    if kind == 2:  # other bytes: scales that are no numbers, groups that are not there
        at = rng.randrange(len(raw))
        raw[at : at + rng.randrange(1, 9)] = rng.choice([0, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        same = raw.view(array.dtype).reshape(array.shape)
        tensors[name] = (dtype, same) if dtype else same
        return
    if kind == 3:
        tensors[name] = (rng.choice(DTYPES), raw.reshape(rng.choice([1, 2, 4]), -1)) \
            if len(raw) % 4 == 0 else ("U8", raw)  # fmt: skip
        return
    shape = rng.choice([(1, *array.shape), array.shape[::-1], (array.size,), (array.size, 1)])
    tensors[name] = (dtype, array.reshape(shape)) if dtype else array.reshape(shape)


OTHER = {"other": np.zeros(1, np.float32)}


def read_module(folder, settings, parts, shape):
    tensors = {f"m.{part}": tensor for part, tensor in parts.items()}
    return matrix_of(folder, settings, tensors | OTHER, shape)


def read_experts(folder, settings, parts, shape):
    """The second of two matrices of each expert, whose rows take turns."""
    tensors = {f"m_{part}": tensor for part, tensor in parts.items()}
    write_tensors(folder / "model.safetensors", tensors | OTHER)
    tensors = SafetensorsFile(folder / "model.safetensors").tensors
    reader = reader_of(file_fields(str(folder / "config.json"), settings), tensors)
    return reader.fused("m", shape, 1, 2) if isinstance(reader, HfMxfp4) else None


def assert_one_sentence(error):
    text = str(error)
    assert text and "\n" not in text and len(text) < 1000, text


@pytest.mark.parametrize("name", CASES)
def test_a_changed_matrix_is_read_or_refused_in_one_sentence(name, tmp_path):
    make, *arguments = CASES[name]
    read = read_experts if make is experts_case else read_module
    rng, num_read = random.Random(name), 0
    for _ in range(NUM_CASES):
        settings, parts, shape = copy.deepcopy(make(*arguments))
        for _ in range(rng.randrange(1, 3)):
            if rng.random() < 0.5 and settings:
                change_json(settings, rng)
            elif parts:
                change_tensor(parts, rng)
        try:
            found = read(tmp_path, settings, parts, shape)
            if found is not None:
                found.arrays(0, shape[0])
                found.values(0, shape[0])
                num_read += 1
        except ModelFileError as error:
            assert_one_sentence(error)
    assert 0 < num_read < NUM_CASES  # some changes are harmless, most are not


def test_a_file_that_tensors_leave_is_refused(tmp_path):
    write_tensors(tmp_path / "model.safetensors", {"m.weight": np.zeros((2, 2), np.uint32)})
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-3])
    shutil.copyfile(MLX / "gemma3_text" / "config.json", tmp_path / "config.json")
    with pytest.raises(ModelFileError, match="model.safetensors"):
        plan_folder(str(tmp_path))
