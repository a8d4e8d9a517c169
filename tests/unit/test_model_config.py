"""ModelConfig from config.json (against transformers' own objects) and from GGUF metadata."""

import json
import re

import numpy as np
import pytest
from gguf_builder import build, f32
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from marlin.errors import ModelFileError
from marlin.models.registry import config_from_gguf, config_from_hf
from marlin.models.rope import RopeScaling, rope_inv_freq
from marlin.weights.gguf import GGUFFile

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
def test_rotations_of_yarn_past_any_context_are_refused(read, read_gguf, name, value, limit):
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    with pytest.raises(ModelFileError, match=f"{name} is .*{re.escape(limit)}"):
        read(rope_scaling=yarn | {name: value})
    yarn = {"llama.rope.scaling.type": ("str", "yarn"),
            "llama.rope.scaling.factor": ("f32", 4.0),
            f"llama.rope.scaling.yarn_{name}": ("f64", value)}  # fmt: skip
    with pytest.raises(ModelFileError, match=f"yarn_{name} is .*{re.escape(limit)}"):
        read_gguf(yarn)


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


def test_key_value_heads_default_to_the_query_heads(read):
    assert read(num_key_value_heads=...).num_kv_heads == 6


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
    assert config.eos_token_ids == (2, 1, 3)


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


def test_gguf_scaling_types_are_read(read_gguf):
    linear = {"llama.rope.scaling.type": ("str", "linear"),
              "llama.rope.scaling.factor": ("f32", 4.0)}  # fmt: skip
    assert read_gguf(linear).rope_scaling == RopeScaling("linear", 4.0)
    assert read_gguf({"llama.rope.scale_linear": ("f32", 2.0)}).rope_scaling.factor == 2.0
    yarn = linear | {"llama.rope.scaling.type": ("str", "yarn"),
                     "llama.rope.scaling.original_context_length": ("u32", 256)}  # fmt: skip
    config = read_gguf(yarn)
    assert config.rope_scaling.original_max_tokens == 256
    assert config.rope_scaling.attention_factor == pytest.approx(0.1 * np.log(4) + 1)
    assert config.max_context_tokens == 1024
    assert read_gguf({"llama.rope.scaling.type": ("str", "none")}).rope_scaling == RopeScaling()


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"llama.block_count": ...}, "llama.block_count is missing"),
        ({"llama.block_count": ("i32", -1)}, "llama.block_count is -1"),
        ({"llama.block_count": ("f32", 3.0)}, "llama.block_count is 3.0"),
        ({"llama.attention.head_count_kv": ("u32", 4)}, "divisor of the 6"),
        ({"llama.attention.value_length": ("u32", 16)}, "attention.value_length is 16"),
        ({"llama.rope.dimension_count": ("u32", 4)}, "rope.dimension_count is 4"),
        ({"llama.expert_count": ("u32", 8)}, "expert_count is 8"),
        ({"llama.rope.scaling.type": ("str", "longrope")}, "rope.scaling.type is 'longrope'"),
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
    assert config.eos_token_ids == (2, 0)
