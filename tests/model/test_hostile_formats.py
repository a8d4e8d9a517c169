"""Files of every foreign format with something changed in them: what they stand for, or one
sentence, and nothing else. METAL_MARLIN_FUZZ_CASES says how many of each format (20,000 take
minutes)."""

import copy
import os
import random
import shutil

import numpy as np
import pytest
from foreign_files import config, golden, matrix_of, write_tensors
from foreign_matrices import MATRICES, matrix
from test_foreign_folder import MLX

from marlin.errors import ModelFileError
from marlin.files.fields import file_fields
from marlin.models.plan_folder import plan_folder
from marlin.weights.foreign.hf_mxfp4 import HfMxfp4
from marlin.weights.foreign.table import reader_of
from marlin.weights.safetensors_file import SafetensorsFile

NUM_CASES = int(os.environ.get("METAL_MARLIN_FUZZ_CASES", "60"))
# Values for a field of JSON: of every type, at the edges of what readers expect.
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3, 4, 5, 8, 16, 31, 32, 48, 64, 128, 1 << 31, 1 << 64, 0.5),
    *(-0.0, 1e308, "", "4", "affine", "nvfp4", "mxfp8", "gptq_v2", [], [0], [1, 1], [128, 0]),
    *([64, 64, 64], {}, {"bits": 4}, {"group_size": 64, "bits": 8}, {"": None}),
)
DTYPES = ("F32", "F16", "BF16", "U8", "I8", "U32", "I32", "I64", "F8_E4M3", "F8_E5M2", "BOOL")


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


def experts():
    stored = golden("hf_mxfp4")
    experts, rows, k = stored.pop("values").shape
    return config({"quant_method": "mxfp4"}), stored, (experts, rows // 2, k)


@pytest.mark.parametrize("name", [*MATRICES, "mxfp4 experts"])
def test_a_changed_matrix_is_read_or_refused_in_one_sentence(name, tmp_path):
    if name in MATRICES:
        read, (whole, tensors, values) = read_module, matrix(name)
        shape = values.shape
    else:
        read, (whole, tensors, shape) = read_experts, experts()
    assert read(tmp_path, whole, tensors, shape) is not None
    rng, num_read = random.Random(name), 0
    for _ in range(NUM_CASES):
        settings, parts = copy.deepcopy(whole), dict(tensors)
        for _ in range(rng.randrange(1, 3)):
            if rng.random() < 0.5 and settings:
                change_json(settings, rng)
            elif parts:
                change_tensor(parts, rng)
        try:
            found = read(tmp_path, settings, parts, shape)
            if found is not None:
                found.arrays(0, found.shape[0])
                found.values(0, found.shape[0])
                num_read += 1
        except ModelFileError as error:
            assert_one_sentence(error)
    assert num_read < NUM_CASES  # some changes are harmless, most are not


def test_a_file_that_tensors_leave_is_refused(tmp_path):
    write_tensors(tmp_path / "model.safetensors", {"m.weight": np.zeros((2, 2), np.uint32)})
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-3])
    shutil.copyfile(MLX / "gemma3_text" / "config.json", tmp_path / "config.json")
    with pytest.raises(ModelFileError, match="model.safetensors"):
        plan_folder(str(tmp_path))
