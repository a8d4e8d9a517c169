"""GLM-4.5 (and Air): a part of each head turns, experts are ranked with a correction, one more is
shared by all tokens, and the first layers are dense."""

from dataclasses import dataclass

from marlin.device import ops_experts
from marlin.files.fields import Fields
from marlin.models import config_experts, config_gguf, config_hf, config_json
from marlin.models.config import MAX_DIM, MAX_LAYERS
from marlin.models.config_experts import MixtureConfig
from marlin.models.layers import Rope, attention, gated_feed_forward
from marlin.models.layers_experts import mixture, shared_experts
from marlin.models.layers_residual import PreNormLayer
from marlin.models.spec import Family, ModelSpec, Names
from marlin.weights.gguf import GGUFFile

IMPLIED_PART = 0.5
# GGUF's number of it.
SIGMOID = 2
# Added to the sum that the chosen weights are divided by.
EPSILON = 1e-20


@dataclass(frozen=True, slots=True)
class Glm4MoeConfig(MixtureConfig):
    """Attributes of the family:

    rotary_dim: the first dimensions of a head, which RoPE turns.
    """

    rotary_dim: int


class Glm4Moe(Family[Glm4MoeConfig]):
    model_type = "glm4_moe"
    hf_class = "Glm4MoeForCausalLM"
    gguf_architecture = "glm4moe"

    def config_from_hf(self, fields: Fields) -> Glm4MoeConfig:
        shared = config_hf.shared(fields, self.model_type, turns_partly=True)
        experts = config_experts.from_hf(fields, count="n_routed_experts")
        num_shared = fields.count("n_shared_experts", 1, minimum=0, maximum=MAX_DIM)
        num_dense = fields.count("first_k_dense_replace", 1, minimum=0, maximum=MAX_LAYERS)
        return Glm4MoeConfig(
            **shared,
            **experts,
            qkv_bias=fields.flag("attention_bias", False),
            qk_norm=fields.flag("use_qk_norm", False),
            windows=(None,) * shared["num_layers"],
            rotary_dim=config_hf.rotary_dim(fields, shared["head_dim"], IMPLIED_PART),
            normalizes=fields.flag("norm_topk_prob", True),
            dense_layers=tuple(range(min(num_dense, shared["num_layers"]))),
            routed_scale=fields.number("routed_scaling_factor", 1.0),
            num_groups=fields.count("n_group", 1, maximum=experts["num_experts"]),
            kept_groups=fields.count("topk_group", 1, maximum=experts["num_experts"]),
            shared_dim=num_shared * experts["expert_dim"],
        )

    def config_from_gguf(self, file: GGUFFile) -> Glm4MoeConfig:
        fields = config_gguf.fields_of(file, self.gguf_architecture)
        shared = config_gguf.shared(file, fields, self.model_type, turns_partly=True, experts=True)
        experts = config_experts.from_gguf(fields)
        if fields.count("expert_gating_func", SIGMOID) != SIGMOID:
            fields.fail("expert_gating_func", f"{SIGMOID}, a sigmoid")
        num_shared = fields.count("expert_shared_count", 0, minimum=0, maximum=MAX_DIM)
        num_dense = fields.count("leading_dense_block_count", 0, minimum=0, maximum=MAX_LAYERS)
        return Glm4MoeConfig(
            **shared,
            **experts,
            windows=(None,) * shared["num_layers"],
            rotary_dim=config_gguf.rotary_dim(fields, shared["head_dim"]),
            normalizes=fields.flag("expert_weights_norm", False),
            dense_layers=tuple(range(min(num_dense, shared["num_layers"]))),
            routed_scale=fields.number("expert_weights_scale", 1.0),
            num_groups=fields.count("expert_group_count", 1, maximum=experts["num_experts"]),
            kept_groups=fields.count("expert_group_used_count", 1, maximum=experts["num_experts"]),
            shared_dim=num_shared * experts["expert_dim"],
        )

    def hf_config(self, config: Glm4MoeConfig) -> dict:
        values = config_json.shared_values(config, self.hf_class)
        del values["mlp_bias"]
        return values | {
            "attention_bias": config.qkv_bias,
            "use_qk_norm": config.qk_norm,
            "partial_rotary_factor": config.rotary_dim / config.head_dim,
            "n_routed_experts": config.num_experts,
            "n_shared_experts": config.shared_dim // config.expert_dim,
            "num_experts_per_tok": config.num_slots,
            "moe_intermediate_size": config.expert_dim,
            "first_k_dense_replace": len(config.dense_layers),
            "routed_scaling_factor": config.routed_scale,
            "norm_topk_prob": config.normalizes,
            "n_group": config.num_groups,
            "topk_group": config.kept_groups,
        }

    def spec(self, config: Glm4MoeConfig) -> ModelSpec:
        rope = Rope(config.rotary_dim, config.rope_theta, config.rope_scaling)
        layers = tuple(_layer(config, rope, index) for index in range(config.num_layers))
        return ModelSpec.usual(config, layers)


def _layer(config, rope, index):
    names, dim = Names.of_layer(index), config.hidden_dim
    return PreNormLayer(
        names.norm("input_layernorm", "attn_norm", dim),
        attention(names, config, rope, None),
        names.norm("post_attention_layernorm", "post_attention_norm", dim),
        gated_feed_forward(names, config)
        if index in config.dense_layers
        else _mixture(names, config),
    )


def _mixture(names, config):
    routing = ops_experts.Router(
        *(config.num_experts, config.num_slots, "sigmoid", config.normalizes),
        *(config.routed_scale, EPSILON, config.num_groups, config.kept_groups),
    )
    sizes, shared = (config.hidden_dim, config.expert_dim), shared_experts(names, config)
    return mixture(names, routing, *sizes, has_correction=True, shared=shared)
