"""Gemma 3 where it differs from the other families: norms less 1, the file of a foreign writer."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_models import write_gguf
from pytorch import torch
from reference_models import GEMMA3, HalfCache, build, logits_of, with_weights
from safetensors.numpy import load_file, save_file
from test_native_folder import assert_near, convert, stored_weights
from tiny_models import (
    logits_by_chunks,
    logits_of_positions,
    random_tensor,
    random_tokens,
    running,
)
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from marlin.errors import ModelFileError
from marlin.models import plan_gguf
from marlin.models.plan_folder import plan_folder
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
    monkeypatch.setattr(plan_gguf, "config_from_gguf", lambda file: stated)
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


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory):
    """(folder, model) of a tiny model with a vision tower, as transformers writes it."""
    text = {"vocab_size": 97, "max_position_embeddings": 512, "num_hidden_layers": 2, **SIZES}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, **GEMMA3}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    images = {"mm_tokens_per_image": 4, "image_token_index": 96}
    config = Gemma3Config(text_config=text, vision_config=vision, **images)
    model, rng = Gemma3ForConditionalGeneration(config).eval(), np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in model.model.language_model.named_parameters():
            values = random_tensor(name, tuple(parameter.shape), rng)
            parameter.copy_(torch.from_numpy(values - np.float32("norm" in name)))
    folder = tmp_path_factory.mktemp("multimodal")
    model.save_pretrained(folder)
    return folder, model


def text_logits(model, token_ids):
    cache = HalfCache()
    with torch.no_grad():
        return model(torch.tensor([token_ids]), past_key_values=cache).logits[0].numpy()


def test_the_language_model_of_a_multimodal_folder_agrees_with_transformers(multimodal):
    folder, model = multimodal
    token_ids = random_tokens(80, 90)
    with running(folder, sequences=16) as runner:
        found = logits_of_positions(runner, token_ids)
    assert np.abs(found - text_logits(model, token_ids)).max() < 1e-3


@pytest.mark.parametrize("prefix", ["model.language_model.", "model."])
def test_the_other_names_of_its_tensors_give_the_same_bits(multimodal, prefix, tmp_path):
    folder, _ = multimodal
    tensors = {
        name.replace("language_model.model.", prefix): values
        for name, values in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copyfile(folder / "config.json", tmp_path / "config.json")
    logits = []
    for path in (folder, tmp_path):
        with running(path) as runner:
            logits.append(logits_by_chunks(runner, random_tokens(40, 90), [40])[39])
    np.testing.assert_array_equal(*logits)


def test_a_native_folder_of_a_multimodal_one_holds_the_language_model_alone(multimodal, tmp_path):
    folder, model = multimodal
    (folder / "tokenizer.json").write_text('{"model": {}}')
    native = convert(folder, tmp_path / "native", "int8", 32)
    names = SafetensorsFolder(native).tensors
    assert all(name.startswith(("model.layers.", "model.norm.", "model.embed_tokens."))
               for name in names if not name.startswith("padding."))  # fmt: skip
    token_ids = random_tokens(80, 90)
    with running(native, sequences=16) as runner:
        assert_near(logits_of_positions(runner, token_ids), text_logits(model, token_ids))


def test_a_tensor_under_two_names_is_refused(multimodal, tmp_path):
    folder, _ = multimodal
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["language_model.model.norm.weight"].copy()
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copyfile(folder / "config.json", tmp_path / "config.json")
    with pytest.raises(ModelFileError, match="is model.norm.weight of the language model, and"):
        plan_folder(str(tmp_path))
