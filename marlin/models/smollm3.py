"""SmolLM3: a Llama of which some layers, mostly every fourth, have no RoPE."""

from dataclasses import dataclass, replace

from marlin.files.fields import Fields
from marlin.models import config_gguf, config_hf
from marlin.models.config import MAX_LAYERS, ModelConfig
from marlin.models.llama import LlamaLine
from marlin.weights.gguf import GGUFFile

# Every how many layers one has no RoPE, in files that do not say it.
PERIOD, THETA = 4, 2e6


@dataclass(frozen=True, slots=True)
class SmolLM3Config(ModelConfig):
    """Attributes of the family:

    turns: whether each layer has RoPE.
    """

    turns: tuple[bool, ...]


class SmolLM3(LlamaLine[SmolLM3Config]):
    model_type = "smollm3"
    hf_class = "SmolLM3ForCausalLM"
    gguf_architecture = "smollm3"

    def config_from_hf(self, fields: Fields) -> SmolLM3Config:
        implied = {"rope_theta": THETA, "tie_word_embeddings": True}
        fields = fields.with_defaults(implied)
        shared = config_hf.shared(fields, self.model_type)
        num_layers = shared["num_layers"]
        has_bias = fields.flag("attention_bias", False)
        turns = _turns(fields, num_layers)
        return SmolLM3Config(
            **shared,
            qkv_bias=has_bias,
            o_bias=has_bias,
            mlp_bias=fields.flag("mlp_bias", False),
            windows=_windows(fields, num_layers, turns),
            turns=turns,
        )

    def config_from_gguf(self, file: GGUFFile) -> SmolLM3Config:
        fields = config_gguf.fields_of(file, self.gguf_architecture)
        shared = config_gguf.shared(file, fields, self.model_type)
        num_layers = shared["num_layers"]
        window = fields.count("attention.sliding_window", 0, minimum=0, maximum=1 << 31)
        if window:
            fields.fail("attention.sliding_window", "0 (no published SmolLM3 has a window)")
        turns = tuple((index + 1) % PERIOD != 0 for index in range(num_layers))
        return SmolLM3Config(**shared, windows=(None,) * num_layers, turns=turns)

    def hf_config(self, config: SmolLM3Config) -> dict:
        kinds = ["sliding_attention" if window else "full_attention" for window in config.windows]
        window = next(filter(None, config.windows), None)
        return super().hf_config(config) | {
            "no_rope_layers": [int(turns) for turns in config.turns],
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "layer_types": kinds,
        }

    def _layer(self, config, rope, index):
        layer = super()._layer(config, rope, index)
        if config.turns[index]:
            return layer
        return replace(layer, attention=replace(layer.attention, rope=None))


def _turns(fields, num_layers):
    stated = fields.raw("no_rope_layers")
    if stated is None:
        period = fields.count("no_rope_layer_interval", PERIOD, maximum=MAX_LAYERS)
        return tuple((index + 1) % period != 0 for index in range(num_layers))
    numbers = type(stated) is list and all(type(item) is int and item in (0, 1) for item in stated)
    if not numbers or len(stated) != num_layers:
        fields.fail("no_rope_layers", f"{num_layers} of 1 (RoPE) and 0 (none)")
    return tuple(map(bool, stated))


def _windows(fields, num_layers, turns):
    """A window counts where it is switched on, and then mostly in the layers without RoPE."""
    if not fields.flag("use_sliding_window", False):
        config_hf.refuse_mixture(fields, num_layers, "full_attention")
        return (None,) * num_layers
    window = fields.count("sliding_window", None, maximum=1 << 31)
    implied = [
        "full_attention" if turn or window is None else "sliding_attention" for turn in turns
    ]
    return config_hf.windows(fields, num_layers, window, implied)
