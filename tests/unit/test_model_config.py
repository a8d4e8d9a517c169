"""ModelConfig from config.json, against transformers' own objects."""

import json
import re

import numpy as np
import pytest
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from marlin.errors import ModelFileError
from marlin.models.registry import config_from_hf
from marlin.models.rope import RopeScaling, rope_inv_freq

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "eos_token_id": 7,
}
# What transformers 4 wrote for a small Llama, by hand.
VALUES = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    **SIZES,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

QWEN_WINDOW = {"model_type": "qwen2", "use_sliding_window": True}


@pytest.fixture
def read(tmp_path):
    """Write config.json (VALUES with changes) and read it; a change to ... removes a field."""

    def read(generation=None, **changes):
        values = {k: v for k, v in (VALUES | changes).items() if v is not ...}
        (tmp_path / "config.json").write_text(json.dumps(values))
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        return config_from_hf(tmp_path)

    return read


@pytest.mark.parametrize(
    "config_class, more",
    [
        (LlamaConfig, {}),
        (LlamaConfig, {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
        (LlamaConfig, {"tie_word_embeddings": True, "rms_norm_eps": 3e-5}),
        (MistralConfig, {"sliding_window": 64}),
        (MistralConfig, {"sliding_window": None, "head_dim": 32}),
        (MistralConfig, {}),
        (Qwen2Config, {}),
        (Qwen2Config, {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}),
        (Qwen2Config, {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 3}),
        (Qwen2Config, {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
        (Qwen3Config, {}),
        (Qwen3Config, {"attention_bias": True, "head_dim": 24}),
    ],
)
def test_a_config_that_transformers_saved_reads_back_field_by_field(tmp_path, config_class, more):
    theirs = config_class(**SIZES, **more)
    theirs.save_pretrained(tmp_path)
    config = config_from_hf(tmp_path)
    assert config.architecture == theirs.model_type
    assert config.num_layers == 3 and config.hidden_dim == 48 and config.intermediate_dim == 96
    assert config.num_heads == 6 and config.num_kv_heads == 2
    assert config.head_dim == getattr(theirs, "head_dim", 8)
    assert config.vocab_size == 300 and config.max_context_tokens == 512
    assert config.rms_norm_eps == theirs.rms_norm_eps
    assert config.rope_theta == theirs.rope_parameters["rope_theta"]
    assert config.rope_scaling == RopeScaling()
    assert config.tie_embeddings == theirs.tie_word_embeddings
    has_bias = getattr(theirs, "attention_bias", False)
    assert config.qkv_bias == (has_bias or theirs.model_type == "qwen2")
    assert config.o_bias == has_bias
    assert config.mlp_bias == getattr(theirs, "mlp_bias", False)
    assert config.qk_norm == (theirs.model_type == "qwen3")
    window = getattr(theirs, "sliding_window", None)
    kinds = getattr(theirs, "layer_types", ["sliding_attention"] * 3)
    assert config.windows == tuple(window if "sliding" in kind else None for kind in kinds)
    assert config.eos_token_ids == (7,)


def test_the_spellings_of_transformers_4_and_5_mean_the_same(read):
    older = read(rope_scaling=LLAMA3)
    newer = read(
        rope_theta=..., rope_scaling=..., rope_parameters=LLAMA3 | {"rope_theta": 500000.0}
    )
    oldest = read(rope_scaling={"type": "llama3", **LLAMA3, "rope_type": ...} | {"rope_type": None})
    assert older == newer == oldest
    assert older.rope_scaling == RopeScaling("llama3", 8.0, 8192, 1.0, 4.0)
    assert older.rope_theta == 500000.0


def test_linear_scaling_and_the_explicit_default_are_read(read):
    scaling = read(rope_scaling={"type": "linear", "factor": 2}).rope_scaling
    assert scaling == RopeScaling("linear", 2.0)
    assert read(rope_scaling={"rope_type": "default"}).rope_scaling == RopeScaling()


def test_yarn_stretches_a_context_that_the_file_left_at_the_original(read):
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    config = read(rope_scaling=yarn)
    assert config.max_context_tokens == 2048
    assert config.rope_scaling.attention_factor == pytest.approx(0.1 * np.log(4) + 1)
    assert read(rope_scaling=yarn, max_position_embeddings=4096).max_context_tokens == 4096


@pytest.mark.parametrize(
    "name, value, limit",
    [
        ("beta_fast", 1e308, "at most 6.71089e+07"),
        ("beta_slow", 1e308, "at most 6.71089e+07"),
        ("beta_slow", 1e-310, "above 1e-06"),
    ],
)
def test_rotations_of_yarn_past_any_context_are_refused(read, name, value, limit):
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    with pytest.raises(ModelFileError, match=f"{name} is .*{re.escape(limit)}"):
        read(rope_scaling=yarn | {name: value})


@pytest.mark.parametrize("betas", [{"beta_fast": 6e7}, {"beta_slow": 1.1e-6}])
def test_rotations_of_yarn_within_the_limits_give_frequencies(read, betas):
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    config = read(rope_scaling=yarn | betas)
    inv_freq, _ = rope_inv_freq(config.head_dim, config.rope_theta, config.rope_scaling)
    assert np.isfinite(inv_freq).all() and (inv_freq > 0).all()


def test_layers_of_a_qwen_see_a_window_from_the_stated_one_upwards(read):
    assert read(**QWEN_WINDOW, max_window_layers=1).windows == (None, 4096, 4096)
    mixed = ["sliding_attention", "full_attention", "sliding_attention"]
    assert read(**QWEN_WINDOW, sliding_window=7, layer_types=mixed).windows == (7, None, 7)
    assert read(model_type="qwen2", sliding_window=7, layer_types=mixed).windows == (None,) * 3


def test_end_tokens_of_both_files_are_joined_without_repeats(read):
    assert read(eos_token_id=None).eos_token_ids == ()
    assert read(eos_token_id=[5, 7], generation={"eos_token_id": [7, 9]}).eos_token_ids == (5, 7, 9)


@pytest.mark.parametrize("absent", [..., None])
def test_key_value_heads_default_to_the_query_heads_in_a_llama_alone(read, absent):
    assert read(num_key_value_heads=absent).num_kv_heads == 6
    for model_type in ("mistral", "qwen2", "qwen3"):
        with pytest.raises(ModelFileError, match="num_key_value_heads is missing"):
            read(model_type=model_type, num_key_value_heads=absent)


YARN_4 = {"type": "yarn", "factor": 4.0}


def test_rope_scaling_that_is_added_by_hand_replaces_rope_parameters(read):
    newer = {"rope_type": "default", "rope_theta": 1e6}
    config = read(rope_theta=1e6, rope_parameters=newer, rope_scaling=YARN_4)
    assert (config.rope_theta, config.rope_scaling.type) == (1e6, "yarn")
    assert config.max_context_tokens == 4 * 512
    with pytest.raises(ModelFileError, match=r"rope_parameters\.rope_theta is .*in rope_scaling"):
        read(rope_theta=..., rope_parameters=newer, rope_scaling=YARN_4)
    for absent in (None, {}):
        config = read(rope_theta=..., rope_parameters=newer, rope_scaling=absent)
        assert (config.rope_theta, config.rope_scaling) == (1e6, RopeScaling())
        assert read(rope_parameters=absent, rope_scaling=YARN_4).rope_scaling.type == "yarn"


def test_a_mixture_of_layers_is_refused_where_all_are_alike(read):
    full, window = ["full_attention"] * 3, ["sliding_attention"] * 3
    assert read(layer_types=full).windows == (None,) * 3
    mistral = {"model_type": "mistral", "sliding_window": 64}
    assert read(**mistral, layer_types=window).windows == (64,) * 3
    for changes in ({"layer_types": window}, mistral | {"layer_types": full[:1] + window[:2]}):
        with pytest.raises(ModelFileError, match="layer_types is"):
            read(**changes)


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ({"factor": 4.0}, "factor is 4.0"),
        ({"rope_type": "default", "factor": 2}, "factor is 2"),
        ({"type": "default", "long_factor": [1.0]}, "long_factor is"),
        ({"full_attention": {"rope_type": "yarn"}}, "full_attention is"),
    ],
)
def test_numbers_that_scale_rope_by_no_rule_are_refused(read, section, name):
    for where in ("rope_scaling", "rope_parameters"):
        with pytest.raises(ModelFileError, match=rf"{where}\.{name}"):
            read(**{where: section})


def test_an_original_context_that_is_said_twice_must_be_the_same(read):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    read(rope_scaling=scaling, original_max_position_embeddings=128)
    with pytest.raises(ModelFileError, match="original_max_position_embeddings is 256"):
        read(rope_scaling=scaling, original_max_position_embeddings=256)


def test_longropes_original_context_is_the_one_outside_its_section(read):
    factors = [1.0, 1.5, 2.0, 2.5]
    scaling = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors}
    inside = {"rope_scaling": scaling | {"original_max_position_embeddings": 128}}
    same = read(model_type="phi3", original_max_position_embeddings=128, **inside)
    assert same.rope_scaling.original_max_tokens == 128
    assert read(model_type="phi3", rope_scaling=scaling).rope_scaling.original_max_tokens == 4096
    with pytest.raises(ModelFileError, match="rope_scaling.original_max.* is 128"):
        read(model_type="phi3", **inside)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; expected one of llama, mistral"),
        ({"model_type": ...}, "model_type is missing"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"architectures": ["Model"]}, "architectures"),
        ({"architectures": 3}, "architectures"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected one of silu"),
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"hidden_size": 0}, "hidden_size is 0; expected an integer from 1"),
        ({"hidden_size": -48}, "hidden_size"),
        ({"hidden_size": 48.0}, "hidden_size is 48.0"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_size": "48"}, "hidden_size is '48'"),
        ({"hidden_size": 1 << 40}, "hidden_size"),
        ({"hidden_size": 50}, "hidden_size is 50; expected a multiple of the 6 heads"),
        ({"hidden_size": 42}, "head_dim"),
        ({"head_dim": 7}, "head_dim is 7; expected an even number"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"num_key_value_heads": 4}, "num_key_value_heads is 4; expected a divisor of the 6"),
        ({"num_key_value_heads": 12}, "num_key_value_heads"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"rope_theta": 1.0}, "rope_theta"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; expected true or false"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"eos_token_id": 300}, "eos_token_id is 300"),
        ({"eos_token_id": ["</s>"]}, "eos_token_id"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": []}, "rope_scaling"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type is 'dynamic'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type is 'longrope'"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0.0}}, "factor"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor"),
        ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 0}}, "original_max"),
        (QWEN_WINDOW | {"layer_types": ["full_attention"] * 2}, "layer_types"),
        (QWEN_WINDOW | {"layer_types": ["full_attention"] * 2 + ["conv"]}, "layer_types"),
        (QWEN_WINDOW | {"layer_types": "full_attention"}, "layer_types is 'full_attention'"),
        (QWEN_WINDOW | {"layer_types": [["full_attention"]] * 3}, "layer_types"),
    ],
)
def test_a_field_that_is_wrong_or_unsupported_is_named_with_its_value(read, changes, expected):
    with pytest.raises(ModelFileError) as caught:
        read(**changes)
    assert expected in caught.value.message and "config.json" in caught.value.message


def test_a_folder_without_config_json_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ModelFileError, match="config.json: cannot be opened"):
        config_from_hf(tmp_path)
