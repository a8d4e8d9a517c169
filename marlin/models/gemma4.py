"""Gemma 4 (text): Gemma 3's layer with plain norms, values that are normed, layers of two kinds of
heads, and in the small models layers that read the keys and values of earlier ones, and a row of
each token for each layer.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from marlin.files.fields import Fields
from marlin.models import config_hf, config_json
from marlin.models.config import MAX_DIM, MAX_HEAD_DIM, MAX_HEADS, MAX_VOCAB
from marlin.models.config_delta import WITHOUT_EXPERTS
from marlin.models.config_experts import MixtureConfig
from marlin.models.layers import Rope, attention, gated_feed_forward
from marlin.models.layers_gemma4 import Gemma4Layer, NormedAttention, RowGate, TokenRows
from marlin.models.rope import RopeScaling
from marlin.models.spec import Constant, Family, ModelSpec, Names, Tensor

PERIOD = 6
FULL, SLIDING = "full_attention", "sliding_attention"
# What a config.json means that leaves them out.
IMPLIED: dict[str, Any] = {
    **{"vocab_size": 262144, "hidden_size": 2304, "intermediate_size": 9216},
    **{"num_hidden_layers": 30, "num_attention_heads": 8, "num_key_value_heads": 4},
    **{"head_dim": 256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6},
    **{"sliding_window": 512, "tie_word_embeddings": True},
}
IMPLIED_ROPES = {
    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
    FULL: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
}
IMPLIED_FULL_HEAD_DIM = 512


@dataclass(frozen=True, slots=True)
class Gemma4Config(MixtureConfig):
    """Attributes of the family; head_dim and num_kv_heads are of layers with a window:

    full_head_dim, full_kv_heads: of those without.
    full_rope_theta, full_rope_scaling: of those without; rope_theta is of the others.
    keys_are_values: layers without a window make values of what keys are made of.
    num_readers: the last layers, which read what the last one of their kind before has cached.
    wide_readers: their feed-forward is twice as wide.
    row_dim: floats of a token's row for each layer; 0: there are none.
    logit_cap: 0 is none.
    """

    full_head_dim: int
    full_kv_heads: int
    full_rope_theta: float
    full_rope_scaling: RopeScaling
    keys_are_values: bool
    num_readers: int
    wide_readers: bool
    row_dim: int
    logit_cap: float

    def owner(self, index: int) -> int | None:
        """The layer whose keys and values a layer reads; None: its own."""
        first = self.num_layers - self.num_readers
        if index < first:
            return None
        slides = bool(self.windows[index])
        return max(i for i in range(first) if bool(self.windows[i]) == slides)


class Gemma4(Family[Gemma4Config]):
    """Attributes:

    implied: what a config.json means beside IMPLIED.
    """

    model_type = "gemma4_text"
    hf_class = "Gemma4ForCausalLM"
    implied: dict[str, Any] = {"hidden_size_per_layer_input": 256}

    def config_from_hf(self, fields: Fields) -> Gemma4Config:
        fields = fields.with_defaults(IMPLIED | self.implied)
        if fields.raw("use_bidirectional_attention") not in (None, "vision"):
            fields.fail("use_bidirectional_attention", "null or vision (a model that generates)")
        full, local = _ropes(fields)
        shared = config_hf.shared(
            fields,
            self.model_type,
            activation="hidden_activation",
            activations=("gelu_pytorch_tanh",),
            rope=local,
        )
        windows = _windows(fields, shared["num_layers"])
        has_bias = fields.flag("attention_bias", False)
        head_dim, kv_heads = _full_heads(fields, windows, shared)
        return Gemma4Config(
            **shared,
            **_experts_of_hf(fields),
            qkv_bias=has_bias,
            o_bias=has_bias,
            qk_norm=True,
            windows=windows,
            full_head_dim=head_dim,
            full_kv_heads=kv_heads,
            full_rope_theta=full.number("rope_theta", above=1.0),
            full_rope_scaling=_full_scaling(full, head_dim),
            keys_are_values=fields.flag("attention_k_eq_v", False),
            num_readers=_num_readers(fields, windows),
            wide_readers=self._wide_readers(fields),
            row_dim=_row_dim(fields, shared["vocab_size"]),
            logit_cap=fields.number("final_logit_softcapping", None) or 0.0,
        )

    def _wide_readers(self, fields: Fields) -> bool:
        return fields.flag("use_double_wide_mlp", False)

    def hf_config(self, config: Gemma4Config) -> dict:
        values = config_json.shared_values(config, self.hf_class)
        for name in ("hidden_act", "mlp_bias", "rope_theta", "rope_scaling"):
            del values[name]
        scaling = config.full_rope_scaling
        full = {"rope_type": scaling.type or "default", "rope_theta": config.full_rope_theta}
        if scaling.type:
            turning = 2 * scaling.num_turning / config.full_head_dim
            full |= {"partial_rotary_factor": turning, "factor": scaling.factor}
        return values | {
            "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": [SLIDING if window else FULL for window in config.windows],
            "sliding_window": next(filter(None, config.windows), 512),
            "rope_parameters": {
                FULL: full,
                SLIDING: {"rope_type": "default", "rope_theta": config.rope_theta},
            },
            "per_layer_config": {
                str(index): {
                    "head_dim": config.full_head_dim,
                    "num_key_value_heads": config.full_kv_heads,
                }
                for index, window in enumerate(config.windows)
                if not window
            },
            "attention_k_eq_v": config.keys_are_values,
            "num_kv_shared_layers": config.num_readers,
            "use_double_wide_mlp": config.wide_readers,
            "hidden_size_per_layer_input": config.row_dim,
            "vocab_size_per_layer_input": config.vocab_size,
            "final_logit_softcapping": config.logit_cap or None,
        }

    def spec(self, config: Gemma4Config) -> ModelSpec:
        width, dim = config.num_layers * config.row_dim, config.hidden_dim
        rows = None
        if width:
            names = Names("model.", "")
            table, projection = "embed_tokens_per_layer", "per_layer_model_projection"
            rows = TokenRows(
                Tensor(
                    f"model.{table}.weight",
                    "per_layer_token_embd.weight",
                    (config.vocab_size, width),
                    "table",
                ),
                names.linear(projection, "per_layer_model_proj", (width, dim), "mlp"),
                names.norm("per_layer_projection_norm", "per_layer_proj_norm", config.row_dim),
            )
        return ModelSpec.usual(
            config,
            tuple(_layer(config, index) for index in range(config.num_layers)),
            embed_scale=math.sqrt(dim),
            logit_cap=config.logit_cap,
            token_rows=rows,
            unused=_unused(config),
        )


class Gemma4Unified(Gemma4):
    """That of one embedding for texts, images and sounds: no rows of layers, no experts."""

    model_type = "gemma4_unified_text"
    hf_class = "Gemma4UnifiedForCausalLM"
    implied = {
        "hidden_size_per_layer_input": 0,
        "max_position_embeddings": 262144,
        "sliding_window": 1024,
    }

    def _wide_readers(self, fields: Fields) -> bool:
        if fields.flag("use_double_wide_mlp", False):
            fields.fail("use_double_wide_mlp", "false (transformers has no wider layers of it)")
        return False


def _layer(config, index):
    names, dim = Names.of_layer(index), config.hidden_dim
    reads = config.owner(index) is not None
    width = config.intermediate_dim * (2 if reads and config.wide_readers else 1)
    row_gate = None
    if size := config.row_dim:
        row_gate = RowGate(
            names.linear("per_layer_input_gate", "inp_gate", (size, dim), "mlp"),
            names.linear("per_layer_projection", "proj", (dim, size), "mlp"),
            names.norm("post_per_layer_input_norm", "post_norm", dim),
        )
    scalar = Tensor(f"{names.hf}layer_scalar", f"{names.gguf}layer_output_scale.weight", (1,))
    return Gemma4Layer(
        names.norm("input_layernorm", "attn_norm", dim),
        _attention(names, config, index),
        names.norm("post_attention_layernorm", "post_attention_norm", dim),
        names.norm("pre_feedforward_layernorm", "ffn_norm", dim),
        gated_feed_forward(names, replace(config, intermediate_dim=width), "gelu"),
        names.norm("post_feedforward_layernorm", "post_ffw_norm", dim),
        row_gate,
        scalar,
    )


def _attention(names, config, index):
    window, owner = config.windows[index], config.owner(index)
    rope = Rope(config.head_dim, config.rope_theta, RopeScaling())
    if not window:
        sizes = config.full_head_dim, config.full_kv_heads
        config = replace(config, head_dim=sizes[0], num_kv_heads=sizes[1])
        rope = Rope(sizes[0], config.full_rope_theta, config.full_rope_scaling)
    plain = attention(names, config, rope, window, scale=1.0)
    if owner is not None:
        return NormedAttention.of(plain, k=None, v=None, k_norm=None, owner=owner)
    v_norm = Constant(f"v_norm of {config.head_dim}", (config.head_dim,), 1.0)
    of_keys = config.keys_are_values and not window
    return NormedAttention.of(plain, v=None if of_keys else plain.v, v_norm=v_norm)


def _unused(config):
    """What published files hold of layers that read the keys and values of others, and the factors
    of RoPE, which the config has."""
    readers = range(config.num_layers - config.num_readers, config.num_layers)
    hf = ("k_proj.", "v_proj.", "k_norm.", "v_norm.")
    gguf = ("attn_k.", "attn_v.", "attn_k_norm.")
    return (
        "rope_freqs.weight",
        *(f"model.layers.{index}.self_attn.{name}" for index in readers for name in hf),
        *(f"blk.{index}.{name}" for index in readers for name in gguf),
    )


def _ropes(fields):
    """The sections of RoPE of layers without a window, and of those with one."""
    fields = fields.with_defaults({"rope_parameters": IMPLIED_ROPES})
    ropes = config_hf.ropes_by_kind(fields)
    if ropes is None:
        return fields.fail("rope_parameters", "absent, or a section for each kind of layer")
    for rope in ropes:
        rope.number("rope_theta", above=1.0)  # which neither has from elsewhere
    return ropes


def _full_scaling(rope, head_dim):
    if rope.choice("rope_type", ("proportional", "default"), "default") == "default":
        config_hf.refuse_lost_scaling(rope)
        return RopeScaling()
    part = rope.number("partial_rotary_factor", 1.0, maximum=1.0)
    factor = rope.number("factor", 1.0)
    return RopeScaling("proportional", factor, num_turning=int(part * head_dim // 2))


def _full_heads(fields, windows, shared):
    """(head_dim, KV heads) of the layers without a window."""
    own = shared["head_dim"], shared["num_kv_heads"]
    overrides = fields.section("per_layer_config")
    if overrides is None:
        found = {_global_heads(fields, own[1])}
    else:
        places = {str(index): window for index, window in enumerate(windows)}
        for name in overrides.values:
            if name not in places or not _heads_of(overrides, name, own):
                overrides.fail(name, "head_dim and num_key_value_heads of a layer")
            if places[name] and _heads_of(overrides, name, own) != own:
                overrides.fail(name, "absent (a layer with a window is as the config says)")
        full = [name for name, window in places.items() if not window]
        found = {_heads_of(overrides, name, own) for name in full}
    if len(found) > 1:
        fields.fail("per_layer_config", "the same of all layers without a window")
    head_dim, kv_heads = found.pop()
    if shared["num_heads"] % kv_heads or head_dim % 2:
        name = "num_global_key_value_heads" if overrides is None else "per_layer_config"
        fields.fail(
            name, f"a divisor of {shared['num_heads']} heads of an even number of dimensions"
        )
    return head_dim, kv_heads


def _global_heads(fields, kv_heads):
    head_dim = fields.count("global_head_dim", IMPLIED_FULL_HEAD_DIM, maximum=MAX_HEAD_DIM)
    stated = fields.count("num_global_key_value_heads", kv_heads, maximum=MAX_HEADS)
    return head_dim, stated if fields.flag("attention_k_eq_v", False) else kv_heads


def _heads_of(overrides, name, own):
    """What a layer has in place of what the config says; None where it says anything else."""
    said = overrides.section(name)
    if said is None:
        return own
    names = {"head_dim": MAX_HEAD_DIM, "num_key_value_heads": MAX_HEADS}
    if set(said.values) - set(names):
        return None
    found = zip(names.items(), own, strict=True)
    return tuple(said.count(key, implied, maximum=most) for (key, most), implied in found)


def _windows(fields, count):
    kinds = [SLIDING if (index + 1) % PERIOD else FULL for index in range(count - 1)] + [FULL]
    window = fields.count("sliding_window", maximum=1 << 31)
    windows = config_hf.windows(fields, count, window, kinds)
    if windows[-1]:
        fields.fail("layer_types", f"{FULL} of the last layer")
    return windows


def _num_readers(fields, windows):
    count = fields.count("num_kv_shared_layers", 0, minimum=0, maximum=len(windows) - 1)
    first = len(windows) - count
    if {bool(window) for window in windows[first:]} - {bool(window) for window in windows[:first]}:
        expected = "behind a layer of each kind that reads the keys and values of another"
        fields.fail("num_kv_shared_layers", expected)
    return count


def _row_dim(fields, vocab_size):
    size = fields.count("hidden_size_per_layer_input", 0, minimum=0, maximum=MAX_DIM)
    rows = fields.count("vocab_size_per_layer_input", 262144, maximum=MAX_VOCAB)
    if size and rows != vocab_size:
        fields.fail("vocab_size_per_layer_input", f"the vocabulary's {vocab_size}")
    return size


def _experts_of_hf(fields):
    for name in ("enable_moe_block", "num_experts", "top_k_experts", "moe_intermediate_size"):
        if fields.raw(name):
            fields.fail(name, "absent (no experts are read here)")
    return WITHOUT_EXPERTS
