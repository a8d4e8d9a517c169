"""Qwen2 (and Qwen2.5): a Llama with biases on q, k and v, and a window that is mostly off."""

from marlin.files.fields import Fields
from marlin.models import config_gguf, config_hf
from marlin.models.config import ModelConfig
from marlin.models.llama import Llama
from marlin.weights.gguf import GGUFFile


class Qwen2(Llama):
    model_type = "qwen2"
    hf_class = "Qwen2ForCausalLM"
    gguf_architecture = "qwen2"
    rows_interleaved = False

    def config_from_hf(self, fields: Fields) -> ModelConfig:
        shared = config_hf.shared(fields, self.model_type)
        windows = self.windows(fields, shared["num_layers"])
        return ModelConfig(**shared, qkv_bias=True, windows=windows)

    def windows(self, fields: Fields, num_layers: int) -> tuple[int | None, ...]:
        """A number that counts only where a switch is on, and then from some layer upwards."""
        if not fields.flag("use_sliding_window", False):
            return (None,) * num_layers
        window = config_hf.sliding_window(fields)
        first = fields.count("max_window_layers", 28, minimum=0, maximum=1 << 31)
        implied = ["full_attention"] * min(first, num_layers)
        implied += ["sliding_attention"] * (num_layers - len(implied))
        return config_hf.windows(fields, num_layers, window, implied)

    def config_from_gguf(self, file: GGUFFile) -> ModelConfig:
        """A window's number may stand there although it is off, so it does not count."""
        fields = config_gguf.fields_of(file, self.gguf_architecture)
        shared = config_gguf.shared(file, fields, self.model_type)
        return ModelConfig(**shared, windows=(None,) * shared["num_layers"])
