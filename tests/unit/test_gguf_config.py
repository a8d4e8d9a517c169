"""ModelConfig from GGUF metadata."""

import re

import numpy as np
import pytest
from gguf_builder import build, f32

from marlin.errors import ModelFileError
from marlin.models.registry import config_from_gguf
from marlin.models.rope import RopeScaling
from marlin.weights.gguf import GGUFFile

GGUF = {
    "general.architecture": ("str", "llama"),
    "llama.block_count": ("u32", 3),
    "llama.context_length": ("u32", 512),
    "llama.embedding_length": ("u32", 48),
    "llama.feed_forward_length": ("u32", 96),
    "llama.attention.head_count": ("u32", 6),
    "llama.attention.head_count_kv": ("u32", 2),
    "llama.attention.layer_norm_rms_epsilon": ("f32", 0.5),
    "llama.rope.freq_base": ("f32", 500000.0),
    "llama.rope.dimension_count": ("u32", 8),
    "tokenizer.ggml.tokens": ("arr:str", ["a", "<|im_end|>", "b", "<|eot_id|>"]),
    "tokenizer.ggml.eos_token_id": ("u32", 2),
}
GGUF_YARN = {
    "llama.rope.scaling.type": ("str", "yarn"),
    "llama.rope.scaling.factor": ("f32", 4.0),
}
EMBEDDING = ("token_embd.weight", "F32", (5, 48), f32(np.zeros((5, 48))))


@pytest.fixture
def read_gguf(tmp_path):
    def read_gguf(changes=(), tensors=(EMBEDDING,), architecture="llama"):
        values = {k: v for k, v in (GGUF | dict(changes)).items() if v is not ...}
        values["general.architecture"] = ("str", architecture)
        metadata = [(k.replace("llama.", architecture + "."), *v) for k, v in values.items()]
        path = tmp_path / "model.gguf"
        path.write_bytes(build(metadata, tensors))
        return config_from_gguf(GGUFFile(path))

    return read_gguf


def vector(name):
    return (name, "F32", (1,), f32([0]))


def test_gguf_metadata_gives_the_same_fields(read_gguf):
    config = read_gguf()
    assert config.architecture == "llama" and config.num_layers == 3
    assert (config.hidden_dim, config.intermediate_dim, config.head_dim) == (48, 96, 8)
    assert (config.num_heads, config.num_kv_heads, config.vocab_size) == (6, 2, 5)
    assert config.max_context_tokens == 512
    assert config.rms_norm_eps == 0.5 and config.rope_theta == 500000.0
    assert config.rope_scaling == RopeScaling()
    assert config.tie_embeddings and not config.qkv_bias and not config.qk_norm
    assert config.eos_token_ids == (2,)


def test_biases_norms_and_the_output_matrix_are_known_by_their_tensors(read_gguf):
    names = ["output.weight", "blk.0.attn_q.bias", "blk.0.attn_output.bias", "blk.0.ffn_up.bias",
             "blk.0.attn_q_norm.weight"]  # fmt: skip
    config = read_gguf(tensors=[EMBEDDING, *map(vector, names)], architecture="qwen3")
    assert config.architecture == "qwen3" and not config.tie_embeddings
    assert config.qkv_bias and config.o_bias and config.mlp_bias and config.qk_norm


def test_per_layer_arrays_of_one_number_are_that_number(read_gguf):
    assert read_gguf({"llama.attention.head_count_kv": ("arr:u32", [2, 2, 2])}).num_kv_heads == 2
    with pytest.raises(ModelFileError, match="head_count_kv"):
        read_gguf({"llama.attention.head_count_kv": ("arr:u32", [2, 1, 2])})


def test_a_window_makes_a_llama_file_a_mistral_and_counts_for_no_other(read_gguf):
    window = {"llama.attention.sliding_window": ("u32", 64)}
    assert read_gguf(window).architecture == "mistral"
    assert read_gguf(window).windows == (64, 64, 64)
    assert read_gguf(window, architecture="qwen2").windows == (None, None, None)


@pytest.mark.parametrize("architecture", ["mistral3", "phi3"])
def test_a_window_of_0_tokens_is_none(read_gguf, architecture):
    def windows(tokens):
        window = {"llama.attention.sliding_window": ("u32", tokens)}
        return read_gguf(window, architecture=architecture).windows

    assert windows(0) == (None, None, None)
    assert windows(1) == (1, 1, 1)


@pytest.mark.parametrize("architecture", ["glm4", "phi3"])
def test_a_file_says_how_many_dimensions_turn_and_means_all_where_it_does_not(
    read_gguf, architecture
):
    heads = {"llama.attention.key_length": ("u32", 8), "llama.attention.value_length": ("u32", 8)}

    def rotary_dim(value):
        return read_gguf(
            heads | {"llama.rope.dimension_count": value}, architecture=architecture
        ).rotary_dim

    assert rotary_dim(("u32", 4)) == 4
    assert rotary_dim(...) == 8
    for value in (3, 10):
        with pytest.raises(ModelFileError, match=f"rope.dimension_count is {value}"):
            rotary_dim(("u32", value))


