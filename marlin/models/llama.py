"""Llama (and SmolLM2, and all that say they are Llamas): norm, attention, norm, feed-forward.

The layer is also that of Mistral, Qwen2 and Qwen3, whose files say how they differ.
"""

from marlin.files.fields import Fields
from marlin.models import config_experts, config_gguf, config_hf, config_json
from marlin.models.config import ModelConfig
from marlin.models.config_experts import MixtureConfig
from marlin.models.layers import Rope, attention, gated_feed_forward
from marlin.models.layers_residual import PreNormLayer
from marlin.models.spec import Config, Family, ModelSpec, Names, Tensor
from marlin.weights.gguf import GGUFFile

# Divisors of the RoPE frequencies (Llama 3 scaling in GGUF); Hugging Face keeps the rule in
# config.json.
ROPE_FACTORS = "rope_freqs.weight"


class LlamaLine(Family[Config]):
    """Families of that layer.

    Attributes:
        rows_interleaved: whether GGUF files store the rows of q and k in pairs that RoPE rotates.
    """

    rows_interleaved = True

    def hf_config(self, config: Config) -> dict:
        """As Family's."""
        return config_json.shared_values(config, self.hf_class)

    def spec(self, config: Config) -> ModelSpec:
        """As Family's."""
        factors = Tensor(ROPE_FACTORS, ROPE_FACTORS, (config.head_dim // 2,), optional=True)
        rope = Rope(config.head_dim, config.rope_theta, config.rope_scaling, factors)
        layers = tuple(self._layer(config, rope, index) for index in range(config.num_layers))
        return ModelSpec.usual(config, layers)

    def _layer(self, config, rope, index):
        names, dim = Names.of_layer(index), config.hidden_dim
        return PreNormLayer(
            names.norm("input_layernorm", "attn_norm", dim),
            attention(names, config, rope, config.windows[index], self.rows_interleaved),
            names.norm("post_attention_layernorm", "ffn_norm", dim),
            self._feed_forward(names, config, index),
        )

    def _feed_forward(self, names, config, _index):
        return gated_feed_forward(names, config)


class Llama(LlamaLine[ModelConfig]):
    model_type = "llama"
    hf_class = "LlamaForCausalLM"
    gguf_architecture: str | None = "llama"

    def config_from_hf(self, fields: Fields) -> ModelConfig:
        has_bias = fields.flag("attention_bias", False)
        shared = config_hf.shared(fields, self.model_type, implies_kv_heads=True)
        config_hf.refuse_mixture(fields, shared["num_layers"], "full_attention")
        return ModelConfig(
            **shared,
            qkv_bias=has_bias,
            o_bias=has_bias,
            mlp_bias=fields.flag("mlp_bias", False),
            windows=(None,) * shared["num_layers"],
        )

    def config_from_gguf(self, file: GGUFFile) -> ModelConfig:
        """Mistral models say `llama` there; those that have a window are Mistrals here, and those
        that have experts Mixtrals."""
        fields = config_gguf.fields_of(file, "llama")
        window = fields.count("attention.sliding_window", None, maximum=1 << 31)
        if fields.count("expert_count", 0, minimum=0):
            shared = config_gguf.shared(file, fields, "mixtral", experts=True)
            experts = config_experts.from_gguf(fields, shared["intermediate_dim"])
            return MixtureConfig(**shared, **experts, windows=(window,) * shared["num_layers"])
        architecture = "llama" if window is None else "mistral"
        shared = config_gguf.shared(file, fields, architecture)
        return ModelConfig(**shared, windows=(window,) * shared["num_layers"])
