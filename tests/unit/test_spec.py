"""What a family says of its tensors: names in both kinds of file, and the two orders of rows."""

import numpy as np
import pytest
from model.tiny_models import tiny_config, tiny_family_config, tiny_gemma3_config

from marlin.models.plan import unused_part
from marlin.models.registry import FAMILIES, spec_of
from marlin.weights.rows import unpermute_rows

PAIRS = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
    ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
    ("blk.11.attn_q.weight", "model.layers.11.self_attn.q_proj.weight"),
    ("blk.11.attn_k.bias", "model.layers.11.self_attn.k_proj.bias"),
    ("blk.2.attn_v.weight", "model.layers.2.self_attn.v_proj.weight"),
    ("blk.2.attn_output.weight", "model.layers.2.self_attn.o_proj.weight"),
    ("blk.3.attn_q_norm.weight", "model.layers.3.self_attn.q_norm.weight"),
    ("blk.3.attn_k_norm.weight", "model.layers.3.self_attn.k_norm.weight"),
    ("blk.4.ffn_norm.weight", "model.layers.4.post_attention_layernorm.weight"),
    ("blk.4.ffn_gate.weight", "model.layers.4.mlp.gate_proj.weight"),
    ("blk.4.ffn_up.bias", "model.layers.4.mlp.up_proj.bias"),
    ("blk.125.ffn_down.weight", "model.layers.125.mlp.down_proj.weight"),
]
EVERYTHING = {"num_layers": 126, "qkv_bias": True, "o_bias": True, "mlp_bias": True}


def test_a_tensor_has_its_names_in_both_kinds_of_file():
    spec = spec_of(tiny_config(**EVERYTHING, qk_norm=True))
    assert set(PAIRS) <= {(tensor.gguf, tensor.name) for tensor in spec.tensors}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_no_two_tensors_of_a_family_share_a_name_in_either_kind_of_file(family):
    tensors = family.spec(tiny_family_config(family.model_type)).tensors
    assert len({tensor.name for tensor in tensors}) == len(tensors)
    assert len({tensor.gguf for tensor in tensors}) == len(tensors)


def test_a_tied_output_matrix_is_the_embedding_and_named_once():
    tied, untied = (spec_of(tiny_config(tie_embeddings=tie)) for tie in (True, False))
    assert tied.lm_head is tied.embedding
    assert len(tied.tensors) + 1 == len(untied.tensors)
    assert unused_part(tied, "lm_head.weight") and not unused_part(untied, "lm_head.weight")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", True),
        ("model.rotary_emb.cos_cached", True),
        ("blk.7.attn_rot_embd", True),
        ("model.layers.٣.self_attn.rotary_emb.inv_freq", False),
        ("model.layers.0.self_attn.rotary_emb.weight", False),
        ("visual.patch_embed.weight", True),
        ("model.vision_tower.patch_embed.weight", True),
        ("mm.0.weight", True),
        ("v.blk.0.attn_q.weight", True),
        ("value.weight", False),
        ("model.layers.2.visual.weight", False),
        ("blk.2.attn_q.weight", False),
        ("", False),
    ],
)
def test_only_what_the_config_says_again_and_towers_are_known_to_be_unused(name, expected):
    assert (unused_part(spec_of(tiny_config()), name) is not None) == expected


@pytest.mark.parametrize("name", ["model.layers.{}.eh_proj.weight", "blk.{}.nextn.eh_proj.weight"])
def test_layers_that_guess_tokens_ahead_are_those_behind_the_others(name):
    spec = spec_of(tiny_config(num_layers=2, num_prediction_layers=1))
    assert [unused_part(spec, name.format(index)) for index in (1, 3)] == [None, None]
    assert unused_part(spec, name.format(2)).endswith("a layer that guesses tokens ahead")


def permute_as_the_gguf_converter(array, num_heads):
    """Split a head in two halves and interleave them."""
    half = array.shape[0] // num_heads // 2
    halves = array.reshape(num_heads, 2, half, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


@pytest.mark.parametrize("shape", [(24, 5), (24,)])
def test_unpermute_rows_undoes_the_converter(shape):
    rows = np.arange(np.prod(shape)).reshape(shape)
    stored = permute_as_the_gguf_converter(rows, 3)
    assert not np.array_equal(stored, rows)
    np.testing.assert_array_equal(unpermute_rows(stored, 3), rows)


def test_row_two_half_heads_plus_i_comes_from_row_2i_plus_two():
    stored = np.arange(8)  # one head of 8
    assert unpermute_rows(stored, 1).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_only_q_and_k_of_llama_files_are_interleaved(architecture):
    tensors = spec_of(tiny_config(architecture=architecture, **EVERYTHING, qk_norm=True)).tensors
    found = {tensor.gguf: tensor.rope_heads for tensor in tensors if tensor.rope_heads}
    q_and_k = {
        f"blk.{layer}.attn_{part}.{suffix}": heads
        for layer in range(126)
        for part, heads in (("q", 4), ("k", 2))
        for suffix in ("weight", "bias")
    }
    assert found == (q_and_k if architecture in ("llama", "mistral") else {})


def test_the_same_word_is_another_tensor_in_a_gemmas_gguf():
    def named(config):
        return {t.gguf: t.name for t in spec_of(config).tensors if t.gguf.startswith("blk.0.")}

    llama, gemma = named(tiny_config()), named(tiny_gemma3_config())
    assert llama["blk.0.ffn_norm.weight"] == "model.layers.0.post_attention_layernorm.weight"
    assert gemma["blk.0.ffn_norm.weight"] == "model.layers.0.pre_feedforward_layernorm.weight"
    name = "model.layers.0.post_attention_layernorm.weight"
    assert gemma["blk.0.post_attention_norm.weight"] == name


def test_every_norm_of_a_gemma_and_no_other_tensor_is_stored_less_one():
    found = {t.name: t.plus for t in spec_of(tiny_gemma3_config()).tensors}
    assert {name for name, plus in found.items() if plus} == {n for n in found if "norm" in n}
    assert set(found.values()) == {0.0, 1.0}
