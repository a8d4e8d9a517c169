"""Granite (dense): a Llama with a number each for embeddings, residuals, scores and logits."""

from dataclasses import dataclass, replace
from typing import Any

from marlin.files.fields import Fields
from marlin.models import config_gguf, config_hf
from marlin.models.config import ModelConfig
from marlin.models.llama import LlamaLine
from marlin.models.spec import ModelSpec
from marlin.weights.gguf import GGUFFile

# Of the family's numbers, what a GGUF header calls them.
GGUF_NAMES = {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
}


@dataclass(frozen=True, slots=True)
class GraniteConfig(ModelConfig):
    """Attributes of the family:

    embedding_multiplier, residual_multiplier: of embeddings, and of what each part adds.
    attention_multiplier: of scores, in place of head_dim^-1/2.
    logits_scaling: logits are divided by it.
    """

    embedding_multiplier: float
    residual_multiplier: float
    attention_multiplier: float
    logits_scaling: float


class Granite(LlamaLine[GraniteConfig]):
    model_type = "granite"
    hf_class = "GraniteForCausalLM"
    gguf_architecture = "granite"

    def config_from_hf(self, fields: Fields) -> GraniteConfig:
        shared = config_hf.shared(fields, self.model_type, implies_kv_heads=True)
        config_hf.refuse_mixture(fields, shared["num_layers"], "full_attention")
        has_bias = fields.flag("attention_bias", False)
        return GraniteConfig(
            **shared,
            qkv_bias=has_bias,
            o_bias=has_bias,
            mlp_bias=fields.flag("mlp_bias", False),
            windows=(None,) * shared["num_layers"],
            **{name: fields.number(name, 1.0) for name in GGUF_NAMES},
        )

    def config_from_gguf(self, file: GGUFFile) -> GraniteConfig:
        fields = config_gguf.fields_of(file, self.gguf_architecture)
        shared = config_gguf.shared(file, fields, self.model_type)
        implied = dict.fromkeys(GGUF_NAMES, 1.0)
        implied["attention_multiplier"] = shared["head_dim"] ** -0.5
        numbers: dict[str, Any] = {
            # As llama.cpp reads it: 0 is what the file does not say.
            name: fields.number(key, 0.0, minimum=0.0) or implied[name]
            for name, key in GGUF_NAMES.items()
        }
        return GraniteConfig(**shared, windows=(None,) * shared["num_layers"], **numbers)

    def hf_config(self, config: GraniteConfig) -> dict:
        numbers = {name: getattr(config, name) for name in GGUF_NAMES}
        return super().hf_config(config) | numbers

    def spec(self, config: GraniteConfig) -> ModelSpec:
        return replace(
            super().spec(config),
            embed_scale=config.embedding_multiplier,
            residual_scale=config.residual_multiplier,
            logit_scale=1.0 / config.logits_scaling,
        )

    def _layer(self, config, rope, index):
        layer = super()._layer(config, rope, index)
        scaled = replace(layer.attention, scale=config.attention_multiplier)
        return replace(layer, attention=scaled)
