"""EXAONE 4: norms after each part alone; beside layers with a window, the others have no RoPE."""

from dataclasses import dataclass

from marlin.files.fields import Fields
from marlin.models import config_gguf, config_hf, config_json
from marlin.models.config import MAX_LAYERS, ModelConfig
from marlin.models.layers import Rope, attention, gated_feed_forward
from marlin.models.layers_residual import PostNormLayer
from marlin.models.llama import ROPE_FACTORS
from marlin.models.spec import Family, ModelSpec, Names, Tensor
from marlin.weights.gguf import GGUFFile

# Every how many layers one has no window, in files that do not say it.
PERIOD = 4


@dataclass(frozen=True, slots=True)
class Exaone4Config(ModelConfig):
    """Attributes of the family:

    turns_all: layers without a window have RoPE, too.
    """

    turns_all: bool


class Exaone4(Family[Exaone4Config]):
    model_type = "exaone4"
    hf_class = "Exaone4ForCausalLM"
    gguf_architecture = "exaone4"

    def config_from_hf(self, fields: Fields) -> Exaone4Config:
        shared = config_hf.shared(fields, self.model_type)
        num_layers = shared["num_layers"]
        window = config_hf.sliding_window(fields)
        period = PERIOD
        if window is not None:
            period = fields.count("sliding_window_pattern", PERIOD, maximum=MAX_LAYERS)
        kinds = [
            "sliding_attention" if window and (index + 1) % period else "full_attention"
            for index in range(num_layers)
        ]
        windows = config_hf.windows(fields, num_layers, window, kinds)
        stated = fields.raw("layer_types") or kinds
        if window is None and "sliding_attention" in stated:
            fields.fail("sliding_window", "the window of the layers that have one")
        return Exaone4Config(**shared, qk_norm=True, windows=windows, turns_all=window is None)

    def config_from_gguf(self, file: GGUFFile) -> Exaone4Config:
        fields = config_gguf.fields_of(file, self.gguf_architecture)
        shared = config_gguf.shared(file, fields, self.model_type)
        windows = config_gguf.windows(fields, shared["num_layers"], PERIOD)
        has_window = fields.count("attention.sliding_window", 0, minimum=0, maximum=1 << 31) > 0
        return Exaone4Config(**shared, windows=windows, turns_all=not has_window)

    def hf_config(self, config: Exaone4Config) -> dict:
        values = config_json.shared_values(config, self.hf_class)
        del values["mlp_bias"], values["attention_bias"]
        kinds = ["sliding_attention" if window else "full_attention" for window in config.windows]
        window = next(filter(None, config.windows), None if config.turns_all else 4096)
        return values | {"layer_types": kinds, "sliding_window": window}

    def spec(self, config: Exaone4Config) -> ModelSpec:
        layers = tuple(_layer(config, index) for index in range(config.num_layers))
        return ModelSpec.usual(config, layers)


def _layer(config, index):
    names, dim = Names.of_layer(index), config.hidden_dim
    window = config.windows[index]
    factors = Tensor(ROPE_FACTORS, ROPE_FACTORS, (config.head_dim // 2,), optional=True)
    rope = Rope(config.head_dim, config.rope_theta, config.rope_scaling, factors)
    turns = config.turns_all or window is not None
    return PostNormLayer(
        attention(names, config, rope if turns else None, window),
        names.norm("post_attention_layernorm", "post_attention_norm", dim),
        gated_feed_forward(names, config),
        names.norm("post_feedforward_layernorm", "post_ffw_norm", dim),
    )
