"""GGUF files of the `gguf` package, against transformers running the weights they stand for."""

import numpy as np
import pytest
from gguf_models import BLOCK_KINDS, DENSE_KINDS, K_KINDS, decode, interleave_rows, write_gguf
from reference_models import build, logits_of, with_weights
from tiny_models import (
    INSTRUCTION_SETS,
    logits_by_chunks,
    logits_of_positions,
    open_device,
    random_tokens,
    running,
    weight_values,
)

from marlin.device.ops import Weight
from marlin.models.checkpoint import open_checkpoint
from marlin.models.model import Model

# Dense weights: as in test_parity.py.
TOLERANCE = 1e-3
# Block types: each activation is rounded to int8 in groups of 32, a step of 1/127 of the group's
# largest, which is about 0.6% of the group's rms. Nine such roundings in a row (four matrices a
# layer, and the output) came to 2.2% of the logits' rms here at most, and to 11% in the worst of
# 30,000 logits. A weight in the wrong place gives errors of 100%.
INT8_RMS, INT8_MAX = 0.03, 0.16

# Rows of K types are whole blocks of 256.
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def q4_k_m(name):
    """The mixture that converters write as Q4_K_M."""
    is_fine = any(part in name for part in (".v_proj.", ".down_proj.", "embed_tokens", "lm_head"))
    return "Q6_K" if is_fine else "Q4_K"


def assert_near(found, expected):
    errors = (found - expected) / expected.std()
    assert errors.std() < INT8_RMS
    assert np.abs(errors).max() < INT8_MAX


def all_logits(path, token_ids, isa=None):
    with running(path, isa=isa, sequences=16) as runner:
        return logits_of_positions(runner, token_ids)


