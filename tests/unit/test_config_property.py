"""Configs at random: what is read is what `transformers` reads, and the rest is refused by name."""

import json
from collections import Counter
from importlib import import_module

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, GenerationConfig
from vocabularies import byte_level_metadata, hugging_face_backend

from marlin.errors import ModelFileError
from marlin.models.registry import config_from_hf
from marlin.models.rope import rope_inv_freq
from marlin.text.folder_tokenizer import load_tokenizer

BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
NUM_LAYERS = 3
SIZES = {
    "hidden_act": "silu",
    "hidden_size": 96,
    "intermediate_size": 96,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 400,
    "rms_norm_eps": 1e-5,
}
# <|endoftext|> and <|im_end|> of the vocabulary end a turn by their text.
BY_TEXT = {0, 2}
ABSENT = st.just(...)


def maybe(*values):
    return ABSENT | st.sampled_from(values)


def without_absent(values):
    return {name: value for name, value in values.items() if value is not ...}


def sections(types):
    """A RoPE section: of one type, or the numbers of any."""
    factor = maybe(None, 1, 1.0, 2, 4.0, 40)
    return st.fixed_dictionaries(
        {
            "rope_type": types,
            "type": types,
            "rope_theta": maybe(None, 10000.0, 1e6),
            "factor": factor,
            "original_max_position_embeddings": maybe(None, 64, 128),
            "low_freq_factor": maybe(1.0),
            "high_freq_factor": maybe(4.0),
            "beta_fast": maybe(None, 32, 20.0),
            "beta_slow": maybe(None, 1, 2.0),
            "attention_factor": maybe(None, 1.25),
            "mscale": maybe(0.707, 1.0),
            "mscale_all_dim": maybe(1.0),
            "truncate": maybe(True, False),
            "partial_rotary_factor": maybe(1.0, 0.5),
            "full_attention": maybe({"rope_type": "yarn", "factor": 2.0}),
        }
    ).map(without_absent)


TYPES = st.sampled_from([..., ..., "default", "linear", "llama3", "yarn", "dynamic", None])
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
WHOLE = st.sampled_from([LLAMA3, YARN, {"type": "linear", "factor": 2.0}, {"factor": 4.0}])
SECTION = maybe(None, {}) | WHOLE | sections(TYPES)
END_TOKENS = maybe(None, 7, [7, 9], [])
CONFIG = st.fixed_dictionaries(
    {
        "model_type": st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]),
        "max_position_embeddings": st.sampled_from([128, 512]),
        "original_max_position_embeddings": maybe(64),
        "rope_theta": maybe(None, 10000.0, 5e5),
        "rope_scaling": SECTION,
        "rope_parameters": SECTION,
        "head_dim": maybe(None, 16, 32),
        "num_key_value_heads": maybe(None, 3, 6) | st.just(2),
        "tie_word_embeddings": maybe(True, False),
        "sliding_window": maybe(None, 32),
        "use_sliding_window": maybe(True, False),
        "max_window_layers": maybe(1, 28),
        "layer_types": maybe(
            None,
            ["full_attention"] * NUM_LAYERS,
            ["sliding_attention"] * NUM_LAYERS,
            ["sliding_attention", "full_attention", "full_attention"],
        ),
        "eos_token_id": END_TOKENS,
        "quantization_config": maybe(None),
        "attention_bias": maybe(True, False),
    }
)
GENERATION = st.none() | st.fixed_dictionaries(
    {"eos_token_id": END_TOKENS, "temperature": maybe(None, 0.6), "num_beams": maybe(1, 2)}
)


def rotary_table(config):
    """(inv_freq, attention scaling) of the module that the model would use."""
    name = config.model_type
    module = import_module(f"transformers.models.{name}.modeling_{name}")
    made = getattr(module, f"{name.capitalize()}RotaryEmbedding")(config)
    return made.inv_freq.numpy(), float(made.attention_scaling)


def windows(config):
    """What each layer sees, as transformers' attention masks have it."""
    if config.model_type in ("mistral", "ministral"):
        return (config.sliding_window,) * NUM_LAYERS
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * NUM_LAYERS
    window = getattr(config, "sliding_window", None)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def as_set(ids):
    return set(ids if isinstance(ids, list) else [] if ids is None else [ids])


def check_config(ours, theirs, table):
    inv_freq, scaling = table
    found, found_scaling = rope_inv_freq(ours.head_dim, ours.rope_theta, ours.rope_scaling)
    np.testing.assert_allclose(found, inv_freq, rtol=2e-6)
    assert found_scaling == pytest.approx(scaling, rel=1e-6)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    if ours.architecture != "llama":
        assert ours.windows == windows(theirs)


def check_end_tokens(folder, config, generation, theirs):
    said = as_set(config.get("eos_token_id")) | as_set((generation or {}).get("eos_token_id"))
    ours = load_tokenizer(folder).eos_token_ids
    assert ours == said | BY_TEXT
    if generation is None:
        theirs = GenerationConfig.from_model_config(theirs)
    else:
        theirs = GenerationConfig.from_pretrained(folder)
    # A Llama's or a Mistral's config that names no token means 2, which is one by its text here.
    assert as_set(theirs.eos_token_id) <= ours


def test_folders_at_random_read_as_transformers_reads_them_or_are_refused(tmp_path):
    backend = hugging_face_backend(byte_level_metadata("gpt-2", num_merges=40), [BYTE_LEVEL])
    backend.save(str(tmp_path / "tokenizer.json"))
    counts = Counter()

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(config=CONFIG, generation=GENERATION)
    def check(config, generation):
        config = SIZES | without_absent({"num_key_value_heads": ..., **config})
        if config["num_key_value_heads"] is ...:
            del config["num_key_value_heads"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        other = tmp_path / "generation_config.json"
        other.unlink(missing_ok=True)
        if generation is not None:
            generation = without_absent(generation)
            other.write_text(json.dumps(generation))
        counts["all"] += 1
        try:
            ours = config_from_hf(tmp_path)
        except ModelFileError as error:
            assert "config.json: " in error.message
            return
        try:
            theirs = AutoConfig.from_pretrained(tmp_path)
            table = rotary_table(theirs)
        except Exception:
            return
        check_config(ours, theirs, table)
        try:
            check_end_tokens(tmp_path, config, generation, theirs)
        except ModelFileError as error:
            assert "generation_config.json: num_beams is 2" in error.message
            return
        counts["read"] += 1

    check()
    assert counts["read"] > counts["all"] / 10
