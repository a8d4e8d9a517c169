"""Muse Glimmer: Gemma's layer with a gate on what is attended, and norms without weights.

Every fourth layer, counted from the last, has no window and no RoPE. Its files wrap the language
model, and hold norms less 1 but for the last.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from marlin.files.fields import Fields
from marlin.models import config_gguf, config_hf, config_json
from marlin.models.config import ModelConfig
from marlin.models.layers import Rope, attention, gated_feed_forward
from marlin.models.layers_residual import SandwichLayer
from marlin.models.spec import Constant, Family, ModelSpec, Names
from marlin.weights import ggml_types
from marlin.weights.gguf import GGUFFile
from marlin.weights.tensor_file import read_bytes

PERIOD = 4
# What a file means that leaves them out: config.json's name, then a GGUF header's.
NUMBERS = {
    "qk_scale_factor": (3.87, None),
    "output_multiplier": (0.19611613513818404, "logit_scale"),
    "final_logit_softcapping": (20.0, "final_logit_softcapping"),
    "post_norm_eps": (1e-8, None),
}


@dataclass(frozen=True, slots=True)
class MuseGlimmerConfig(ModelConfig):
    """Attributes of the family:

    turns: whether each layer has RoPE.
    qk_scale_factor: what queries are multiplied by after their norm.
    output_multiplier, final_logit_softcapping: of logits.
    post_norm_eps: of the norms after a part.
    """

    turns: tuple[bool, ...]
    qk_scale_factor: float
    output_multiplier: float
    final_logit_softcapping: float
    post_norm_eps: float


class MuseGlimmer(Family[MuseGlimmerConfig]):
    model_type = "muse_glimmer_text"
    hf_class = "MuseGlimmerForCausalLM"
    gguf_architecture = "muse-glimmer"

    def config_from_hf(self, fields: Fields) -> MuseGlimmerConfig:
        fields = fields.with_defaults({"head_dim": 128})
        if fields.values.get("sliding_window", 1) is None:
            fields.fail("sliding_window", "the window of the layers that have one")
        shared = config_hf.shared(fields, self.model_type, activation="hidden_activation")
        num_layers = shared["num_layers"]
        kinds = [
            "sliding_attention" if slides else "full_attention" for slides in _sliding(num_layers)
        ]
        window = fields.count("sliding_window", 2048, maximum=1 << 31)
        has_bias = fields.flag("attention_bias", False)
        return MuseGlimmerConfig(
            **shared,
            qkv_bias=has_bias,
            o_bias=has_bias,
            windows=config_hf.windows(fields, num_layers, window, kinds),
            turns=_turns(fields, num_layers, shared["rope_theta"]),
            **{name: fields.number(name, implied) for name, (implied, _) in NUMBERS.items()},
        )

    def config_from_gguf(self, file: GGUFFile) -> MuseGlimmerConfig:
        fields = config_gguf.fields_of(file, self.gguf_architecture)
        shared = config_gguf.shared(file, fields, self.model_type) | {"qk_norm": False}
        num_layers = shared["num_layers"]
        if fields.raw("attention.sliding_window_pattern") is None:
            fields.fail("attention.sliding_window_pattern", "which layers have a window")
        windows = config_gguf.windows(fields, num_layers, PERIOD)
        numbers: dict[str, Any] = {
            name: fields.number(key, implied) if key else implied
            for name, (implied, key) in NUMBERS.items()
        }
        numbers["qk_scale_factor"] = _stored_scale(file, fields, num_layers)
        turns = tuple(window is not None for window in windows)
        return MuseGlimmerConfig(**shared, windows=windows, turns=turns, **numbers)

    def hf_config(self, config: MuseGlimmerConfig) -> dict:
        values = config_json.shared_values(config, self.hf_class)
        del values["hidden_act"], values["mlp_bias"]
        kinds = ["sliding_attention" if window else "full_attention" for window in config.windows]
        theta = config.rope_theta
        return values | {
            "hidden_activation": "silu",
            "layer_types": kinds,
            "sliding_window": next(filter(None, config.windows), 2048),
            "layer_rope_theta": [theta if turns else 0 for turns in config.turns],
            **{name: getattr(config, name) for name in NUMBERS},
        }

    def spec(self, config: MuseGlimmerConfig) -> ModelSpec:
        stored = tuple(
            f"blk.{index}.attn_{letter}_norm."
            for index in range(config.num_layers)
            for letter in "qk"
        )
        return ModelSpec.usual(
            config,
            tuple(_layer(config, index) for index in range(config.num_layers)),
            unused=stored,
            logit_scale=config.output_multiplier,
            logit_cap=config.final_logit_softcapping,
            embed_norm=Constant("embed_norm", (config.hidden_dim,), 1.0),
        )


def _layer(config, index):
    names, dim = Names.of_layer(index, norm_plus=1.0), config.hidden_dim
    rope = Rope(config.head_dim, config.rope_theta, config.rope_scaling)
    q_norm = Constant("q_norm", (config.head_dim,), config.qk_scale_factor)
    q_shape = config.num_heads * config.head_dim, dim
    part = attention(
        names,
        config,
        rope if config.turns[index] else None,
        config.windows[index],
        rows_interleaved=True,
        norms=(q_norm, Constant("k_norm", (config.head_dim,), 1.0)),
        gate=names.linear("self_attn.gate_proj", "attn_gate", q_shape, "attention"),
    )
    return SandwichLayer(
        names.norm("input_layernorm", "attn_norm", dim),
        part,
        names.norm("post_attention_layernorm", "post_attention_norm", dim),
        names.norm("pre_feedforward_layernorm", "ffn_norm", dim),
        gated_feed_forward(names, config),
        names.norm("post_feedforward_layernorm", "post_ffw_norm", dim),
        config.post_norm_eps,
    )


def _sliding(num_layers):
    return [(num_layers - 1 - index) % PERIOD != 0 for index in range(num_layers)]


def _turns(fields, num_layers, theta):
    """A layer's theta is the model's, or 0 for none."""
    stated = fields.raw("layer_rope_theta")
    if stated is None:
        return tuple(_sliding(num_layers))
    if type(stated) is not list or len(stated) != num_layers or {*map(str, stated)} - _texts(theta):
        fields.fail("layer_rope_theta", f"{num_layers} of 0 and the rope_theta, {theta:g}")
    return tuple(float(item) != 0 for item in stated)


def _texts(theta):
    """How a number that is 0 or theta may be written."""
    return {"0", "0.0", str(theta), str(int(theta)) if theta.is_integer() else ""}


def _stored_scale(file, fields, num_layers):
    """The factor of queries, which files hold as a norm's weights; those of keys are 1."""
    found = set()
    for index in range(num_layers):
        for letter in "qk":
            info = file.tensors.get(f"blk.{index}.attn_{letter}_norm.weight")
            if info is None or len(info.shape) != 1 or info.dtype not in ("F32", "F16", "BF16"):
                fields.fail("block_count", f"beside floats in blk.{index}.attn_{letter}_norm")
            values = ggml_types.dequantize(info.dtype, read_bytes(info), info.shape)
            found |= {(letter, float(value)) for value in np.unique(values)}
    scales = [value for letter, value in found if letter == "q"]
    if len(scales) != 1 or ("k", 1.0) not in found or len(found) != 2:
        fields.fail("block_count", "beside norms of queries alike in all layers, and of keys of 1")
    return scales[0]
