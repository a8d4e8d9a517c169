"""Gemma 3 (text): most layers see a window, every sixth all tokens, and each kind has its RoPE.

A part is normed before and after. Hugging Face's checkpoints store a norm less 1, GGUF files the
norm. Embeddings are multiplied by the root of their size.
"""

import math
from dataclasses import dataclass

from marlin.files.fields import Fields
from marlin.models import config_gguf, config_hf, config_json
from marlin.models.config import MAX_DIM, MAX_LAYERS, ModelConfig
from marlin.models.layers import Rope, attention, gated_feed_forward
from marlin.models.layers_residual import SandwichLayer
from marlin.models.rope import RopeScaling
from marlin.models.spec import Family, ModelSpec, Names
from marlin.weights.gguf import GGUFFile

# Every how many layers one has no window, and theta of the others, in files that do not say it.
PATTERN, LOCAL_THETA = 6, 10000.0
# What a config.json means that leaves them out; those of the multimodal models leave most out.
IMPLIED = {
    **{"vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216},
    **{"num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4},
    **{"head_dim": 256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6},
    **{"sliding_window": 4096, "sliding_window_pattern": PATTERN, "query_pre_attn_scalar": 256},
    **{"rope_theta": 1e6, "rope_local_base_freq": LOCAL_THETA, "tie_word_embeddings": True},
}
# The 27B model scales scores by hidden_dim / num_heads and not by head_dim; its GGUF files do not
# say so.
LAYERS_OF_27B = 62


@dataclass(frozen=True, slots=True)
class Gemma3Config(ModelConfig):
    """Attributes of the family:

    local_rope_theta: of layers with a window; rope_theta and rope_scaling are of those without.
    query_pre_attn_scalar: scores are divided by its root.
    """

    local_rope_theta: float
    query_pre_attn_scalar: float


class Gemma3(Family[Gemma3Config]):
    model_type = "gemma3_text"
    hf_class = "Gemma3ForCausalLM"
    gguf_architecture = "gemma3"

    def config_from_hf(self, fields: Fields) -> Gemma3Config:
        _refuse_unsupported(fields)
        fields = fields.with_defaults(IMPLIED)
        local_theta, rope = _ropes(fields)
        shared = config_hf.shared(
            fields,
            self.model_type,
            activation="hidden_activation",
            activations=("gelu_pytorch_tanh",),
            rope=rope,
        )
        window = fields.count("sliding_window", maximum=1 << 31)
        period = fields.count("sliding_window_pattern", maximum=MAX_LAYERS)
        kinds = [
            "full_attention" if (index + 1) % period == 0 else "sliding_attention"
            for index in range(shared["num_layers"])
        ]
        has_bias = fields.flag("attention_bias", False)
        return Gemma3Config(
            **shared,
            qkv_bias=has_bias,
            o_bias=has_bias,
            mlp_bias=False,
            qk_norm=True,
            windows=config_hf.windows(fields, shared["num_layers"], window, kinds),
            local_rope_theta=local_theta,
            query_pre_attn_scalar=fields.number("query_pre_attn_scalar", maximum=MAX_DIM),
        )

    def config_from_gguf(self, file: GGUFFile) -> Gemma3Config:
        fields = config_gguf.fields_of(file, self.gguf_architecture)
        shared = config_gguf.shared(file, fields, self.model_type)
        if fields.number("final_logit_softcapping", 0.0, minimum=0.0):
            fields.fail("final_logit_softcapping", "0 (Gemma 3 has no soft caps)")
        scalar = shared["head_dim"]
        if shared["num_layers"] == LAYERS_OF_27B:
            scalar = shared["hidden_dim"] // shared["num_heads"]
        if scale := fields.number("attention.scale", None):
            # A float32 gives the root back to seven digits; published numbers are whole.
            scalar = round(scale**-2, 3)
        return Gemma3Config(
            **shared,
            windows=config_gguf.windows(fields, shared["num_layers"], PATTERN),
            local_rope_theta=fields.number("rope.freq_base_swa", LOCAL_THETA, above=1.0),
            query_pre_attn_scalar=float(scalar),
        )

    def hf_config(self, config: Gemma3Config) -> dict:
        values = config_json.shared_values(config, self.hf_class)
        del values["hidden_act"], values["mlp_bias"]
        kinds = ["sliding_attention" if window else "full_attention" for window in config.windows]
        return values | {
            "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": kinds,
            "sliding_window": next(filter(None, config.windows), 4096),
            "rope_local_base_freq": config.local_rope_theta,
            "query_pre_attn_scalar": whole(config.query_pre_attn_scalar),
        }

    def spec(self, config: Gemma3Config) -> ModelSpec:
        layers = tuple(_layer(config, index) for index in range(config.num_layers))
        scale = math.sqrt(config.hidden_dim)
        return ModelSpec.usual(config, layers, 1.0, embed_scale=scale)


def whole(scalar: float) -> float:
    """A number for config.json: transformers takes no float for a whole one."""
    return int(scalar) if scalar.is_integer() else scalar


def _layer(config, index):
    rope = Rope(config.head_dim, config.rope_theta, config.rope_scaling)
    if config.windows[index]:
        rope = Rope(config.head_dim, config.local_rope_theta, RopeScaling())
    return gemma_layer(config, index, rope)


def gemma_layer(config, index: int, rope: Rope, **features) -> SandwichLayer:
    """A layer of Gemma 2 or 3.

    Args:
        config: with query_pre_attn_scalar.
        features: fields of Attention.
    """
    names, dim = Names.of_layer(index, norm_plus=1.0), config.hidden_dim
    scale = config.query_pre_attn_scalar**-0.5
    return SandwichLayer(
        names.norm("input_layernorm", "attn_norm", dim),
        attention(names, config, rope, config.windows[index], scale=scale, **features),
        names.norm("post_attention_layernorm", "post_attention_norm", dim),
        names.norm("pre_feedforward_layernorm", "ffn_norm", dim),
        gated_feed_forward(names, config, "gelu"),
        names.norm("post_feedforward_layernorm", "post_ffw_norm", dim),
    )


def _ropes(fields):
    """(theta of layers with a window, the section of the others' RoPE or None).

    transformers 5 says a RoPE for each kind of layer, 4 says one and the other's theta.
    """
    local_theta = fields.number("rope_local_base_freq", above=1.0)
    ropes = config_hf.ropes_by_kind(fields)
    if ropes is None:
        return local_theta, None
    full, local = ropes
    return local.number("rope_theta", local_theta, above=1.0), full


def _refuse_unsupported(fields):
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if fields.raw(name) is not None:
            fields.fail(name, "null (Gemma 3 has no soft caps)")
    if fields.values.get("sliding_window", 1) is None:
        fields.fail("sliding_window", "the window of the layers that have one")
    if fields.flag("use_bidirectional_attention", False):
        fields.fail("use_bidirectional_attention", "false (a model that generates)")