@pytest.mark.parametrize("kind", DENSE_KINDS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
def test_a_dense_gguf_agrees_with_transformers_running_its_weights(family, kind, tmp_path):
    model = build(family, **SIZES)
    stored = write_gguf(tmp_path / "m.gguf", model, lambda name: kind)
    token_ids = random_tokens(80, 97)
    expected = logits_of(with_weights(model, stored), token_ids)
    assert np.abs(all_logits(tmp_path / "m.gguf", token_ids) - expected).max() < TOLERANCE


@pytest.mark.parametrize("kind", [*BLOCK_KINDS, *K_KINDS])
def test_a_quantized_gguf_agrees_with_transformers_running_its_weights(kind, tmp_path):
    model = build("llama", **SIZES)
    stored = write_gguf(tmp_path / "m.gguf", model, lambda name: kind)
    token_ids = random_tokens(300, 97)
    expected = logits_of(with_weights(model, stored), token_ids)
    assert_near(all_logits(tmp_path / "m.gguf", token_ids), expected)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
def test_a_tied_mixture_of_k_types_agrees_on_each_instruction_set(family, isa, tmp_path):
    model = build(family, **SIZES, tie_word_embeddings=True)
    path = tmp_path / "m.gguf"
    stored = write_gguf(path, model, q4_k_m)
    token_ids = random_tokens(120, 97)
    expected = logits_of(with_weights(model, stored), token_ids)
    assert_near(all_logits(path, token_ids, isa), expected)
    with running(path, isa=isa) as runner:
        found = logits_by_chunks(runner, token_ids, [50])
    assert_near(np.stack(list(found.values())), expected[list(found)])


@pytest.mark.parametrize("kind", [*DENSE_KINDS, *BLOCK_KINDS, *K_KINDS])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_each_matrix_on_the_device_is_the_stored_one_in_hugging_face_order(family, kind, tmp_path):
    model = build(family, **SIZES)
    stored = write_gguf(tmp_path / "m.gguf", model, lambda name: kind)
    device = open_device(None)
    try:
        loaded = Model(open_checkpoint(tmp_path / "m.gguf", device))
        found = {
            name: weight_values(weight)
            for name, weight in loaded.weights.items()
            if isinstance(weight, Weight)
        }
    finally:
        device.close()
    assert found.keys() == {name for name, values in stored.items() if values.ndim == 2}
    for name, values in found.items():
        # A float32 rounding or two: the packed form multiplies and adds in another order.
        np.testing.assert_allclose(values, stored[name], rtol=0, atol=1e-6, err_msg=name)


def test_biases_of_a_llama_gguf_are_put_in_order_with_their_rows(tmp_path):
    model = build("llama", **SIZES, attention_bias=True)
    write_gguf(tmp_path / "m.gguf", model, lambda name: "F32")
    token_ids = random_tokens(80, 97)
    found = all_logits(tmp_path / "m.gguf", token_ids)
    assert np.abs(found - logits_of(model, token_ids)).max() < TOLERANCE


def test_rope_frequencies_of_a_llama_3_gguf_come_from_its_tensor(tmp_path):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = build("llama", **SIZES, rope_scaling=scaling)
    plain = 10000.0 ** -(np.arange(0, 32, 2) / 32)
    factors = (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    assert factors.min() == pytest.approx(1) and factors.max() == pytest.approx(8)
    write_gguf(tmp_path / "m.gguf", model, lambda name: "F32", rope_factors=factors)
    token_ids = random_tokens(300, 97)
    found = all_logits(tmp_path / "m.gguf", token_ids)
    assert np.abs(found - logits_of(model, token_ids)).max() < TOLERANCE


@pytest.mark.parametrize(
    "scaling, metadata",
    [
        (
            {"rope_type": "linear", "factor": 2.5},
            {"rope.scaling.type": "linear", "rope.scaling.factor": 2.5},
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 128,
            },
        ),
    ],
    ids=["linear", "yarn"],
)
def test_rope_scaling_of_gguf_metadata_is_that_of_transformers(scaling, metadata, tmp_path):
    model = build("llama", **SIZES, rope_scaling=scaling)
    write_gguf(tmp_path / "m.gguf", model, lambda name: "F32", metadata)
    token_ids = random_tokens(300, 97)
    found = all_logits(tmp_path / "m.gguf", token_ids)
    assert np.abs(found - logits_of(model, token_ids)).max() < TOLERANCE


def test_a_matrix_of_nvfp4_is_multiplied_by_its_factor(tmp_path):
    model = build("llama", **SIZES)
    factors = {"blk.0.ffn_up": 3.0, "blk.1.attn_q": 0.7}
    stored = write_gguf(tmp_path / "m.gguf", model, lambda name: "NVFP4", factors=factors)
    token_ids = random_tokens(80, 97)
    expected = logits_of(with_weights(model, stored), token_ids)
    assert_near(all_logits(tmp_path / "m.gguf", token_ids), expected)


def test_a_mistral_gguf_keeps_its_window(tmp_path):
    model = build("mistral", **SIZES, sliding_window=33)
    metadata = {"attention.sliding_window": 33}
    write_gguf(tmp_path / "m.gguf", model, lambda name: "F32", metadata)
    token_ids = random_tokens(300, 97)
    found = all_logits(tmp_path / "m.gguf", token_ids)
    assert np.abs(found - logits_of(model, token_ids)).max() < TOLERANCE


def test_a_model_in_several_files_has_the_bits_of_one(tmp_path):
    model = build("llama", **SIZES)

    def kind_of(name):
        return "F16" if ".o_proj." in name else q4_k_m(name)

    write_gguf(tmp_path / "m.gguf", model, kind_of)
    write_gguf(tmp_path / "s.gguf", model, kind_of, split_max_tensors=8)
    first, *others = sorted(tmp_path.glob("s-*.gguf"))
    assert first.name == f"s-00001-of-{1 + len(others):05}.gguf" and others
    token_ids = random_tokens(40, 97)
    np.testing.assert_array_equal(
        all_logits(first, token_ids), all_logits(tmp_path / "m.gguf", token_ids)
    )


def test_interleaving_brings_the_rows_of_a_rotated_pair_together():
    rows = np.arange(8)  # two heads of four: pairs (0, 2), (1, 3) and (4, 6), (5, 7)
    assert interleave_rows(rows, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("kind, error", [("Q4_K", 0.06), ("Q5_K", 0.03), ("Q6_K", 0.02)])
def test_the_k_blocks_made_here_are_the_ones_the_gguf_package_decodes(kind, error):
    values = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
    assert np.abs(decode(kind, values) - values).std() < error
