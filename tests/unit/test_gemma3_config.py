"""Gemma 3's config from config.json, as published and as transformers saves it, and from GGUF."""

import json

import numpy as np
import pytest
from gguf_builder import build, f32

from marlin.errors import ModelFileError
from marlin.models.registry import config_from_gguf, config_from_hf, family_of
from marlin.models.rope import RopeScaling
from marlin.weights.gguf import GGUFFile

# What transformers 4 wrote for a small Gemma 3, by hand.
VALUES = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "sliding_window": 8,
    "sliding_window_pattern": 3,
    "query_pre_attn_scalar": 48,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "eos_token_id": [1, 106],
}
LINEAR = {"rope_type": "linear", "factor": 8.0}


@pytest.fixture
def read(tmp_path):
    """Write config.json (VALUES with changes) and read it; a change to ... removes a field."""

    def read(**changes):
        values = {k: v for k, v in (VALUES | changes).items() if v is not ...}
        (tmp_path / "config.json").write_text(json.dumps(values))
        return config_from_hf(tmp_path)

    return read


def test_every_third_layer_sees_all_and_each_kind_has_its_theta(read):
    config = read()
    assert config.windows == (8, 8, None, 8, 8, None, 8)
    assert (config.rope_theta, config.local_rope_theta) == (1e6, 1e4)
    assert config.query_pre_attn_scalar == 48 and config.qk_norm and not config.qkv_bias
    assert config.eos_token_ids == (1, 106)


def test_what_a_file_leaves_out_is_what_transformers_means(read):
    left_out = ("head_dim", "sliding_window", "sliding_window_pattern", "query_pre_attn_scalar",
                "rope_theta", "rope_local_base_freq", "hidden_activation")  # fmt: skip
    config = read(**dict.fromkeys(left_out, ...))
    assert config.head_dim == 256 and config.query_pre_attn_scalar == 256
    assert config.windows == (4096,) * 5 + (None, 4096) and config.tie_embeddings
    assert (config.rope_theta, config.local_rope_theta) == (1e6, 1e4)


def test_scaling_is_that_of_the_layers_that_see_all(read):
    older = read(rope_scaling=LINEAR)
    newer = read(
        rope_theta=...,
        rope_scaling=...,
        rope_local_base_freq=...,
        rope_parameters={
            "full_attention": LINEAR | {"rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    )
    assert older == newer
    assert older.rope_scaling == RopeScaling("linear", 8.0)


def test_layer_types_count_more_than_the_pattern(read):
    kinds = ["full_attention"] * 6 + ["sliding_attention"]
    assert read(layer_types=kinds).windows == (None,) * 6 + (8,)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0; expected null"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0; expected null"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"sliding_window": None}, "sliding_window is missing"),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        ({"rope_local_base_freq": 1.0}, "rope_local_base_freq is 1.0"),
        (
            {"rope_parameters": {"sliding_attention": LINEAR}},
            "sliding_attention.rope_type is 'linear'; expected one of default",
        ),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        (
            {"rope_scaling": {"type": "linear", "factor": 8.0}},
            "rope_scaling.type is 'linear'; expected absent, or beside the same rope_type",
        ),
    ],
)
def test_what_the_family_cannot_run_is_named_with_its_value(read, changes, expected):
    with pytest.raises(ModelFileError) as caught:
        read(**changes)
    assert expected in caught.value.message and "config.json" in caught.value.message


def test_what_is_written_reads_back(read):
    config = read(rope_scaling=LINEAR)
    assert read(**family_of(config).hf_config(config)) == config


