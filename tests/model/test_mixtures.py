"""Mixtures of experts against transformers, from its folders, from GGUF files that llama.cpp's own
converter wrote, and from folders of the project; and the same bits in any company."""

import json
from pathlib import Path

import numpy as np
import pytest
from mixture_families import FEATURES, MIXTURES
from reference_models import build, logits_of
from test_native_folder import convert
from test_parity import SENSITIVITY, assert_close
from tiny_models import (
    INSTRUCTION_SETS,
    logits_by_chunks,
    logits_of_positions,
    random_tokens,
    running,
)

from marlin.models.registry import config_from_hf, family_of

CASES = {name: (name, {}) for name in MIXTURES} | {
    "glm4_moe of one group, without biases and norms": (
        "glm4_moe",
        {"n_group": 1, "topk_group": 1, "use_qk_norm": False, "attention_bias": False},
    ),
    "deepseek_v3 of one group, whose halves turn and queries have no smaller row": (
        "deepseek_v3",
        {"n_group": 1, "topk_group": 1, "rope_interleave": False, "q_lora_rank": None},
    ),
    "qwen3_moe not normalized, tied": (
        "qwen3_moe",
        {"norm_topk_prob": False, "tie_word_embeddings": True, "decoder_sparse_step": 2},
    ),
}
LENGTH = 150


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request, tmp_path_factory):
    """(folder, token ids, their reference logits)."""
    family, changes = CASES[request.param]
    model = build(family, **changes)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    token_ids = random_tokens(LENGTH, model.config.vocab_size)
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


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_each_instruction_set_agrees_with_transformers(case, isa):
    folder, token_ids, expected = case
    with running(folder, isa=isa, sequences=16) as runner:
        found = logits_of_positions(runner, token_ids[:40])
    assert_close(dict(enumerate(found)), expected)


def test_a_config_survives_being_written(case, tmp_path):
    config = config_from_hf(case[0])
    values = family_of(config).hf_config(config)
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert config_from_hf(tmp_path) == config


@pytest.mark.parametrize("family, change", FEATURES, ids=lambda value: "-".join(value))
def test_the_reference_would_show_a_feature_that_is_ignored(family, change):
    token_ids = random_tokens(100, 97)
    on, off = (logits_of(build(family, **changes), token_ids) for changes in ({}, change))
    assert np.abs(on - off).max() > SENSITIVITY


# Of the logits' deviation: keys and values are float16 in the cache and float32 in the reference,
# and activations of packed weights are int8 on a CPU.
CONVERTED = Path(__file__).parents[1] / "data" / "families"
FILES = {"qwen3_moe": 2.5e-3, "glm4_moe": 2.5e-3, "qwen2_moe": 2.5e-3, "mixtral": 2.5e-3}
FILES |= dict.fromkeys(("glm4_moe_lite", "deepseek_v3"), 2.5e-3)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_llama_cpp_s_converter_gives_the_logits_of_transformers(name):
    token_ids = np.load(CONVERTED / f"{name}.ids.npy").reshape(-1)
    expected = np.load(CONVERTED / f"{name}.logits.npy").reshape(len(token_ids), -1)
    with running(CONVERTED / f"{name}.gguf", sequences=16) as runner:
        found = logits_of_positions(runner, token_ids.tolist())
    assert np.abs(found - expected).max() < FILES[name] * expected.std()


# What rounding weights and activations adds, of the logits' deviation, in the middle position: in a
# few, a token chooses another expert.
ROUNDING = {"int8": 0.03, "int4": 0.35, "fp4": 0.45}
# gpt-oss weights what it chose by the chosen logits alone, so that another expert weighs more; here
# the first token chooses one, whose key and value all others see. Of latent attention queries and
# values pass two matrices each, and so are rounded twice.
_TWICE = {"int8": 0.045, "int4": 0.5, "fp4": 0.6}
OF_FAMILY = {"gpt_oss": {"int8": 0.045}, "glm4_moe_lite": _TWICE, "deepseek_v3": _TWICE}


@pytest.mark.parametrize("format", ROUNDING)
@pytest.mark.parametrize("family", MIXTURES)
def test_a_folder_that_quantize_wrote_gives_nearly_the_same_logits(family, format, tmp_path):
    names = ("intermediate", "moe_intermediate", "shared_expert_intermediate")
    model = build(family, hidden_size=128, **{f"{name}_size": 64 for name in names})
    model.save_pretrained(tmp_path / "original")
    token_ids = random_tokens(60, 97)
    convert(tmp_path / "original", tmp_path / "made", format, 32)
    with running(tmp_path / "made", sequences=16) as runner:
        found = logits_of_positions(runner, token_ids)
        named = runner.model.weights.items()
        kinds = {found.kind for name, found in named if ".experts." in name and "bias" not in name}
    assert kinds == {format}
    expected = logits_of(model, token_ids)
    errors = np.sqrt(((found - expected) ** 2).mean(axis=1)) / expected.std()
    bound = OF_FAMILY.get(family, {}).get(format, ROUNDING[format])
    assert np.median(errors) < bound, np.median(errors)
