"""What config.json says of every family in the same words (config_json.py writes them).

Reads the spellings of transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters). What one
family says in its own way is in its file.
"""

import os
from dataclasses import replace

from marlin.files.fields import Fields, file_fields
from marlin.files.strict_json import read_json_object
from marlin.models.config import (
    HF,
    MAX_CONTEXT_TOKENS,
    MAX_LAYERS,
    MAX_VOCAB,
    context_tokens,
    read_sizes,
    yarn,
)
from marlin.models.rope import RopeScaling, yarn_attention_factor

# What a file without rope_theta means, unless its family says otherwise.
IMPLIED_THETA = 10000.0


def shared(
    fields: Fields,
    architecture: str,
    *,
    implies_kv_heads: bool = False,
    activation: str = "hidden_act",
    activations: tuple[str, ...] = ("silu", "swish"),
    rope: Fields | None = None,
    turns_partly: bool = False,
) -> dict:
    """The fields of ModelConfig that config.json spells alike in every family.

    Args:
        fields: config.json's, with what the family means by those that are absent.
        implies_kv_heads: a file without num_key_value_heads means as many as query heads; in the
            other families transformers has numbers of its own, which published files do not need.
        activation, activations: the field of the feed-forward's activation, and what it may say;
            a file without it means the first.
        rope: the section that scales RoPE; None is rope_scaling, or rope_parameters.
        turns_partly: the family reads partial_rotary_factor, by rotary_dim().

    Raises:
        ModelFileError: one is missing or wrong, or the model needs what is not supported.
    """
    fields.choice(activation, activations, activations[0])
    _refuse_unsupported(fields)
    if not turns_partly and fields.number("partial_rotary_factor", 1.0) != 1.0:
        fields.fail("partial_rotary_factor", "1 (RoPE over the whole head)")
    sizes = read_sizes(fields, HF, implies_kv_heads)
    vocab_size = fields.count("vocab_size", maximum=MAX_VOCAB)
    rope = rope or rope_section(fields)
    theta, scaling, max_tokens = _rope(fields, rope, sizes["max_context_tokens"], turns_partly)
    return {
        "architecture": architecture,
        **sizes,
        "vocab_size": vocab_size,
        "max_context_tokens": max_tokens,
        "rms_norm_eps": fields.number("rms_norm_eps", maximum=1.0),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_embeddings": fields.flag("tie_word_embeddings", False),
        "eos_token_ids": _eos_token_ids(fields, vocab_size),
        "num_prediction_layers": fields.count(
            "num_nextn_predict_layers", 0, minimum=0, maximum=MAX_LAYERS
        ),
    }


def refuse_mixture(fields: Fields, num_layers: int, kind: str) -> None:
    """For a family whose layers are all alike: `layer_types` may say so, or not be there."""
    if fields.raw("layer_types") not in (None, [kind] * num_layers):
        fields.fail("layer_types", f"{num_layers} of {kind}, or nothing")


def sliding_window(fields: Fields) -> int | None:
    """Null is no window, and not what a file means that leaves it out."""
    if "sliding_window" not in fields.values:
        return 4096
    return fields.count("sliding_window", None, maximum=1 << 31)


def windows(
    fields: Fields, num_layers: int, window: int | None, implied: list[str]
) -> tuple[int | None, ...]:
    """The window of each layer, by `layer_types`.

    Args:
        implied: the kinds of layers that a file without layer_types means.
    """
    kinds = fields.raw("layer_types") or implied
    known = {"full_attention": None, "sliding_attention": window}
    if type(kinds) is not list or len(kinds) != num_layers or not {*map(str, kinds)} <= set(known):
        fields.fail("layer_types", f"{num_layers} of {' and '.join(known)}")
    return tuple(known[kind] for kind in kinds)


def _refuse_unsupported(fields):
    names = fields.raw("architectures")
    if names is not None:
        listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not listed or not any(name.endswith("ForCausalLM") for name in names):
            fields.fail("architectures", "a causal language model (…ForCausalLM)")


def rotary_dim(fields: Fields, head_dim: int, implied: float = 1.0) -> int:
    """The first dimensions of a head that RoPE turns."""
    rope, stated = rope_section(fields), None
    if rope is not None:
        stated = rope.number("partial_rotary_factor", None, maximum=1.0)
    if stated is None:
        stated = fields.number("partial_rotary_factor", implied, maximum=1.0)
    dim = int(head_dim * stated)
    if dim < 2 or dim % 2:
        fields.fail("partial_rotary_factor", f"an even part of the head's {head_dim} dimensions")
    return dim