def test_transformers_reads_what_is_written(read):
    transformers = pytest.importorskip("transformers", reason="bin/test installs it")
    config = read(rope_scaling=LINEAR)
    theirs = transformers.Gemma3TextConfig(**family_of(config).hf_config(config))
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 3
    assert theirs.layer_types == kinds[:7] and theirs.sliding_window == 8
    assert theirs.rope_parameters == {
        "full_attention": LINEAR | {"rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    assert theirs.query_pre_attn_scalar == 48 and theirs.head_dim == 32


GGUF = {
    "general.architecture": ("str", "gemma3"),
    "gemma3.block_count": ("u32", 7),
    "gemma3.context_length": ("u32", 512),
    "gemma3.embedding_length": ("u32", 64),
    "gemma3.feed_forward_length": ("u32", 96),
    "gemma3.attention.head_count": ("u32", 2),
    "gemma3.attention.head_count_kv": ("u32", 1),
    "gemma3.attention.key_length": ("u32", 16),
    "gemma3.attention.value_length": ("u32", 16),
    "gemma3.attention.layer_norm_rms_epsilon": ("f32", 0.5),
    "gemma3.attention.sliding_window": ("u32", 8),
    "gemma3.rope.freq_base": ("f32", 1000000.0),
    "tokenizer.ggml.tokens": ("arr:str", ["<pad>", "<eos>", "<bos>", "<end_of_turn>"]),
    "tokenizer.ggml.eos_token_id": ("u32", 1),
}


@pytest.fixture
def read_gguf(tmp_path):
    def read_gguf(**changes):
        """A change is named by its key's last word; ... removes it."""
        values = dict(GGUF)
        for name, value in changes.items():
            values[name.replace("__", ".")] = value
        metadata = [(key, *value) for key, value in values.items() if value is not ...]
        embedding = ("token_embd.weight", "F32", (5, 64), f32(np.zeros((5, 64))))
        path = tmp_path / "model.gguf"
        path.write_bytes(build(metadata, [embedding]))
        return config_from_gguf(GGUFFile(path))

    return read_gguf


def test_a_gguf_header_leaves_out_what_its_readers_have_built_in(read_gguf):
    config = read_gguf()
    assert config.architecture == "gemma3_text"
    assert config.windows == (8,) * 5 + (None, 8)
    assert (config.rope_theta, config.local_rope_theta) == (1e6, 1e4)
    assert config.query_pre_attn_scalar == 16 and config.eos_token_ids == (1,)


def test_the_largest_model_scales_by_hidden_size_and_heads(read_gguf):
    assert read_gguf(gemma3__block_count=("u32", 62)).query_pre_attn_scalar == 64 / 2


def test_what_a_gguf_header_states_counts(read_gguf):
    assert read_gguf(**{"gemma3.attention.scale": ("f32", 24**-0.5)}).query_pre_attn_scalar == 24
    assert read_gguf(**{"gemma3.rope.freq_base_swa": ("f32", 5e4)}).local_rope_theta == 5e4
    name = "gemma3.attention.sliding_window_pattern"
    assert read_gguf(**{name: ("u32", 2)}).windows == (8, None) * 3 + (8,)
    slides = [True, False, False, True, True, True, False]
    assert read_gguf(**{name: ("arr:bool", slides)}).windows == (8, None, None, 8, 8, 8, None)
    assert read_gguf(**{"gemma3.attention.sliding_window": ...}).windows == (None,) * 7


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("attention.sliding_window_pattern", ("arr:bool", [True, False]), "7 of true and false"),
        ("attention.sliding_window_pattern", ("u32", 0), "pattern is 0"),
        ("final_logit_softcapping", ("f32", 30.0), "final_logit_softcapping is 30.0"),
        ("attention.scale", ("f32", -1.0), "attention.scale is -1.0"),
    ],
)
def test_a_gguf_header_that_the_family_cannot_run_is_named(read_gguf, key, value, expected):
    with pytest.raises(ModelFileError) as caught:
        read_gguf(**{f"gemma3.{key}": value})
    assert expected in caught.value.message


# The language model of google/gemma-3-4b-it is all that its config.json says of it.
PUBLISHED_4B = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "model_type": "gemma3_text",
    "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}


@pytest.fixture
def read_wrapped(tmp_path):
    def read_wrapped(text, **outer):
        values = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
        values |= {"text_config": text, "vision_config": {"hidden_size": 1152}} | outer
        (tmp_path / "config.json").write_text(json.dumps(values))
        return config_from_hf(tmp_path)

    return read_wrapped


def test_a_multimodal_models_text_config_leaves_most_out(read_wrapped):
    config = read_wrapped(PUBLISHED_4B, eos_token_id=[1, 106])
    assert config.architecture == "gemma3_text" and config.eos_token_ids == (1, 106)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 4, 256)
    assert (config.vocab_size, config.max_context_tokens) == (262208, 131072)
    assert config.rope_scaling == RopeScaling("linear", 8.0) and config.tie_embeddings
    assert config.windows[:7] == (1024,) * 5 + (None, 1024) and len(config.windows) == 34


@pytest.mark.parametrize(
    "text, outer, expected",
    [
        (None, {}, "text_config is missing"),
        ([], {}, "text_config is []"),
        ({"model_type": "llama"}, {}, "text_config.model_type is 'llama'"),
        (PUBLISHED_4B | {"hidden_size": 0}, {}, "text_config.hidden_size is 0"),
        (
            PUBLISHED_4B | {"tie_word_embeddings": True},
            {"tie_word_embeddings": False},
            "text_config.tie_word_embeddings is True; expected False, as beside text_config",
        ),
    ],
)
def test_a_text_config_that_is_wrong_is_named(read_wrapped, text, outer, expected):
    with pytest.raises(ModelFileError) as caught:
        read_wrapped(text, **outer)
    assert expected in caught.value.message
