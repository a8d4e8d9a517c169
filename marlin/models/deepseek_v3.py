"""DeepSeek-V3 (and R1, V3.1) and GLM-4.7-Flash, which is the same with other numbers: latent
attention, and mixtures whose experts are ranked with a correction, of the groups that rank best,
beside one that all tokens share."""

from marlin.device import ops_experts
from marlin.files.fields import Fields
from marlin.models import config_hf, config_json, config_latent
from marlin.models.config_latent import LatentConfig
from marlin.models.glm4_moe import EPSILON
from marlin.models.layers import Rope, gated_feed_forward
from marlin.models.layers_experts import mixture, shared_experts
from marlin.models.layers_latent import latent_attention
from marlin.models.layers_residual import PreNormLayer
from marlin.models.spec import Family, ModelSpec, Names
from marlin.weights.gguf import GGUFFile

# Of both norms within latent attention, whatever the others' is.
INNER_EPS = 1e-6


class DeepseekV3(Family[LatentConfig]):
    """Attributes of a family of this line:

    implied: what config.json means by fields that it leaves out.
    """

    model_type = "deepseek_v3"
    hf_class = "DeepseekV3ForCausalLM"
    gguf_architecture: str | None = "deepseek2"
    implied = {
        "n_shared_experts": 1,
        "routed_scaling_factor": 2.5,
        "n_group": 8,
        "topk_group": 4,
        "first_k_dense_replace": 3,
    }

    def config_from_hf(self, fields: Fields) -> LatentConfig:
        """As Family's."""
        fields.choice("scoring_func", ("sigmoid",), "sigmoid")
        fields.choice("topk_method", ("noaux_tc",), "noaux_tc")
        fields = fields.with_defaults(self.implied)
        latent = config_latent.from_hf(fields)
        # What files say of a head's size is said of one or another part of it.
        sized = fields.with_defaults({})
        sized.values["head_dim"] = latent["nope_dim"] + latent["rope_dim"]
        shared = config_hf.shared(sized, self.model_type)
        if shared["num_kv_heads"] != shared["num_heads"]:
            fields.fail("num_key_value_heads", f"the {shared['num_heads']} heads of queries")
        has_bias, count = fields.flag("attention_bias", False), shared["num_layers"]
        return LatentConfig(
            **shared,
            **latent,
            **config_latent.experts_of_hf(fields, count),
            qkv_bias=has_bias,
            o_bias=has_bias,
            windows=(None,) * count,
        )

    def config_from_gguf(self, file: GGUFFile) -> LatentConfig:
        """As Family's."""
        return config_latent.from_gguf(file, self.model_type, str(self.gguf_architecture))

    def hf_config(self, config: LatentConfig) -> dict:
        """As Family's."""
        values = config_json.shared_values(config, self.hf_class)
        for name in ("mlp_bias", "head_dim"):
            del values[name]
        if config.mscale_all_dim:
            values["rope_scaling"]["mscale_all_dim"] = config.mscale_all_dim
        dense, count = config.dense_layers, config.num_layers
        return values | {
            "q_lora_rank": config.q_rank or None,
            "kv_lora_rank": config.kv_rank,
            "qk_nope_head_dim": config.nope_dim,
            "qk_rope_head_dim": config.rope_dim,
            "v_head_dim": config.value_dim,
            "rope_interleave": config.interleaved,
            "n_routed_experts": config.num_experts,
            "n_shared_experts": config.shared_dim // config.expert_dim,
            "num_experts_per_tok": config.num_slots,
            "moe_intermediate_size": config.expert_dim,
            "mlp_layer_types": ["dense" if i in dense else "sparse" for i in range(count)],
            "routed_scaling_factor": config.routed_scale,
            "norm_topk_prob": config.normalizes,
            "n_group": config.num_groups,
            "topk_group": config.kept_groups,
        }

    def _routing(self, config: LatentConfig) -> ops_experts.Router:
        return ops_experts.Router(
            *(config.num_experts, config.num_slots, "sigmoid", config.normalizes),
            *(config.routed_scale, EPSILON, config.num_groups, config.kept_groups),
        )

    def spec(self, config: LatentConfig) -> ModelSpec:
        """As Family's."""
        scaling, interleaved = config.rope_scaling, config.interleaved
        rope = Rope(config.rope_dim, config.rope_theta, scaling, interleaved=interleaved)
        layers = tuple(self._layer(config, rope, index) for index in range(config.num_layers))
        return ModelSpec.usual(config, layers)

    def _layer(self, config, rope, index):
        names, dim = Names.of_layer(index), config.hidden_dim
        return PreNormLayer(
            names.norm("input_layernorm", "attn_norm", dim),
            latent_attention(names, config, rope, INNER_EPS),
            names.norm("post_attention_layernorm", "ffn_norm", dim),
            gated_feed_forward(names, config)
            if index in config.dense_layers
            else self._mixture(names, config),
        )

    def _mixture(self, names, config):
        routing, shared = self._routing(config), shared_experts(names, config)
        has_correction = routing.gating == "sigmoid"
        sizes = config.hidden_dim, config.expert_dim
        return mixture(names, routing, *sizes, has_correction=has_correction, shared=shared)


class Glm4MoeLite(DeepseekV3):
    """GLM-4.7-Flash."""

    model_type = "glm4_moe_lite"
    hf_class = "Glm4MoeLiteForCausalLM"
    gguf_architecture = None  # its files say deepseek2
    implied = {
        "n_shared_experts": 1,
        "routed_scaling_factor": 1.8,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    }