def ropes_by_kind(fields: Fields, flat: tuple[str, ...] = ()) -> tuple[Fields, Fields] | None:
    """The sections (of layers without a window, with one) of rope_parameters, each of which may be
    empty; None where the file has no such section.

    Args:
        flat: fields that may stand beside the sections and mean nothing.
    """
    ropes = fields.section("rope_parameters")
    if ropes is None or not ropes.values:
        _refuse_type_alone(fields)
        return None
    if fields.raw("rope_scaling"):
        fields.fail("rope_scaling", "nothing beside rope_parameters")
    kinds = "full_attention", "sliding_attention"
    for name in ropes.values:
        if name not in (*kinds, *flat) or not {*kinds} & {*ropes.values}:
            ropes.fail(name, "in full_attention or sliding_attention")
    both = ropes.with_defaults({kind: {} for kind in kinds})
    local = both.object("sliding_attention")
    local.choice("rope_type", ("default",), "default")
    refuse_lost_scaling(local)
    return both.object("full_attention"), local


def _refuse_type_alone(fields):
    """transformers 4 scales by the older spelling in these families, and 5 does not."""
    older = fields.section("rope_scaling")
    if older is not None and older.raw("rope_type") is None:
        if older.raw("type") not in (None, "default"):
            older.fail("type", "absent, or beside the same rope_type")


def _eos_token_ids(fields, vocab_size):
    sources = [fields]
    path = os.path.join(os.path.dirname(fields.path), "generation_config.json")
    if os.path.exists(path):
        sources.append(file_fields(path, read_json_object(path)))
    found = [id for source in sources for id in source.counts("eos_token_id", 0, vocab_size - 1)]
    return tuple(dict.fromkeys(found))


def rope_section(fields: Fields) -> Fields | None:
    """The section that transformers takes: rope_scaling where it holds anything, and then the other
    one's numbers are lost."""
    older, newer = fields.section("rope_scaling"), fields.section("rope_parameters")
    if older is None or not older.values:
        return newer if newer is not None and newer.values else None
    elsewhere = [source.raw("rope_theta") for source in (older, fields)]
    if newer is not None and elsewhere == [None, None]:
        if newer.number("rope_theta", None, above=1.0) not in (None, IMPLIED_THETA):
            newer.fail("rope_theta", "in rope_scaling, which replaces this section")
    return older


# What scales RoPE by some rule, if there is one.
_SCALES = ("factor", "low_freq_factor", "high_freq_factor", "short_factor", "long_factor")


def refuse_lost_scaling(rope: Fields) -> None:
    """Nothing scales without a rule: a file that has the numbers alone asked for something."""
    for name in _SCALES:
        if rope.raw(name) not in (None, 1, 1.0):
            rope.fail(name, "absent, or beside a rope_type that scales")


def _rope(fields, rope, max_tokens, turns_partly):
    """(theta, RopeScaling, max_context_tokens) from either spelling."""
    theta_fields = rope if rope and rope.raw("rope_theta") is not None else fields
    theta = theta_fields.number("rope_theta", IMPLIED_THETA, above=1.0)
    if rope is None:
        return theta, RopeScaling(), max_tokens
    if not turns_partly and rope.number("partial_rotary_factor", 1.0) != 1.0:
        rope.fail("partial_rotary_factor", "1 (RoPE over the whole head)")
    for name, value in rope.values.items():
        if isinstance(value, dict):
            rope.fail(name, "no section: RoPE is the same in all layers of this model")
    # Older files say `type`; some hold both, and `rope_type` is the one that counts.
    name = "rope_type" if rope.raw("rope_type") is not None else "type"
    kind = rope.choice(name, ("default", "mrope", "linear", "llama3", "yarn"), "default")
    if kind in ("default", "mrope"):  # of text alone positions are the same along every axis
        refuse_lost_scaling(rope)
        return theta, RopeScaling(), max_tokens
    if kind == "linear":
        return theta, RopeScaling("linear", rope.number("factor")), max_tokens
    original = rope.count(
        "original_max_position_embeddings",
        *([max_tokens] if kind == "yarn" else []),
        maximum=MAX_CONTEXT_TOKENS,
    )
    if fields.count("original_max_position_embeddings", original) != original:
        fields.fail("original_max_position_embeddings", f"the {original} of the RoPE section")
    scaling = (_llama3 if kind == "llama3" else _yarn)(rope, original, max_tokens)
    return theta, scaling, context_tokens(max_tokens, scaling)


def _llama3(rope, original, max_tokens):
    low = rope.number("low_freq_factor")
    return RopeScaling(
        type="llama3",
        factor=rope.number("factor"),
        original_max_tokens=original,
        low_freq_factor=low,
        high_freq_factor=rope.number("high_freq_factor", above=low),
    )


def _yarn(rope, original, max_tokens):
    factor = rope.number("factor", max_tokens / original)
    stated = rope.number("attention_factor", None)
    mscale, all_dim = rope.number("mscale", None), rope.number("mscale_all_dim", None)
    scale = stated or yarn_attention_factor(factor, mscale, all_dim)
    return replace(yarn(rope, "", factor, original, scale), truncate=rope.flag("truncate", True))
