"""Qwen3-MoE (Qwen3-30B-A3B, Qwen3-Coder): a Qwen3 whose feed-forwards are mixtures of experts, all
or those that config.json names."""

from marlin.device import ops_experts
from marlin.files.fields import Fields
from marlin.models import config_experts, config_gguf, config_hf
from marlin.models.config import MAX_LAYERS
from marlin.models.config_experts import MixtureConfig
from marlin.models.layers_experts import mixture
from marlin.models.llama import LlamaLine
from marlin.weights.gguf import GGUFFile


class Qwen3Moe(LlamaLine[MixtureConfig]):
    model_type = "qwen3_moe"
    hf_class = "Qwen3MoeForCausalLM"
    gguf_architecture = "qwen3moe"
    rows_interleaved = False

    def config_from_hf(self, fields: Fields) -> MixtureConfig:
        shared = config_hf.shared(fields, self.model_type)
        has_bias = fields.flag("attention_bias", False)
        return MixtureConfig(
            **shared,
            **config_experts.from_hf(fields),
            qkv_bias=has_bias,
            o_bias=has_bias,
            qk_norm=True,
            windows=(_window(fields),) * shared["num_layers"],
            normalizes=fields.flag("norm_topk_prob", False),
            dense_layers=self._dense_layers(fields, shared["num_layers"]),
        )

    def _dense_layers(self, fields, num_layers):
        named = fields.counts("mlp_only_layers", 0, MAX_LAYERS)
        step = fields.count("decoder_sparse_step", 1, maximum=1 << 31)
        return tuple(i for i in range(num_layers) if i in named or (i + 1) % step)

    def config_from_gguf(self, file: GGUFFile) -> MixtureConfig:
        """Weights are always normalized there, and every layer is a mixture."""
        fields = config_gguf.fields_of(file, "qwen3moe")
        shared = config_gguf.shared(file, fields, self.model_type, experts=True)
        experts = config_experts.from_gguf(fields)
        return MixtureConfig(**shared, **experts, windows=(None,) * shared["num_layers"])

    def hf_config(self, config: MixtureConfig) -> dict:
        return super().hf_config(config) | {
            "num_experts": config.num_experts,
            "num_experts_per_tok": config.num_slots,
            "moe_intermediate_size": config.expert_dim,
            "norm_topk_prob": config.normalizes,
            "mlp_only_layers": list(config.dense_layers),
            "use_sliding_window": config.windows[0] is not None,
            "sliding_window": config.windows[0],
        }

    def _feed_forward(self, names, config, index):
        if index in config.dense_layers:
            return super()._feed_forward(names, config, index)
        routing = ops_experts.Router(
            config.num_experts, config.num_slots, "softmax", config.normalizes
        )
        return mixture(names, routing, config.hidden_dim, config.expert_dim)


def _window(fields):
    """A window's number counts where it is switched on, and then in every layer."""
    if not fields.flag("use_sliding_window", False):
        return None
    return config_hf.sliding_window(fields)
