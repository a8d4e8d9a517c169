"""Gemma 3 where it differs from the other families: norms less 1, the file of a foreign writer."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_models import write_gguf
from reference_models import build, logits_of, with_weights
from test_native_folder import assert_near, convert, stored_weights
from tiny_models import (
    logits_of_positions,
    random_tokens,
    running,
)

from marlin.models import checkpoint_gguf
from marlin.models.registry import config_from_gguf, config_from_hf
from marlin.weights.gguf import GGUFFile
from marlin.weights.safetensors_file import SafetensorsFolder
from marlin.weights.tensor_file import read_bytes

# A random model as llama.cpp's own converter wrote it, and the float32 logits of transformers.
DATA = Path(__file__).parents[1] / "data" / "gemma3_text"
# Of logits whose rms is 5: keys and values are float16 in the cache and float32 in the reference.
TOLERANCE = 4e-3
SIZES = {"hidden_size": 128, "intermediate_size": 256, "tie_word_embeddings": True}


def test_a_file_of_llama_cpps_converter_gives_the_logits_of_transformers(monkeypatch):
    config = config_from_gguf(GGUFFile(DATA / "model.gguf"))
    # The converter leaves out what its own reader has built in: every sixth layer is full, and
    # scores are scaled by the heads' size. This tiny model has neither.
    assert config.windows == (6, 6, 6, 6) and config.query_pre_attn_scalar == 32
    stated = replace(config, windows=(6, None, 6, None), query_pre_attn_scalar=24.0)
    monkeypatch.setattr(checkpoint_gguf, "config_from_gguf", lambda file: stated)
    token_ids, expected = (np.load(DATA / f"{name}.npy") for name in ("ids", "logits"))
    with running(DATA / "model.gguf", sequences=len(token_ids)) as runner:
        found = logits_of_positions(runner, token_ids.tolist())
    assert expected.std() > 5 and np.abs(found - expected).max() < TOLERANCE


@pytest.mark.parametrize("format", ["fp4", "int4", "int8"])
def test_a_native_folder_of_a_gguf_file_is_that_of_the_folder_it_was_made_from(format, tmp_path):
    model = build("gemma3", **SIZES)
    model.save_pretrained(tmp_path / "source")
    write_gguf(tmp_path / "m.gguf", model, lambda name: "F32", has_tokenizer=True)
    ours = convert(tmp_path / "source", tmp_path / "a", format, 32)
    theirs = convert(tmp_path / "m.gguf", tmp_path / "b", format, 32)
    expected, found = (SafetensorsFolder(folder).tensors for folder in (ours, theirs))
    assert found.keys() == expected.keys()
    for name, info in expected.items():
        values = [read_bytes(tensor) for tensor in (info, found[name])]
        if name.endswith("norm.weight"):
            # w + 1 - 1 in float32: half a unit of the sum's last place may be lost.
            values = [part.view(np.float32) for part in values]
            np.testing.assert_allclose(*values, rtol=0, atol=2**-23, err_msg=name)
        else:
            np.testing.assert_array_equal(*values, err_msg=name)


@pytest.mark.parametrize("format", ["fp4", "int4", "int8"])
def test_a_native_folder_of_a_gguf_file_agrees_with_transformers(format, tmp_path):
    model = build("gemma3", **SIZES)
    write_gguf(tmp_path / "m.gguf", model, lambda name: "F32", has_tokenizer=True)
    folder = convert(tmp_path / "m.gguf", tmp_path / "native", format, 32)
    token_ids = random_tokens(120, 97)
    expected = logits_of(with_weights(model, stored_weights(folder, model)), token_ids)
    with running(folder, sequences=16) as runner:
        assert_near(logits_of_positions(runner, token_ids), expected)


def test_the_config_of_a_gguf_file_survives_as_config_json(tmp_path):
    model = build("gemma3", **SIZES)
    write_gguf(tmp_path / "m.gguf", model, lambda name: "F32", has_tokenizer=True)
    folder = convert(tmp_path / "m.gguf", tmp_path / "native", "int8", 32)
    before, after = config_from_gguf(GGUFFile(tmp_path / "m.gguf")), config_from_hf(folder)
    assert before == after and before.windows == (33, None)
    assert json.loads((folder / "config.json").read_text())["query_pre_attn_scalar"] == 24
