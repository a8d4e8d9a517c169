"""GGUF and Hugging Face names of the same tensor, and the two orders of RoPE rows."""

import numpy as np
import pytest

from marlin.weights.names import gguf_name, hf_name, rows_are_interleaved, unpermute_rows

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


@pytest.mark.parametrize("gguf, hf", PAIRS)
def test_names_translate_both_ways(gguf, hf):
    assert hf_name(gguf) == hf
    assert gguf_name(hf) == gguf


@pytest.mark.parametrize(
    "name", ["rope_freqs.weight", "blk.0.ffn_gate_exps.weight", "blk.01.attn_q.weight",
             "blk.-1.attn_q.weight", "blk.0.attn_q", "token_embd.bias", "blk.٣.attn_q.weight", ""]
)  # fmt: skip
def test_a_gguf_name_outside_the_family_has_no_counterpart(name):
    assert hf_name(name) is None


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "visual.patch_embed.weight",
             "model.layers.x.mlp.up_proj.weight", "embed_tokens.weight", ""]
)  # fmt: skip
def test_a_hugging_face_name_outside_the_family_has_no_counterpart(name):
    assert gguf_name(name) is None


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


def test_only_q_and_k_of_llama_files_are_interleaved():
    q, k = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.bias"
    assert rows_are_interleaved("llama", q) and rows_are_interleaved("llama", k)
    assert not rows_are_interleaved("llama", "model.layers.0.self_attn.v_proj.weight")
    assert not rows_are_interleaved("llama", "model.layers.0.self_attn.q_norm.weight")
    assert not rows_are_interleaved("qwen2", q)
