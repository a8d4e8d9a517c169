"""Ministral 3 and Devstral Small 2: a Mistral with YaRN, whose queries grow past its first context.

Their files wrap the language model as `mistral3`, which Mistral Small 3 does, too.
"""

from dataclasses import dataclass, replace

from marlin.files.fields import Fields
from marlin.models import config_gguf, config_hf
from marlin.models.config import MAX_CONTEXT_TOKENS, ModelConfig
from marlin.models.llama import LlamaLine
from marlin.weights.gguf import GGUFFile


@dataclass(frozen=True, slots=True)
class Ministral3Config(ModelConfig):
    """Attributes of the family:

    position_scale, scale_tokens: of ops.AttentionInputs.
    """

    position_scale: float
    scale_tokens: int


class Ministral3(LlamaLine[Ministral3Config]):
    model_type = "ministral3"
    hf_class = "Ministral3ForCausalLM"
    gguf_architecture = "mistral3"

    def config_from_hf(self, fields: Fields) -> Ministral3Config:
        fields = fields.with_defaults({"head_dim": 128})
        rope = config_hf.rope_section(fields)
        if rope is None:
            fields.fail("rope_parameters", "YaRN's numbers, with llama_4_scaling_beta")
        shared = config_hf.shared(fields, self.model_type)
        window = fields.count("sliding_window", None, maximum=1 << 31)
        kind = "full_attention" if window is None else "sliding_attention"
        config_hf.refuse_mixture(fields, shared["num_layers"], kind)
        return Ministral3Config(
            **shared,
            windows=(window,) * shared["num_layers"],
            position_scale=rope.number("llama_4_scaling_beta", minimum=0.0),
            scale_tokens=rope.count("original_max_position_embeddings", maximum=MAX_CONTEXT_TOKENS),
        )

    def config_from_gguf(self, file: GGUFFile) -> Ministral3Config:
        fields = config_gguf.fields_of(file, self.gguf_architecture)
        shared = config_gguf.shared(file, fields, self.model_type, has_log_multiplier=True)
        window = fields.count("attention.sliding_window", 0, minimum=0, maximum=1 << 31) or None
        scale = fields.number("attention.temperature_scale", 0.0, minimum=0.0)
        name, longest = "rope.scaling.original_context_length", shared["max_context_tokens"]
        return Ministral3Config(
            **shared,
            windows=(window,) * shared["num_layers"],
            position_scale=scale,
            scale_tokens=fields.count(name, longest, maximum=MAX_CONTEXT_TOKENS),
        )

    def hf_config(self, config: Ministral3Config) -> dict:
        values = super().hf_config(config)
        del values["mlp_bias"], values["attention_bias"]
        rope = values.pop("rope_scaling") or {"rope_type": "default"}
        own = {
            "rope_theta": values.pop("rope_theta"),
            "llama_4_scaling_beta": config.position_scale,
            "original_max_position_embeddings": config.scale_tokens,
        }
        return values | {"sliding_window": config.windows[0], "rope_parameters": rope | own}

    def _layer(self, config, rope, index):
        layer = super()._layer(config, rope, index)
        grown = replace(
            layer.attention,
            position_scale=config.position_scale,
            scale_tokens=config.scale_tokens,
        )
        return replace(layer, attention=grown)
