"""Qwen3: a Qwen2 with norms on queries and keys in place of biases."""

from marlin.files.fields import Fields
from marlin.models import config_hf
from marlin.models.config import ModelConfig
from marlin.models.qwen2 import Qwen2


class Qwen3(Qwen2):
    model_type = "qwen3"
    hf_class = "Qwen3ForCausalLM"
    gguf_architecture = "qwen3"

    def config_from_hf(self, fields: Fields) -> ModelConfig:
        # A file without head_dim means 128 (transformers' default), not hidden / heads.
        fields = fields.with_defaults({"head_dim": 128})
        shared = config_hf.shared(fields, self.model_type)
        has_bias = fields.flag("attention_bias", False)
        return ModelConfig(
            **shared,
            qkv_bias=has_bias,
            o_bias=has_bias,
            qk_norm=True,
            windows=self.windows(fields, shared["num_layers"]),
        )
