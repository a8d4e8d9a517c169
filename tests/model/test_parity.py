"""Whole models against transformers, from the folders that transformers writes.

The reference attends to keys and values rounded to float16, as the KV cache holds them; one test
does without that.
"""

import json

import numpy as np
import pytest
from pytorch import torch
from reference_models import GEMMA3, build, logits_of
from tiny_models import (
    INSTRUCTION_SETS,
    logits_by_chunks,
    logits_of_positions,
    random_tokens,
    running,
)

# Logits are near 1. What is left between the two is the order of float32 sums, and a key or value
# here and there that is rounded to the other float16. Weights of F16 and BF16 are widened exactly,
# so they need no tolerance of their own.
TOLERANCE = 1e-3
# A feature that is read wrongly must show: with and without it, the reference differs by more.
SENSITIVITY = 0.05

LINEAR = {"rope_scaling": {"rope_type": "linear", "factor": 2.5}, "rope_theta": 500.0}
LLAMA3 = {
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
}
YARN = {
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    }
}
WINDOW = {"sliding_window": 33}
QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 0}
WIDE_HEADS = {"head_dim": 32, "num_attention_heads": 6, "num_key_value_heads": 3}
ODD_SIZES = {
    "hidden_size": 72,
    "intermediate_size": 100,
    "head_dim": 48,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "vocab_size": 131,
}
UNSCALED = {"full_attention": {"rope_type": "default", "rope_theta": 500.0}}
SAME_THETA = {"sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}
MIXED = ["sliding_attention", "full_attention"]
CASES = {
    "llama": ("llama", {}),
    "llama with linear RoPE": ("llama", LINEAR),
    "llama with llama3 RoPE": ("llama", LLAMA3),
    "llama with YaRN": ("llama", YARN),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama of odd sizes": ("llama", ODD_SIZES),
    "llama without query groups": ("llama", {"num_key_value_heads": 4}),
    "mistral without a window": ("mistral", {"sliding_window": None}),
    "mistral with a window": ("mistral", WINDOW),
    "qwen2": ("qwen2", {}),
    "qwen2 with a window, tied": ("qwen2", QWEN_WINDOW | {"tie_word_embeddings": True}),
    "qwen2 with a window on one layer": ("qwen2", QWEN_WINDOW | {"max_window_layers": 1}),
    "qwen3": ("qwen3", WIDE_HEADS),
    "qwen3 with biases, tied": (
        "qwen3",
        WIDE_HEADS | {"attention_bias": True, "tie_word_embeddings": True},
    ),
}
CASES |= {
    "gemma3": ("gemma3", {"num_hidden_layers": 4, "layer_types": MIXED * 2}),
    "gemma3 with biases, not tied": ("gemma3", {"attention_bias": True}),
    "gemma3 of one wide KV head, tied": (
        "gemma3",
        {"head_dim": 256, "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
}
STEP_TOKENS = 64


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request, tmp_path_factory):
    """(folder, transformers model, 305 token ids, their reference logits)."""
    family, changes = CASES[request.param]
    model = build(family, **changes)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    token_ids = random_tokens(305, model.config.vocab_size)
    return folder, model, token_ids, logits_of(model, token_ids)


def assert_close(found, expected, tolerance=TOLERANCE):
    """found: {position: logits}; expected: the logits of every position."""
    errors = {
        position: np.abs(logits - expected[position]).max() for position, logits in found.items()
    }
    assert max(errors.values()) < tolerance, errors


@pytest.mark.parametrize("length", [1, 17, 40, 300])
def test_prefill_in_chunks_and_the_decode_after_it_agree_with_transformers(case, length):
    folder, _, token_ids, expected = case
    token_ids = token_ids[: length + 5]
    with running(folder, max_step_tokens=STEP_TOKENS) as runner:
        found = logits_by_chunks(runner, token_ids[:length], [STEP_TOKENS])
        assert len(found) == -(-length // STEP_TOKENS)
        decoded = logits_by_chunks(runner, token_ids, [1], start=length)
    assert list(decoded) == list(range(length, length + 5))
    assert_close(found | decoded, expected)


def test_every_position_decoded_agrees_with_transformers(case):
    folder, _, token_ids, expected = case
    with running(folder, sequences=16) as runner:
        found = logits_of_positions(runner, token_ids)
    assert found.shape == expected.shape
    assert_close(dict(enumerate(found)), expected)


def test_every_prefix_length_of_a_prefill_agrees_with_transformers(case):
    folder, _, token_ids, expected = case
    with running(folder) as runner:
        for length in range(2, 41):
            assert_close(logits_by_chunks(runner, token_ids[:length], [length]), expected)


@pytest.mark.parametrize(
    "family, feature, absent",
    [
        ("llama", LINEAR, {"rope_theta": 500.0}),
        ("llama", LLAMA3, {}),
        ("llama", YARN, {}),
        ("mistral", WINDOW, {"sliding_window": None}),
        ("qwen2", QWEN_WINDOW, {}),
        ("qwen2", QWEN_WINDOW | {"max_window_layers": 1}, QWEN_WINDOW),
        ("gemma3", {}, {"layer_types": ["sliding_attention"] * 2}),
        ("gemma3", {}, {"layer_types": ["full_attention"] * 2}),
        ("gemma3", {}, {"query_pre_attn_scalar": 32}),
        ("gemma3", {}, {"rope_parameters": GEMMA3["rope_parameters"] | UNSCALED}),
        ("gemma3", {}, {"rope_parameters": GEMMA3["rope_parameters"] | SAME_THETA}),
    ],
    ids=[
        *("linear", "llama3", "yarn", "window", "qwen2-window", "mixed-windows"),
        *("gemma3-full", "gemma3-window", "gemma3-scale", "gemma3-linear", "gemma3-theta"),
    ],
)
def test_the_reference_would_show_a_feature_that_is_ignored(family, feature, absent):
    token_ids = random_tokens(300, 97)
    on, off = (logits_of(build(family, **changes), token_ids) for changes in (feature, absent))
    assert np.abs(on - off).max() > SENSITIVITY


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3"])
def test_a_checkpoint_as_transformers_initializes_it_agrees_without_a_float16_cache(
    family, tmp_path
):
    reference = build(family)
    torch.manual_seed(1)
    model = type(reference)(reference.config).eval()
    model.save_pretrained(tmp_path)
    token_ids = random_tokens(300, 97)
    expected = logits_of(model, token_ids, half_cache=False)
    with running(tmp_path, sequences=16) as runner:
        assert_close(dict(enumerate(logits_of_positions(runner, token_ids))), expected)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("family, changes", [("qwen3", WIDE_HEADS), ("gemma3", {})])
def test_each_instruction_set_agrees_with_transformers(family, changes, isa, tmp_path):
    model = build(family, **changes)
    model.save_pretrained(tmp_path)
    token_ids = random_tokens(300, 97)
    with running(tmp_path, isa=isa, sequences=16, max_step_tokens=STEP_TOKENS) as runner:
        found = logits_by_chunks(runner, token_ids[:290], [STEP_TOKENS, 37])
        decoded = logits_of_positions(runner, token_ids, start=290)
    found |= dict(enumerate(decoded, 290))
    assert_close(found, logits_of(model, token_ids))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("changes", [{}, ODD_SIZES], ids=["even", "odd"])
def test_16_bit_weights_agree_with_transformers_running_the_same_values(dtype, changes, tmp_path):
    model = build("llama", attention_bias=True, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
    token_ids = random_tokens(83, 97)
    expected = logits_of(model, token_ids)
    # Only now: to() rounds the frequencies of RoPE too.
    model.to(dtype).save_pretrained(tmp_path)
    with running(tmp_path, sequences=16) as runner:
        found = dict(enumerate(logits_of_positions(runner, token_ids)))
        found |= logits_by_chunks(runner, token_ids, [STEP_TOKENS])
    assert_close(found, expected)


def test_a_sharded_checkpoint_gives_the_logits_of_a_single_file(tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="60KB")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    token_ids = random_tokens(40, 97)
    logits = []
    for folder in ("one", "many"):
        with running(tmp_path / folder) as runner:
            logits.append(logits_by_chunks(runner, token_ids, [40])[39])
    np.testing.assert_array_equal(*logits)
