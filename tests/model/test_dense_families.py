"""The dense families beyond the first, against transformers: its folders, and GGUF files that
llama.cpp's own converter wrote.
"""

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import transformers
from dense_families import FAMILIES, FEATURES
from gguf_models import write_gguf
from reference_models import VISION, build, logits_of
from test_parity import SENSITIVITY, TOLERANCE, assert_close
from tiny_models import logits_by_chunks, logits_of_positions, random_tokens, running

from marlin.models import plan_gguf
from marlin.models.registry import config_from_gguf, config_from_hf, family_of
from marlin.weights.gguf import GGUFFile

CASES = {name: (name, {}) for name in FAMILIES} | {
    "granite with biases, tied": (
        "granite",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "olmo2 with biases": ("olmo2", {"attention_bias": True}),
    "phi3 without longrope": (
        "phi3",
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    ),
    "gemma2 uncapped, tied": (
        "gemma2",
        {
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": True,
        },
    ),
    "exaone4 without windows": (
        "exaone4",
        {"sliding_window": None, "layer_types": ["full_attention"] * 2},
    ),
    "glm4 without biases, of wide heads": (
        "glm4",
        {"attention_bias": False, "head_dim": 256, "num_key_value_heads": 1},
    ),
}
LENGTH = 305
# Small models that llama.cpp's own converter wrote, with matrices in F16 since, and the logits of
# transformers for those weights.
CONVERTED = Path(__file__).parents[1] / "data" / "families"
FILES = sorted(path.with_suffix(".gguf") for path in CONVERTED.glob("*.npz"))
# What the converter leaves out: its own reader has another number built in.
UNSAID = {"gemma2": {"query_pre_attn_scalar": 24.0}}


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request, tmp_path_factory):
    """(folder, token ids, their reference logits)."""
    family, changes = CASES[request.param]
    model = build(family, **changes)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    token_ids = random_tokens(LENGTH, 97)
    return folder, token_ids, logits_of(model, token_ids)


def test_every_position_decoded_and_a_prefill_in_chunks_agree_with_transformers(case):
    folder, token_ids, expected = case
    with running(folder, sequences=16) as runner:
        decoded = logits_of_positions(runner, token_ids)
    assert_close(dict(enumerate(decoded)), expected)
    with running(folder) as runner:
        chunks = logits_by_chunks(runner, token_ids, [64, 33, 1, 2])
    assert max(chunks) == LENGTH - 1
    for position, logits in chunks.items():
        np.testing.assert_array_equal(logits, decoded[position])


def test_a_config_survives_being_written(case, tmp_path):
    config = config_from_hf(case[0])
    values = family_of(config).hf_config(config)
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert config_from_hf(tmp_path) == config


@functools.cache
def logits_with_every_feature(family):
    return logits_of(build(family), random_tokens(300, 97))


@pytest.mark.parametrize("family, change", FEATURES, ids=lambda value: "-".join(value))
def test_the_reference_would_show_a_feature_that_is_ignored(family, change):
    off = logits_of(build(family, **change), random_tokens(300, 97))
    assert np.abs(logits_with_every_feature(family) - off).max() > SENSITIVITY


@pytest.mark.parametrize("beta, original", [(0.0, 32), (0.3, 400)])
def test_the_reference_would_show_queries_that_do_not_grow(beta, original):
    model = build("ministral3")
    rope = model.config.rope_parameters
    other = build("ministral3", rope_parameters=rope | {"llama_4_scaling_beta": beta})
    if beta:
        other = build(
            "ministral3", rope_parameters=rope | {"original_max_position_embeddings": original}
        )
    token_ids = random_tokens(300, 97)
    on, off = (logits_of(model, token_ids) for model in (model, other))
    assert np.abs(on - off).max() > SENSITIVITY


def test_longrope_takes_its_short_factors_where_the_context_is_short(tmp_path):
    model = build("phi3", original_max_position_embeddings=64)
    model.save_pretrained(tmp_path)
    token_ids = random_tokens(64, 97)
    expected = logits_of(model, token_ids)
    with running(tmp_path, sequences=16, context=64) as runner:
        found = logits_of_positions(runner, token_ids)
    assert np.abs(found - expected).max() < TOLERANCE
    with running(tmp_path, sequences=16, context=80) as runner:
        found = logits_of_positions(runner, token_ids)
    assert np.abs(found - expected).max() > SENSITIVITY


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_of_llama_cpps_converter_gives_the_logits_of_transformers(path, monkeypatch):
    stated = replace(config_from_gguf(GGUFFile(path)), **UNSAID.get(path.stem, {}))
    monkeypatch.setattr(plan_gguf, "config_from_gguf", lambda file: stated)
    data = np.load(path.with_suffix(".npz"))
    token_ids, expected = data["ids"].tolist(), data["logits"]
    context = 512 if stated.rope_scaling.type != "longrope" else len(token_ids)
    with running(path, sequences=len(token_ids), context=-(-context // 16) * 16) as runner:
        found = logits_of_positions(runner, token_ids)
    assert np.abs(found - expected).max() < TOLERANCE * max(1, expected.std())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_config_of_such_a_file_survives_as_config_json(path, tmp_path):
    config = config_from_gguf(GGUFFile(path))
    (tmp_path / "config.json").write_text(json.dumps(family_of(config).hf_config(config)))
    assert config_from_hf(tmp_path) == config


def test_a_glm4_file_of_the_gguf_package_agrees_with_transformers(tmp_path):
    model = build("glm4")
    write_gguf(tmp_path / "m.gguf", model, lambda name: "F32", {"rope.dimension_count": 16})
    token_ids = random_tokens(120, 97)
    with running(tmp_path / "m.gguf", sequences=16) as runner:
        found = logits_of_positions(runner, token_ids)
    assert np.abs(found - logits_of(model, token_ids)).max() < TOLERANCE


@pytest.mark.parametrize("family", ["mistral", "ministral3"])
def test_the_language_model_of_a_mistral3_wrapper_agrees_with_transformers(family, tmp_path):
    text = build(family)
    config = transformers.Mistral3Config(
        text_config=text.config.to_dict(),
        vision_config=VISION | {"model_type": "pixtral", "image_size": 28, "patch_size": 14},
        tie_word_embeddings=False,
    )
    model = transformers.Mistral3ForConditionalGeneration(config).eval()
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    model.save_pretrained(tmp_path)
    token_ids = random_tokens(120, 97)
    with running(tmp_path, sequences=16) as runner:
        found = logits_of_positions(runner, token_ids)
    assert np.abs(found - logits_of(text, token_ids)).max() < TOLERANCE
    assert config_from_hf(tmp_path).architecture == family


def test_every_family_has_such_a_file_or_another_proof():
    files = {config_from_gguf(GGUFFile(path)).architecture for path in FILES}
    # OLMo 2 is OLMo 3's file without a window; GLM-4's is the one above.
    assert files == FAMILIES.keys() - {"olmo2", "glm4"}
