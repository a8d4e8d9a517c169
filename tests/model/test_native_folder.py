"""Folders that `metal-marlin quantize` wrote, against transformers running the weights in them."""

import numpy as np
import pytest
from reference_models import build, logits_of, with_weights
from tiny_models import (
    INSTRUCTION_SETS,
    logits_by_chunks,
    logits_of_positions,
    random_tokens,
    running,
)

from marlin.commands.quantize import quantize
from marlin.models.checkpoint import open_checkpoint
from marlin.weights import ggml_types
from marlin.weights.formats import FORMATS, PackedWeight, dequantize
from marlin.weights.safetensors_file import SafetensorsFolder
from marlin.weights.tensor_file import read_bytes

# Activations are rounded to int8: as for GGUF, see test_gguf_parity.py.
INT8_RMS, INT8_MAX = 0.03, 0.16
# 97 and 200 rows are no multiple of the 16 that a tile holds.
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 48,
    "vocab_size": 97,
}
NUMPY_TYPES = {
    "U8": np.uint8,
    "U32": np.uint32,
    "I8": np.int8,
    "F16": np.float16,
    "F32": np.float32,
}


def bits_of(codes, shape):
    return codes.nbytes * 8 // (-(-shape[0] // 16) * 16 * shape[1])


def stored_weights(folder, model, four_bits="fp4"):
    """{Hugging Face name: float32 array} of a native folder, by numpy alone; four_bits is the
    format of codes of 4 bits without biases."""
    tensors = SafetensorsFolder(folder).tensors

    def array(name):
        if name not in tensors:
            return None
        info = tensors[name]
        return read_bytes(info).view(NUMPY_TYPES[info.dtype]).reshape(info.shape)

    found = {}
    for name, parameter in model.named_parameters():
        stem, shape = name.removesuffix(".weight"), tuple(parameter.shape)
        if name in tensors:
            info = tensors[name]
            found[name] = ggml_types.dequantize(info.dtype, read_bytes(info), shape)
            continue
        parts = {part: array(f"{stem}.{part}") for part in ("codes", "scales", "biases")}
        format = {4: four_bits, 5: "int5", 6: "int6", 8: "int8"}[bits_of(parts["codes"], shape)]
        if parts["biases"] is not None and format != "int5":
            format = "int4"
        steps = 2 if parts["scales"].dtype == np.int8 else 0
        group_size = shape[1] // (parts["scales"].shape[1] - steps)
        found[name] = dequantize(PackedWeight(format, shape, group_size, **parts))
    return found


def assert_near(found, expected):
    errors = (found - expected) / expected.std()
    assert errors.std() < INT8_RMS
    assert np.abs(errors).max() < INT8_MAX


def convert(source, destination, format, group_size):
    quantize(source, destination, format, group_size, progress=lambda done, total: None)
    return destination


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("format", FORMATS)
def test_a_native_folder_agrees_with_transformers_running_its_weights(format, group_size, tmp_path):
    model = build("llama", **SIZES)
    model.save_pretrained(tmp_path / "source")
    folder = convert(tmp_path / "source", tmp_path / "native", format, group_size)
    token_ids = random_tokens(80, 97)
    stored = stored_weights(folder, model, "fp4" if format == "fp4" else "iq4")
    expected = logits_of(with_weights(model, stored), token_ids)
    with running(folder, sequences=16) as runner:
        assert_near(logits_of_positions(runner, token_ids), expected)
        found = logits_by_chunks(runner, token_ids, [33])
    assert_near(np.stack(list(found.values())), expected[list(found)])


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
def test_a_native_folder_of_each_family_runs_on_each_instruction_set(family, isa, tmp_path):
    changes = {"tie_word_embeddings": True}
    if family == "llama":
        changes |= {"attention_bias": True, "mlp_bias": True}
    model = build(family, **SIZES, **changes)
    model.save_pretrained(tmp_path / "source")
    folder = convert(tmp_path / "source", tmp_path / "native", "fp4", 64)
    token_ids = random_tokens(80, 97)
    expected = logits_of(with_weights(model, stored_weights(folder, model)), token_ids)
    with running(folder, isa=isa, sequences=16) as runner:
        assert_near(logits_of_positions(runner, token_ids), expected)


def test_a_matrix_that_groups_do_not_divide_gets_smaller_ones_and_is_run(tmp_path):
    model = build("llama", **SIZES | {"intermediate_size": 160})
    model.save_pretrained(tmp_path / "source")
    folder = convert(tmp_path / "source", tmp_path / "native", "int4", 128)
    names = SafetensorsFolder(folder).tensors
    assert "model.layers.0.mlp.down_proj.weight" not in names
    token_ids = random_tokens(80, 97)
    expected = logits_of(with_weights(model, stored_weights(folder, model)), token_ids)
    with running(folder, sequences=16) as runner:
        assert_near(logits_of_positions(runner, token_ids), expected)


def test_the_folder_states_its_format(tmp_path):
    build("llama", **SIZES).save_pretrained(tmp_path / "source")
    folder = convert(tmp_path / "source", tmp_path / "native", "fp4", 32)
    with running(folder) as runner:
        assert open_checkpoint(folder, runner.device).format == "fp4"
        assert open_checkpoint(tmp_path / "source", runner.device).format == "safetensors"
