"""bench/make_model.py: what it writes is read as the model that it says, and answers something."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_models import logits_of_positions, running

from marlin.models.plan_gguf import plan_gguf
from marlin.models.registry import config_from_gguf
from marlin.text.gguf_tokenizer import tokenizer_from_gguf
from marlin.weights.gguf_parts import read_gguf

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
import make_model

sys.path.pop(0)
SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 700,
    "moe_intermediate_size": 256,
    "num_experts": 8,
    "num_local_experts": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 64,
    "full_attention_interval": 2,
}
MADE = [("qwen3-30b-a3b", "Q4_K", "Q6_K"), ("qwen2.5-3b", "Q4_0", "Q8_0"),
        ("gpt-oss-20b", "MXFP4", "Q8_0"),
        ("gemma-3-4b", "Q4_0", "Q4_1"), ("qwen3.5-4b", "Q4_K", "Q6_K")]  # fmt: skip


@pytest.mark.parametrize("model, type, edge", MADE)
def test_a_made_model_is_read_as_it_was_asked_for(model, type, edge, tmp_path):
    known = make_model.MODELS[model][2]
    small = {name: value for name, value in SMALL.items() if name in known or "exp" not in name}
    if model == "gemma-3-4b":
        small["query_pre_attn_scalar"] = small["head_dim"]
    config = make_model.config_of(model, **small)
    path = tmp_path / "made.gguf"
    num_bytes = make_model.write(path, config, model, make_model.MODELS[model][0], type, edge)
    assert path.stat().st_size == num_bytes
    file = read_gguf(str(path))
    found = config_from_gguf(file)
    # A GGUF file's numbers are float32, and it names the end token that config.json here does not.
    assert found.rms_norm_eps == pytest.approx(config.rms_norm_eps)
    same = {"eos_token_ids": (), "rms_norm_eps": 1.0}
    if model == "qwen3.5-4b":  # heads are in the same numbers, in the order that GGUF files have
        assert found.delta[:4] == config.delta[:4] and found.delta.tiled
        same["delta"] = config.delta
    assert replace(found, **same) == replace(config, **same)
    roles = {at.tensor.role: at.info.dtype for at in plan_gguf(file)[1] if at.tensor.is_matrix}
    assert (roles["mlp"], roles["attention"], roles.get("router", "F32")) == (type, edge, "F32")
    tokenizer = tokenizer_from_gguf(file.metadata, str(path))
    token_ids = tokenizer.encode("The shape of a model, and nothing else.")
    assert tokenizer.decode(token_ids) == "The shape of a model, and nothing else."
    with running(path, sequences=16) as runner:
        logits = logits_of_positions(runner, token_ids[:8])
    assert np.isfinite(logits).all() and 0.2 < logits.std() < 5
    assert np.abs(logits[0] - logits[-1]).max() > 0.1


@pytest.mark.parametrize("dtype", ["Q4_1", "Q8_0", "Q4_K", "MXFP4"])
def test_values_of_every_kind_have_the_size_that_is_asked_for(dtype, tmp_path):
    values = make_model.Values(dtype, 0.02)
    with open(tmp_path / "values", "wb") as file:
        values.write(file, 210 * 144 * 34 * 2, np.random.default_rng(1))
    raw = np.fromfile(tmp_path / "values", np.uint8)
    layout, decode = make_model.ggml_types.DECODERS[dtype]
    found = decode(raw[: raw.size // layout.itemsize * layout.itemsize].view(layout))
    assert abs(found.mean()) < 0.003
    assert 0.014 < found.std() < 0.029
