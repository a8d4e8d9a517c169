"""Configs at random: what is read is what `transformers` reads, and the rest is refused by name."""

import json
from collections import Counter
from importlib import import_module

import numpy as np
import pytest
import pytorch  # noqa: F401  (what turns positions is of its modules)
from hypothesis import given, settings
from hypothesis import strategies as st
from mixture_families import MIXTURES
from transformers import AutoConfig, GenerationConfig
from vocabularies import byte_level_metadata, hugging_face_backend

from marlin.errors import ModelFileError
from marlin.models.registry import FAMILIES, config_from_hf, spec_of
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
FACTORS = st.sampled_from([[1.0 + 0.1 * i for i in range(n)] for n in (8, 6, 4)])
LONGROPE = st.fixed_dictionaries(
    {
        "rope_type": st.just("longrope"),
        "short_factor": FACTORS,
        "long_factor": FACTORS,
        "partial_rotary_factor": maybe(1.0, 0.75),
        "original_max_position_embeddings": maybe(64),
    }
).map(without_absent)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
WHOLE = st.sampled_from([LLAMA3, YARN, {"type": "linear", "factor": 2.0}, {"factor": 4.0}])
SECTION = maybe(None, {}) | WHOLE | sections(TYPES)
# As transformers 5 writes the sections of a family whose kinds of layers have a RoPE each.
KINDS = st.fixed_dictionaries(
    {
        "full_attention": SECTION,
        "sliding_attention": maybe(None, {}, {"rope_type": "default", "rope_theta": 5e4}),
    }
).map(without_absent)
END_TOKENS = maybe(None, 7, [7, 9], [])
# Attention in every layer: of the others' layers there is no RoPE to compare.
DELTA = {"layer_types": st.just(["full_attention"] * NUM_LAYERS)}
EXPERTS = {
    "num_experts": st.just(8),
    "num_experts_per_tok": st.just(2),
    "moe_intermediate_size": st.just(48),
    "shared_expert_intermediate_size": maybe(64),
}
LATENT = {
    "num_hidden_layers": st.just(NUM_LAYERS),
    "num_key_value_heads": st.sampled_from([6, 6, 3, ...]),
    "head_dim": ABSENT,  # transformers keeps qk_rope_head_dim there
}
GEMMA4 = {
    "rope_scaling": maybe(None),
    "vocab_size_per_layer_input": st.just(400),
    "num_key_value_heads": st.sampled_from([1, 2, 3]),
    "sliding_window": maybe(32),
    "layer_types": maybe(["full_attention"] * NUM_LAYERS),
    "rope_parameters": maybe(None)
    | st.fixed_dictionaries(
        {
            "full_attention": st.fixed_dictionaries(
                {
                    "rope_type": st.sampled_from(["proportional", "default"]),
                    "rope_theta": st.just(5e3),
                    "partial_rotary_factor": maybe(0.25, 0.7),
                    "factor": maybe(1.0, 2.0),
                }
            ).map(without_absent),
            "sliding_attention": st.just({"rope_type": "default", "rope_theta": 5e4}),
        }
    ),
}
# What some families have of their own.
OWN = {
    "qwen3_next": DELTA | EXPERTS,
    "qwen3_5_text": DELTA,
    "lfm2_moe": DELTA | EXPERTS,
    "qwen3_5_moe_text": DELTA | EXPERTS,
    "gemma2": {"attn_logit_softcapping": maybe(None, 50.0)},
    "gemma4_text": GEMMA4,
    "gemma4_unified_text": GEMMA4,
    "gemma3_text": {"attn_logit_softcapping": maybe(None, 50.0)},
    "granite": {"attention_multiplier": maybe(0.3)},
    "smollm3": {"no_rope_layers": maybe(None, [1, 0, 1])},
    "glm4": {"partial_rotary_factor": maybe(0.5, 1.0)},
    "glm4_moe_lite": LATENT | {"mlp_layer_types": st.just(["dense", "sparse", "sparse"])},
    "deepseek_v3": LATENT,
    "phi3": {
        "partial_rotary_factor": maybe(0.5, 0.75, 1.0),
        "rope_parameters": SECTION | LONGROPE,
        "rope_scaling": maybe(None),
    },
    "ministral3": {
        "rope_parameters": st.fixed_dictionaries(
            {
                "rope_type": st.sampled_from(["default", "yarn", "yarn", "linear"]),
                "factor": maybe(4.0),
                "rope_theta": maybe(1e6),
                "original_max_position_embeddings": st.sampled_from([64, 64, 128, ...]),
                "mscale": maybe(1.0),
                "mscale_all_dim": maybe(1.0),
                "llama_4_scaling_beta": st.sampled_from([0.1, 0.1, 0.3, ...]),
            }
        ).map(without_absent),
        "rope_scaling": maybe(None),
    },
}
FIELDS = {
    "max_position_embeddings": st.sampled_from([128, 512]),
    "original_max_position_embeddings": maybe(64),
    "rope_theta": maybe(None, 10000.0, 5e5),
    "rope_scaling": SECTION,
    "rope_local_base_freq": maybe(None, 5e4),
    "rope_parameters": SECTION | KINDS,
    "head_dim": maybe(None, 16, 32),
    "num_key_value_heads": maybe(None, 3, 6) | st.just(2),
    "tie_word_embeddings": maybe(True, False),
    "sliding_window": maybe(None, 32),
    "sliding_window_pattern": maybe(2, 3),
    "query_pre_attn_scalar": maybe(16, 24),
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
GENERATION = st.none() | st.fixed_dictionaries(
    {"eos_token_id": END_TOKENS, "temperature": maybe(None, 0.6), "num_beams": maybe(1, 2)}
)


def part_of(config, ending):
    """The class of the module that the model would use, by the end of its name."""
    module = import_module(type(config).__module__.replace("configuration_", "modeling_"))
    names = [name for name in vars(module) if name.endswith(ending)]
    return getattr(module, next(name for name in names if "Vision" not in name))


def rotary_tables(config):
    """{kind of layer: (inv_freq, attention scaling)} of the module that the model would use; None
    is the kind of all."""
    made = part_of(config, "RotaryEmbedding")(config)
    if hasattr(made, "inv_freq"):
        return {None: (made.inv_freq.numpy(), float(made.attention_scaling))}
    return {
        kind: (
            getattr(made, f"{kind}_inv_freq").numpy(),
            float(getattr(made, f"{kind}_attention_scaling")),
        )
        for kind in made.layer_types
    }


def windows(config):
    """What each layer sees, as transformers' attention masks have it."""
    if config.model_type in ("mistral", "ministral3", "phi3", "mixtral", "qwen3_moe"):
        return (config.sliding_window,) * NUM_LAYERS
    if config.model_type in ("glm4_moe", "glm4_moe_lite", "deepseek_v3"):
        return (None,) * NUM_LAYERS  # keeps what a file says of windows, and reads none of it
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * NUM_LAYERS
    window = getattr(config, "sliding_window", None)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def turns(config, index):
    """Whether a layer has RoPE."""
    if config.model_type == "smollm3":
        return bool(config.no_rope_layers[index])
    if config.model_type == "muse_glimmer_text":
        return bool(config.layer_rope_theta[index])
    if config.model_type == "exaone4" and config.sliding_window is not None:
        return config.layer_types[index] == "sliding_attention"
    return True


def as_set(ids):
    return set(ids if isinstance(ids, list) else [] if ids is None else [ids])


def attention_of(layer):
    """The part of a layer that has a RoPE, whatever its family calls it."""
    parts = (getattr(layer, name) for name in layer.__dataclass_fields__)
    return next(part for part in parts if hasattr(part, "rope"))


def check_config(ours, theirs, tables):
    kinds = getattr(theirs, "layer_types", None) or [None] * NUM_LAYERS
    # A config keeps what its family does not know, too.
    has_scalar = hasattr(type(theirs), "query_pre_attn_scalar")
    scale = (theirs.query_pre_attn_scalar if has_scalar else ours.head_dim) ** -0.5
    if hasattr(type(theirs), "attention_multiplier"):
        scale = theirs.attention_multiplier
    if ours.architecture.startswith("gemma4"):
        scale = 1.0
    if hasattr(theirs, "kv_lora_rank"):
        scale = part_of(theirs, "Attention")(theirs, 0).scaling
    for index, (layer, kind) in enumerate(zip(spec_of(ours).layers, kinds, strict=True)):
        attention = attention_of(layer)
        assert attention.scale == pytest.approx(scale, rel=1e-6)
        rope = attention.rope
        if rope is None:
            assert not turns(theirs, index)
            continue
        assert turns(theirs, index)
        inv_freq, scaling = tables[kind if kind in tables else None]
        # transformers begins with the factors of short contexts.
        found, found_scaling = rope_inv_freq(rope.dim, rope.theta, rope.scaling, None, 1)
        np.testing.assert_allclose(found, inv_freq, rtol=2e-6)
        assert found_scaling == pytest.approx(scaling, rel=1e-6)
    if ours.architecture == "ministral3":
        found = attention_of(spec_of(ours).layers[0])
        rope = theirs.rope_parameters
        assert found.position_scale == rope.get("llama_4_scaling_beta")
        assert found.scale_tokens == rope.get("original_max_position_embeddings")
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    if ours.architecture != "llama":
        assert ours.windows == windows(theirs)


def check_end_tokens(folder, config, generation, theirs):
    said = as_set(config.get("eos_token_id")) | as_set((generation or {}).get("eos_token_id"))
    ours = load_tokenizer(folder).eos_token_ids
    assert ours == said | BY_TEXT
    # What a config means that names no token is its tokenizer's own in published files.
    implied = set() if config.get("eos_token_id") else as_set(type(theirs)().eos_token_id)
    if generation is None:
        theirs = GenerationConfig.from_model_config(theirs)
    else:
        theirs = GenerationConfig.from_pretrained(folder)
    assert as_set(theirs.eos_token_id) <= ours | implied


@pytest.mark.parametrize(
    "model_type", [f.model_type for f in FAMILIES if f.hf_class.endswith("ForCausalLM")]
)
def test_folders_at_random_read_as_transformers_reads_them_or_are_refused(model_type, tmp_path):
    strategy = st.fixed_dictionaries(FIELDS | OWN.get(model_type, {}))
    backend = hugging_face_backend(byte_level_metadata("gpt-2", num_merges=40), [BYTE_LEVEL])
    backend.save(str(tmp_path / "tokenizer.json"))
    counts = Counter()

    @settings(max_examples=50)
    @given(config=strategy, generation=GENERATION)
    def check(config, generation):
        experts = {**MIXTURES.get(model_type, ("", {}))[1], "model_type": model_type}
        config = SIZES | experts | without_absent({"num_key_value_heads": ..., **config})
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
            tables = rotary_tables(theirs)
        except Exception:  # whatever transformers makes of nonsense
            return
        check_config(ours, theirs, tables)
        try:
            check_end_tokens(tmp_path, config, generation, theirs)
        except ModelFileError as error:
            assert "generation_config.json: num_beams is 2" in error.message
            return
        counts["read"] += 1

    check()
    assert counts["read"], counts
