"""Gemma 4 (text): Gemma 3's layer with plain norms, values that are normed, layers of two kinds of
heads, in the 26B-A4B experts beside each feed-forward, and in the small models layers that read the
keys and values of earlier ones, and a row of each token for each layer.
"""

import math
from dataclasses import replace
from typing import Any

from marlin.device import ops_experts
from marlin.files.fields import Fields
from marlin.models import config_gemma4, config_hf, config_json
from marlin.models.config_gemma4 import FULL, IMPLIED, SLIDING, Gemma4Config
from marlin.models.layers import Rope, attention, gated_feed_forward
from marlin.models.layers_experts import ExpertNames, mixture
from marlin.models.layers_gemma4 import (
    ExpertsBeside,
    Gemma4Layer,
    HiddenMixture,
    NormedAttention,
    RowGate,
    TokenRows,
)
from marlin.models.rope import RopeScaling
from marlin.models.spec import Constant, Family, ModelSpec, Names, Tensor
from marlin.weights.gguf import GGUFFile

SPELLED = ExpertNames("", "router.proj", stacked="experts.switch_glu")


class Gemma4(Family[Gemma4Config]):
    """Attributes:

    implied: what a config.json means beside IMPLIED.
    """

    model_type = "gemma4_text"
    hf_class = "Gemma4ForCausalLM"
    gguf_architecture: str | None = "gemma4"
    implied: dict[str, Any] = {"hidden_size_per_layer_input": 256}

    def config_from_hf(self, fields: Fields) -> Gemma4Config:
        fields = fields.with_defaults(IMPLIED | self.implied)
        if fields.raw("use_bidirectional_attention") not in (None, "vision"):
            fields.fail("use_bidirectional_attention", "null or vision (a model that generates)")
        full, local = config_gemma4.ropes(fields)
        shared = config_hf.shared(
            fields,
            self.model_type,
            activation="hidden_activation",
            activations=("gelu_pytorch_tanh",),
            rope=local,
        )
        has_bias = fields.flag("attention_bias", False)
        return Gemma4Config(
            **shared,
            **config_gemma4.from_hf(fields, shared, full),
            **self._experts(fields),
            qkv_bias=has_bias,
            o_bias=has_bias,
            qk_norm=True,
            wide_readers=self._wide_readers(fields),
        )

    def config_from_gguf(self, file: GGUFFile) -> Gemma4Config:
        return config_gemma4.from_gguf(file, self.model_type, str(self.gguf_architecture))

    def _wide_readers(self, fields: Fields) -> bool:
        return fields.flag("use_double_wide_mlp", False)

    def _experts(self, fields: Fields) -> dict:
        """Of MixtureConfig."""
        return config_gemma4.experts_of_hf(fields)

    def hf_config(self, config: Gemma4Config) -> dict:
        values = config_json.shared_values(config, self.hf_class)
        for name in ("hidden_act", "mlp_bias", "rope_theta", "rope_scaling"):
            del values[name]
        scaling = config.full_rope_scaling
        full = {"rope_type": scaling.type or "default", "rope_theta": config.full_rope_theta}
        if scaling.type:
            turning = 2 * scaling.num_turning / config.full_head_dim
            full |= {"partial_rotary_factor": turning, "factor": scaling.factor}
        return (
            values
            | config_gemma4.experts_of_json(config)
            | {
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
        )

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
    gguf_architecture = None  # its files say gemma4
    implied = {
        "hidden_size_per_layer_input": 0,
        "max_position_embeddings": 262144,
        "sliding_window": 1024,
    }

    def _wide_readers(self, fields: Fields) -> bool:
        if fields.flag("use_double_wide_mlp", False):
            fields.fail("use_double_wide_mlp", "false (transformers has no wider layers of it)")
        return False

    def _experts(self, fields: Fields) -> dict:
        return config_gemma4.without_experts(fields)


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
        _experts(names, config) if config.num_experts else None,
    )


def _experts(names, config):
    dim = config.hidden_dim
    routing = ops_experts.Router(config.num_experts, config.num_slots, bias="factors")
    plain = mixture(names, routing, dim, config.expert_dim, spelled=SPELLED, activation="gelu")
    scale = Tensor(f"{names.hf}router.scale", f"{names.gguf}ffn_gate_inp.scale", (dim,))
    gguf = f"{names.gguf}ffn_down_exps.scale"
    factors = Tensor(f"{names.hf}router.per_expert_scale", gguf, (config.num_experts,))
    norm = names.norm("pre_feedforward_layernorm_2", "pre_ffw_norm_2", dim)
    return ExpertsBeside(
        HiddenMixture.of(replace(plain, correction=factors), scale, norm),
        names.norm("post_feedforward_layernorm_1", "post_ffw_norm_1", dim),
        names.norm("post_feedforward_layernorm_2", "post_ffw_norm_2", dim),
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
