"""Qwen2-MoE (Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B): a Qwen2 whose feed-forwards are mixtures, with an
expert that every token shares by a gate of its own."""

from marlin.device import ops_experts
from marlin.files.fields import Fields
from marlin.models import config_experts, config_gguf, config_hf
from marlin.models.config import MAX_DIM
from marlin.models.config_experts import MixtureConfig
from marlin.models.layers_experts import gated_shared, mixture
from marlin.models.qwen3_moe import Qwen3Moe
from marlin.weights.gguf import GGUFFile


class Qwen2Moe(Qwen3Moe):
    model_type = "qwen2_moe"
    hf_class = "Qwen2MoeForCausalLM"
    gguf_architecture = "qwen2moe"

    def config_from_hf(self, fields: Fields) -> MixtureConfig:
        shared = config_hf.shared(fields, self.model_type)
        return MixtureConfig(
            **shared,
            **config_experts.from_hf(fields, count="num_experts"),
            qkv_bias=fields.flag("qkv_bias", True),
            windows=_windows(fields, shared["num_layers"]),
            normalizes=fields.flag("norm_topk_prob", False),
            dense_layers=self._dense_layers(fields, shared["num_layers"]),
            shared_dim=fields.count("shared_expert_intermediate_size", 5632, maximum=MAX_DIM),
        )

    def config_from_gguf(self, file: GGUFFile) -> MixtureConfig:
        """Weights are never normalized there, and every layer is a mixture."""
        fields = config_gguf.fields_of(file, self.gguf_architecture)
        shared = config_gguf.shared(file, fields, self.model_type, experts=True)
        width = shared["intermediate_dim"]
        return MixtureConfig(
            **shared,
            **config_experts.from_gguf(fields),
            windows=(None,) * shared["num_layers"],
            normalizes=False,
            shared_dim=fields.count("expert_shared_feed_forward_length", width, maximum=MAX_DIM),
        )

    def hf_config(self, config: MixtureConfig) -> dict:
        kinds = ["sliding_attention" if window else "full_attention" for window in config.windows]
        return super().hf_config(config) | {
            "qkv_bias": config.qkv_bias,
            "shared_expert_intermediate_size": config.shared_dim,
            "layer_types": kinds,
            "use_sliding_window": any(config.windows),
            "sliding_window": next(filter(None, config.windows), None),
        }

    def _feed_forward(self, names, config, index):
        if index in config.dense_layers:
            return super()._feed_forward(names, config, index)
        sizes = config.hidden_dim, config.expert_dim
        routing = ops_experts.Router(
            config.num_experts, config.num_slots, "softmax", config.normalizes
        )
        shared, gate = gated_shared(names, config.hidden_dim, config.shared_dim)
        return mixture(names, routing, *sizes, shared=shared, shared_gate=gate)


def _windows(fields, num_layers):
    """Where they are switched on, every other layer up to some has one."""
    window, first = None, 0
    if fields.flag("use_sliding_window", False):
        window = config_hf.sliding_window(fields)
        first = fields.count("max_window_layers", 28, minimum=0, maximum=1 << 31)
    kinds = [
        "sliding_attention" if index < first and index % 2 == 0 else "full_attention"
        for index in range(num_layers)
    ]
    return config_hf.windows(fields, num_layers, window, kinds)
