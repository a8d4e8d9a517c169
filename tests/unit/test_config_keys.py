"""Each key that a family's config class declares in transformers: read here, or refused by name.

Automatic over the registry: a new family, or a key that a new version of transformers reads, fails
until its file says what it makes of it.
"""

import json

import pytest
from dense_families import FAMILIES as DENSE
from dense_families import SIZES
from hybrid_families import HYBRIDS
from mixture_families import MIXTURES, small_config
from transformers import CONFIG_MAPPING

from marlin.errors import ModelFileError
from marlin.models.registry import FAMILIES, config_from_hf, spec_of

# What changes no logit of a model that generates: training, caching, and words of the tokenizer.
WITHOUT_EFFECT = {
    "attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob",
    "classifier_dropout", "resid_pdrop", "embd_pdrop", "initializer_range", "use_cache",
    "bos_token_id", "pad_token_id", "eos_token_id", "pretraining_tp", "output_router_logits",
    "router_aux_loss_coef", "num_mtp_layers", "router_jitter_noise", "tie_encoder_decoder",
}  # fmt: skip
# Keys that another one overrules in the configs used here, and what must be left out for them to be
# read.
OVERRULED = {
    "full_attn_idxs": ("layer_types",),
    "no_rope_layer_interval": ("no_rope_layers", "layer_types"),
    "sliding_window_pattern": ("layer_types",),
    "max_window_layers": ("layer_types",),
    "layer_types": ("sliding_window_pattern",),
    "use_sliding_window": ("layer_types",),
    "rope_parameters": ("layer_rope_theta",),
}
BESIDE = {
    "sliding_window": {"use_sliding_window": True},
    "max_window_layers": {"use_sliding_window": True, "sliding_window": 32},
    "use_sliding_window": {"sliding_window": 32, "max_window_layers": 1},
    "layer_types": {"use_sliding_window": True, "sliding_window": 32},
    "original_max_position_embeddings": {"original_max_position_embeddings": 64},
}


OWN = {
    encoder: {"num_key_value_heads": None, "tie_word_embeddings": None}
    for encoder in ("bert", "roberta", "xlm-roberta", "camembert")
}
# What says something of an output matrix, which an encoder's states do not reach.
OF_A_HEAD = {(encoder, "tie_word_embeddings") for encoder in OWN}


# Whose lack is named by another key.
BY_ANOTHER = {
    "num_experts": "num_local_experts",
    "linear_num_key_heads": "linear_num_value_heads",
    "num_hidden_layers": "layer_types",
    "layer_types": "num_kv_shared_layers",
    "n_group": "topk_group",
}
# Of layers without experts, as files without any need not say; their matrices' shapes are checked.
UNSAID = {("qwen3_next", "intermediate_size")}


def declared(model_type):
    """{key: its default} of what the family's own config class declares."""
    cls = CONFIG_MAPPING[model_type]
    return {name: getattr(cls, name, None) for name in cls.__annotations__}


def base_of(model_type):
    own = OWN.get(model_type, {"head_dim": 32})
    if model_type in DENSE | MIXTURES | HYBRIDS:
        own = small_config(model_type)[1]
    count = max(4, len(own.get("layer_types", ())))
    values = SIZES | own | {"num_hidden_layers": count, "model_type": model_type}
    for name in ("layer_types", "no_rope_layers", "layer_rope_theta"):
        if name in values and len(values[name]) < 4:
            values[name] = values[name] * 2
    return {name: value for name, value in values.items() if value is not None}


def others(name, value):
    """Values that are not `value`, of what kinds the key may have."""
    if name == "layer_types":
        kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
        return [(2 * kinds)[-max(4, len(value or ())) :]]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, list):
        return [value[::-1], value[1:]]
    if isinstance(value, dict):
        return [{"rope_type": "linear", "factor": 3.0, "rope_theta": 5e3}]
    if isinstance(value, str):
        return ["relu"]
    if isinstance(value, (int, float)):
        return [value * 2, value / 2]
    return [8, True, 0.25, [1, 0, 1, 0], "relu", {"rope_type": "linear", "factor": 3.0}]


def read(folder, values):
    """The model's description, or the refusal's text."""
    (folder / "config.json").write_text(json.dumps(values))
    try:
        config = config_from_hf(folder)
    except ModelFileError as error:
        return error.message
    return spec_of(config)


KEYS = [
    (family.model_type, name)
    for family in FAMILIES
    if family.model_type in CONFIG_MAPPING
    for name in declared(family.model_type)
    if name not in WITHOUT_EFFECT
    and (family.model_type, name) not in OF_A_HEAD
    and not name.startswith(("base_model_", "default_"))
]


@pytest.mark.parametrize("model_type, name", KEYS, ids=lambda value: value)
def test_a_key_changes_the_model_or_is_refused_by_name(model_type, name, tmp_path):
    keys = declared(model_type)
    beside = {key: value for key, value in BESIDE.get(name, {}).items() if key in keys}
    values = base_of(model_type) | beside
    for overruling in OVERRULED.get(name, ()):
        values.pop(overruling, None)
    base = read(tmp_path, values)
    assert not isinstance(base, str), base
    seen = []
    for value in others(name, values.get(name, keys[name])):
        seen.append(read(tmp_path, values | {name: value}))
        if isinstance(seen[-1], str) and name not in seen[-1]:
            seen[-1] = base  # refused for what it means elsewhere; another value may tell
    assert any(found != base for found in seen), f"{name} is neither read nor refused"


@pytest.mark.parametrize("model_type", sorted({model_type for model_type, _ in KEYS}))
def test_no_whole_number_is_taken_however_large_it_is(model_type, tmp_path):
    """Each is refused by its name, or has no effect."""
    for name in [name for family, name in KEYS if family == model_type]:
        keys = declared(model_type)
        beside = {key: value for key, value in BESIDE.get(name, {}).items() if key in keys}
        values = base_of(model_type) | beside
        for overruling in OVERRULED.get(name, ()):
            values.pop(overruling, None)
        if type(values.get(name, keys[name])) is int:
            found = read(tmp_path, values | {name: 1 << 40})
            assert name in found if isinstance(found, str) else found == read(tmp_path, values)


def test_a_family_whose_window_is_never_off_refuses_one_that_is_null(tmp_path):
    values = base_of("muse_glimmer_text") | {"sliding_window": None}
    said = "sliding_window is missing; expected the window of the layers that have one"
    assert read(tmp_path, values).endswith(said)


def test_every_family_has_keys_that_are_tried():
    assert {model_type for model_type, _ in KEYS} >= {*DENSE, "llama", "qwen3", "gemma3_text"}


@pytest.mark.parametrize(
    "model_type, name", [key for key in KEYS if key not in UNSAID], ids=lambda value: value
)
def test_a_key_that_is_left_out_means_what_the_family_declares(model_type, name, tmp_path):
    keys = declared(model_type)
    values = base_of(model_type)
    values.pop(name, None)
    for overruling in OVERRULED.get(name, ()):
        values.pop(overruling, None)
    without = read(tmp_path, values)
    if isinstance(without, str):  # nothing is implied: it must be there, or fit the others
        assert name in without or BY_ANOTHER[name] in without, without
        return
    assert read(tmp_path, values | {name: keys[name]}) == without
