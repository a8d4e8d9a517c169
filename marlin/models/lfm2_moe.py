"""LFM2-MoE (LFM2-8B-A1B and LFM2.5's): an LFM2 whose feed-forwards are mixtures, behind the first
few layers."""

from dataclasses import dataclass

from marlin.device import ops_experts
from marlin.files.fields import Fields
from marlin.models import config_experts
from marlin.models.config import MAX_LAYERS
from marlin.models.layers_experts import ExpertNames, mixture
from marlin.models.lfm2 import Lfm2, Lfm2Config, conv_layers
from marlin.weights.gguf import GGUFFile

# GGUF's number of it.
SIGMOID = 2
# Added to the sum that the chosen weights are divided by.
EPSILON = 1e-6
NAMES = ExpertNames("feed_forward.", "gate", ("w1", "w3", "w2"), False, "expert_bias")


@dataclass(frozen=True, slots=True)
class Lfm2MoeConfig(Lfm2Config):
    """Attributes of the family:

    corrects: whether experts are ranked with a correction.
    """

    corrects: bool = True


class Lfm2Moe(Lfm2):
    model_type = "lfm2_moe"
    hf_class = "Lfm2MoeForCausalLM"
    gguf_architecture = "lfm2moe"
    config_class = Lfm2MoeConfig

    def _feed_forwards_of_hf(self, fields: Fields, shared: dict) -> dict:
        num_dense = fields.count("num_dense_layers", 2, minimum=0, maximum=MAX_LAYERS)
        return config_experts.from_hf(fields, count="num_experts") | {
            "normalizes": fields.flag("norm_topk_prob", True),
            "routed_scale": fields.number("routed_scaling_factor", 1.0),
            "corrects": fields.flag("use_expert_bias", True),
            "dense_layers": tuple(range(min(num_dense, shared["num_layers"]))),
        }

    def _experts_of_gguf(self, file: GGUFFile, fields: Fields, num_layers: int) -> dict:
        """Weights are always normalized there."""
        if fields.count("expert_gating_func", SIGMOID) != SIGMOID:
            fields.fail("expert_gating_func", f"{SIGMOID}, a sigmoid")
        num_dense = fields.count("leading_dense_block_count", 0, minimum=0, maximum=MAX_LAYERS)
        return config_experts.from_gguf(fields) | {
            "routed_scale": fields.number("expert_weights_scale", 0.0, minimum=0.0) or 1.0,
            "corrects": any(name.endswith("exp_probs_b.bias") for name in file.tensors),
            "dense_layers": tuple(range(min(num_dense, num_layers))),
        }

    def _conv_layers(self, fields: Fields, num_layers: int) -> tuple[bool, ...]:
        return conv_layers(fields, num_layers)

    def _feed_forwards_of_json(self, config: Lfm2Config) -> dict:
        assert isinstance(config, Lfm2MoeConfig)
        return {
            "num_experts": config.num_experts,
            "num_experts_per_tok": config.num_slots,
            "moe_intermediate_size": config.expert_dim,
            "num_dense_layers": len(config.dense_layers),
            "norm_topk_prob": config.normalizes,
            "routed_scaling_factor": config.routed_scale,
            "use_expert_bias": config.corrects,
        }

    def _feed_forward(self, names, config, index):
        if index in config.dense_layers:
            return super()._feed_forward(names, config, index)
        routing = ops_experts.Router(
            *(config.num_experts, config.num_slots, "sigmoid", config.normalizes),
            *(config.routed_scale, EPSILON),
        )
        own = {"spelled": NAMES, "has_correction": config.corrects}
        return mixture(names, routing, config.hidden_dim, config.expert_dim, **own)
