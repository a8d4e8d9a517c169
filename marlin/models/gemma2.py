"""Gemma 2: Gemma 3's layer without norms of queries and keys, with soft caps of scores and logits.

Every other layer sees a window, and all of them have the same RoPE.
"""

import math
from dataclasses import dataclass

from marlin.files.fields import Fields
from marlin.models import config_gguf, config_hf, config_json
from marlin.models.config import MAX_DIM, ModelConfig
from marlin.models.gemma3 import IMPLIED as IMPLIED_3
from marlin.models.gemma3 import gemma_layer, whole
from marlin.models.layers import Rope
from marlin.models.spec import Family, ModelSpec
from marlin.weights.gguf import GGUFFile

# Every how many layers one has no window.
PERIOD = 2
# What a config.json means that leaves them out.
IMPLIED = {
    name: IMPLIED_3[name]
    for name in ("head_dim", "rms_norm_eps", "sliding_window", "query_pre_attn_scalar")
} | {"tie_word_embeddings": True}
CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
# The 27B model scales scores by hidden_dim / num_heads and not by head_dim; its GGUF files do not
# say so.
LAYERS_OF_27B = 46


@dataclass(frozen=True, slots=True)
class Gemma2Config(ModelConfig):
    """Attributes of the family:

    query_pre_attn_scalar: scores are divided by its root.
    attn_logit_softcapping, final_logit_softcapping: caps of scores and logits; 0 is none.
    """

    query_pre_attn_scalar: float
    attn_logit_softcapping: float
    final_logit_softcapping: float


class Gemma2(Family[Gemma2Config]):
    model_type = "gemma2"
    hf_class = "Gemma2ForCausalLM"
    gguf_architecture = "gemma2"

    def config_from_hf(self, fields: Fields) -> Gemma2Config:
        if fields.values.get("sliding_window", 1) is None:
            fields.fail("sliding_window", "the window of the layers that have one")
        if fields.flag("use_bidirectional_attention", False):
            fields.fail("use_bidirectional_attention", "false (a model that generates)")
        caps = {
            name: fields.number(name, 0.0 if name in fields.values else implied)
            for name, implied in CAPS.items()
        }
        fields = fields.with_defaults(IMPLIED)
        shared = config_hf.shared(
            fields,
            self.model_type,
            activation="hidden_activation",
            activations=("gelu_pytorch_tanh",),
        )
        num_layers = shared["num_layers"]
        kinds = [
            "full_attention" if (index + 1) % PERIOD == 0 else "sliding_attention"
            for index in range(num_layers)
        ]
        window = fields.count("sliding_window", maximum=1 << 31)
        has_bias = fields.flag("attention_bias", False)
        return Gemma2Config(
            **shared,
            qkv_bias=has_bias,
            o_bias=has_bias,
            windows=config_hf.windows(fields, num_layers, window, kinds),
            query_pre_attn_scalar=fields.number("query_pre_attn_scalar", maximum=MAX_DIM),
            **caps,
        )

    def config_from_gguf(self, file: GGUFFile) -> Gemma2Config:
        fields = config_gguf.fields_of(file, self.gguf_architecture)
        shared = config_gguf.shared(file, fields, self.model_type)
        scalar = shared["head_dim"]
        if shared["num_layers"] == LAYERS_OF_27B:
            scalar = shared["hidden_dim"] // shared["num_heads"]
        return Gemma2Config(
            **shared,
            windows=config_gguf.windows(fields, shared["num_layers"], PERIOD),
            query_pre_attn_scalar=float(scalar),
            attn_logit_softcapping=fields.number("attn_logit_softcapping", 50.0, minimum=0.0),
            final_logit_softcapping=fields.number("final_logit_softcapping", 30.0, minimum=0.0),
        )

    def hf_config(self, config: Gemma2Config) -> dict:
        values = config_json.shared_values(config, self.hf_class)
        del values["hidden_act"], values["mlp_bias"]
        kinds = ["sliding_attention" if window else "full_attention" for window in config.windows]
        caps = {name: getattr(config, name) or None for name in CAPS}
        return (
            values
            | caps
            | {
                "hidden_activation": "gelu_pytorch_tanh",
                "layer_types": kinds,
                "sliding_window": next(filter(None, config.windows), 4096),
                "query_pre_attn_scalar": whole(config.query_pre_attn_scalar),
            }
        )

    def spec(self, config: Gemma2Config) -> ModelSpec:
        rope = Rope(config.head_dim, config.rope_theta, config.rope_scaling)
        cap = config.attn_logit_softcapping
        layers = tuple(
            gemma_layer(config, index, rope, softcap=cap) for index in range(config.num_layers)
        )
        scale, cap = math.sqrt(config.hidden_dim), config.final_logit_softcapping
        return ModelSpec.usual(config, layers, 1.0, embed_scale=scale, logit_cap=cap)
