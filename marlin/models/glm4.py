"""GLM-4 (dense): neighbours of a part of a head turn, and a part is normed before and after."""

from dataclasses import dataclass

from marlin.files.fields import Fields
from marlin.models import config_gguf, config_hf, config_json
from marlin.models.config import ModelConfig
from marlin.models.layers import Rope, attention, gated_feed_forward
from marlin.models.layers_residual import SandwichLayer
from marlin.models.spec import Family, ModelSpec, Names
from marlin.weights.gguf import GGUFFile

# What a config.json means that leaves them out.
IMPLIED = {"head_dim": 128, "rms_norm_eps": 1.5625e-07, "attention_bias": True}
IMPLIED_PART = 0.5


@dataclass(frozen=True, slots=True)
class Glm4Config(ModelConfig):
    """Attributes of the family:

    rotary_dim: the first dimensions of a head, which RoPE turns.
    """

    rotary_dim: int


class Glm4(Family[Glm4Config]):
    model_type = "glm4"
    hf_class = "Glm4ForCausalLM"
    gguf_architecture = "glm4"

    def config_from_hf(self, fields: Fields) -> Glm4Config:
        fields = fields.with_defaults(IMPLIED)
        shared = config_hf.shared(fields, self.model_type, turns_partly=True)
        config_hf.refuse_mixture(fields, shared["num_layers"], "full_attention")
        return Glm4Config(
            **shared,
            qkv_bias=fields.flag("attention_bias"),
            windows=(None,) * shared["num_layers"],
            rotary_dim=config_hf.rotary_dim(fields, shared["head_dim"], IMPLIED_PART),
        )

    def config_from_gguf(self, file: GGUFFile) -> Glm4Config:
        fields = config_gguf.fields_of(file, self.gguf_architecture)
        shared = config_gguf.shared(file, fields, self.model_type, turns_partly=True)
        dim = config_gguf.rotary_dim(fields, shared["head_dim"])
        return Glm4Config(**shared, windows=(None,) * shared["num_layers"], rotary_dim=dim)

    def hf_config(self, config: Glm4Config) -> dict:
        values = config_json.shared_values(config, self.hf_class)
        del values["mlp_bias"]
        return values | {
            "attention_bias": config.qkv_bias,
            "partial_rotary_factor": config.rotary_dim / config.head_dim,
        }

    def spec(self, config: Glm4Config) -> ModelSpec:
        turned = config.rotary_dim, config.rope_theta, config.rope_scaling
        rope = Rope(*turned, interleaved=True)
        layers = tuple(_layer(config, rope, index) for index in range(config.num_layers))
        return ModelSpec.usual(config, layers)


def _layer(config, rope, index):
    names, dim = Names.of_layer(index), config.hidden_dim
    return SandwichLayer(
        names.norm("input_layernorm", "attn_norm", dim),
        attention(names, config, rope, None),
        names.norm("post_self_attn_layernorm", "post_attention_norm", dim),
        names.norm("post_attention_layernorm", "ffn_norm", dim),
        gated_feed_forward(names, config),
        names.norm("post_mlp_layernorm", "post_ffw_norm", dim),
    )
