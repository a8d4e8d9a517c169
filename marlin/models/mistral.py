"""Mistral: a Llama whose layers see a window of tokens. GGUF files call it `llama`.

Mistral Small 3 has it under `text_config`, as Ministral 3 has its own language model.
"""

from marlin.files.fields import Fields
from marlin.models import config_hf
from marlin.models.config import ModelConfig
from marlin.models.llama import Llama


class Mistral(Llama):
    model_type = "mistral"
    hf_class = "MistralForCausalLM"
    gguf_architecture = None

    def config_from_hf(self, fields: Fields) -> ModelConfig:
        window = config_hf.sliding_window(fields)
        shared = config_hf.shared(fields, self.model_type)
        kind = "full_attention" if window is None else "sliding_attention"
        config_hf.refuse_mixture(fields, shared["num_layers"], kind)
        return ModelConfig(**shared, windows=(window,) * shared["num_layers"])

    def hf_config(self, config: ModelConfig) -> dict:
        return super().hf_config(config) | {"sliding_window": config.windows[0]}
