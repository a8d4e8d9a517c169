"""OLMo 2: norms after each part alone, and norms of queries and keys over all heads at once.

OLMo 3 is that with a window on three layers of four, whose RoPE is not scaled. GGUF files call both
`olmo2`.
"""

from dataclasses import dataclass

from marlin.files.fields import Fields
from marlin.models import config_gguf, config_hf, config_json
from marlin.models.config import ModelConfig
from marlin.models.layers import Rope, attention, gated_feed_forward
from marlin.models.layers_residual import PostNormLayer
from marlin.models.rope import RopeScaling
from marlin.models.spec import Family, ModelSpec, Names
from marlin.weights.gguf import GGUFFile

# Of OLMo 3: every how many layers one has no window, the window, and theta, where files do not say.
PERIOD, WINDOW, THETA = 4, 4096, 5e5


@dataclass(frozen=True, slots=True)
class OlmoConfig(ModelConfig):
    """Attributes of the family:

    local_rope_theta: of layers with a window; rope_theta and rope_scaling are of those without.
    """

    local_rope_theta: float


class Olmo2(Family[OlmoConfig]):
    model_type = "olmo2"
    hf_class = "Olmo2ForCausalLM"
    gguf_architecture: str | None = "olmo2"

    def config_from_hf(self, fields: Fields) -> OlmoConfig:
        shared = config_hf.shared(fields, self.model_type, implies_kv_heads=True)
        config_hf.refuse_mixture(fields, shared["num_layers"], "full_attention")
        windows = (None,) * shared["num_layers"]
        return _config(fields, shared, windows, shared["rope_theta"])

    def config_from_gguf(self, file: GGUFFile) -> OlmoConfig:
        """OLMo 3's files have a window."""
        fields = config_gguf.fields_of(file, "olmo2")
        window = fields.count("attention.sliding_window", 0, minimum=0, maximum=1 << 31)
        shared = config_gguf.shared(file, fields, "olmo3" if window else "olmo2")
        windows = config_gguf.windows(fields, shared["num_layers"], PERIOD)
        theta = fields.number("rope.freq_base_swa", shared["rope_theta"], above=1.0)
        return OlmoConfig(**shared, windows=windows, local_rope_theta=theta)

    def hf_config(self, config: OlmoConfig) -> dict:
        values = config_json.shared_values(config, self.hf_class)
        del values["mlp_bias"]
        return values

    def spec(self, config: OlmoConfig) -> ModelSpec:
        layers = tuple(_layer(config, index) for index in range(config.num_layers))
        return ModelSpec.usual(config, layers)


class Olmo3(Olmo2):
    model_type = "olmo3"
    hf_class = "Olmo3ForCausalLM"
    gguf_architecture = None

    def config_from_hf(self, fields: Fields) -> OlmoConfig:
        local_theta, rope = _ropes(fields)
        fields = fields.with_defaults({"rope_theta": THETA})
        shared = config_hf.shared(fields, self.model_type, implies_kv_heads=True, rope=rope)
        num_layers = shared["num_layers"]
        kinds = [
            "full_attention" if (index + 1) % PERIOD == 0 else "sliding_attention"
            for index in range(num_layers)
        ]
        window = config_hf.sliding_window(fields)
        windows = config_hf.windows(fields, num_layers, window, kinds)
        if window is None:
            fields.fail("sliding_window", "the window of the layers that have one")
        return _config(fields, shared, windows, local_theta)

    def hf_config(self, config: OlmoConfig) -> dict:
        values = super().hf_config(config)
        full = values.pop("rope_scaling") or {"rope_type": "default"}
        local = {"rope_type": "default", "rope_theta": config.local_rope_theta}
        theta = values.pop("rope_theta")
        kinds = ["sliding_attention" if window else "full_attention" for window in config.windows]
        return values | {
            "layer_types": kinds,
            "sliding_window": next(filter(None, config.windows), WINDOW),
            "rope_parameters": {
                "full_attention": {"rope_theta": theta, **full},
                "sliding_attention": local,
            },
        }


def _config(fields, shared, windows, local_theta):
    has_bias = fields.flag("attention_bias", False)
    return OlmoConfig(
        **shared,
        qkv_bias=has_bias,
        o_bias=has_bias,
        qk_norm=True,
        windows=windows,
        local_rope_theta=local_theta,
    )


def _ropes(fields):
    """(theta of layers with a window, the section of the others' RoPE or None).

    transformers says a RoPE for each kind of layer, and ignores what it has saved beside the
    sections; older files scale the layers without a window alone.
    """
    ropes = config_hf.ropes_by_kind(fields, ("rope_theta", "rope_type"))
    if fields.number("rope_theta", THETA, above=1.0) != THETA:
        fields.fail("rope_theta", f"{THETA:g}, or in the sections of rope_parameters")
    if ropes is None:
        return THETA, None
    full, local = ropes
    return local.number("rope_theta", THETA, above=1.0), full


def _layer(config, index):
    names, dim = Names.of_layer(index), config.hidden_dim
    window = config.windows[index]
    rope = Rope(config.head_dim, config.rope_theta, config.rope_scaling)
    if window:
        rope = Rope(config.head_dim, config.local_rope_theta, RopeScaling())
    return PostNormLayer(
        attention(names, config, rope, window, norms_all_heads=True),
        names.norm("post_attention_layernorm", "post_attention_norm", dim),
        gated_feed_forward(names, config),
        names.norm("post_feedforward_layernorm", "post_ffw_norm", dim),
    )