def test_gguf_scaling_types_are_read(read_gguf):
    linear = {"llama.rope.scaling.type": ("str", "linear"),
              "llama.rope.scaling.factor": ("f32", 4.0)}  # fmt: skip
    assert read_gguf(linear).rope_scaling == RopeScaling("linear", 4.0)
    without_type = {"llama.rope.scaling.factor": ("f32", 4.0)}  # which llama.cpp takes for linear
    assert read_gguf(without_type).rope_scaling == RopeScaling("linear", 4.0)
    assert read_gguf({"llama.rope.scale_linear": ("f32", 2.0)}).rope_scaling.factor == 2.0
    yarn = linear | {"llama.rope.scaling.type": ("str", "yarn"),
                     "llama.rope.scaling.original_context_length": ("u32", 256)}  # fmt: skip
    config = read_gguf(yarn)
    assert config.rope_scaling.original_max_tokens == 256
    assert config.rope_scaling.attention_factor == pytest.approx(0.1 * np.log(4) + 1)
    assert config.max_context_tokens == 1024
    assert read_gguf({"llama.rope.scaling.type": ("str", "none")}).rope_scaling == RopeScaling()


@pytest.mark.parametrize(
    "name, value, limit",
    [
        ("beta_fast", 1e308, "at most 6.71089e+07"),
        ("beta_slow", 1e308, "at most 6.71089e+07"),
        ("beta_slow", 1e-310, "above 1e-06"),
    ],
)
def test_rotations_of_yarn_past_any_context_are_refused(read_gguf, name, value, limit):
    yarn = GGUF_YARN | {f"llama.rope.scaling.yarn_{name}": ("f64", value)}
    with pytest.raises(ModelFileError, match=f"yarn_{name} is .*{re.escape(limit)}"):
        read_gguf(yarn)


def test_a_factor_without_a_type_scales_linearly_as_in_llama_cpp(read_gguf):
    factor = {"llama.rope.scaling.factor": ("f32", 4.0)}
    assert read_gguf(factor).rope_scaling == RopeScaling("linear", 4.0)
    older = factor | {"llama.rope.scale_linear": ("f32", 2.0)}
    assert read_gguf(older).rope_scaling == RopeScaling("linear", 4.0)
    none = factor | {"llama.rope.scaling.type": ("str", "none")}
    assert read_gguf(none).rope_scaling == RopeScaling()
    for value in (0.0, 1.0):
        neutral = {"llama.rope.scaling.factor": ("f32", value)}
        assert read_gguf(neutral).rope_scaling == RopeScaling()


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"llama.block_count": ...}, "llama.block_count is missing"),
        ({"llama.block_count": ("i32", -1)}, "llama.block_count is -1"),
        ({"llama.block_count": ("f32", 3.0)}, "llama.block_count is 3.0"),
        ({"llama.attention.head_count_kv": ("u32", 4)}, "divisor of the 6"),
        ({"llama.attention.value_length": ("u32", 16)}, "attention.value_length is 16"),
        ({"llama.rope.dimension_count": ("u32", 4)}, "rope.dimension_count is 4"),
        ({"llama.expert_count": ("u32", 8)}, "expert_used_count is missing"),
        ({"llama.rope.scaling.type": ("str", "longrope")}, "rope.scaling.type is 'longrope'"),
        ({"llama.rope.scaling.type": ("str", "yarn")}, "rope.scaling.factor is missing"),
        ({"llama.rope.scaling.attn_factor": ("f32", 2.0)}, "rope.scaling.attn_factor is 2"),
        (GGUF_YARN | {"llama.rope.scaling.yarn_ext_factor": ("f32", 0.5)}, "yarn_ext_factor is 0"),
        (GGUF_YARN | {"llama.rope.scaling.yarn_attn_factor": ("f32", 2.0)}, "_attn_factor is 2"),
        (GGUF_YARN | {"llama.rope.scaling.yarn_log_multiplier": ("f32", 0.1)}, "multiplier is 0"),
        ({"llama.attention.layer_norm_rms_epsilon": ("f32", float("nan"))}, "epsilon is nan"),
        ({"tokenizer.ggml.eos_token_id": ("u32", 5)}, "eos_token_id is 5"),
        ({"tokenizer.ggml.tokens": ("arr:str", list("abcdef"))}, "5 rows for the 6 tokens"),
    ],
)
def test_gguf_metadata_that_is_wrong_or_unsupported_is_named(read_gguf, changes, expected):
    with pytest.raises(ModelFileError) as caught:
        read_gguf(changes)
    assert expected in caught.value.message and "model.gguf" in caught.value.message


def test_an_unknown_gguf_architecture_and_a_missing_embedding_are_named(read_gguf):
    with pytest.raises(ModelFileError, match="'mamba'; expected one of llama, qwen2, qwen3"):
        read_gguf(architecture="mamba")
    with pytest.raises(ModelFileError, match="token_embd.weight"):
        read_gguf(tensors=[])


def test_the_demo_model_is_a_llama_of_thirty_layers(demo_model_path):
    config = config_from_gguf(GGUFFile(demo_model_path))
    assert (config.num_layers, config.hidden_dim, config.intermediate_dim) == (30, 576, 1536)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (9, 3, 64)
    assert config.rope_theta == 100000.0 and config.tie_embeddings
    assert config.eos_token_ids == (2,)
