"""Families of mixtures of experts for tests: config fields over dense_families.SIZES, small, and
with every feature where it shows."""

from copy import deepcopy

from dense_families import FAMILIES, SIZES
from hybrid_families import HYBRIDS

# A row of 40 numbers in a cache of 48, and heads whose parts all differ.
_LATENT = {
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 64,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 8,
    "v_head_dim": 48,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "routed_scaling_factor": 1.8,
    "norm_topk_prob": True,
}
MIXTURES = {
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "num_hidden_layers": 3,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
            "head_dim": 32,
            "mlp_only_layers": [1],
        },
    ),
    "qwen2_moe": (
        "Qwen2Moe",
        {
            "num_hidden_layers": 4,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 80,
            "mlp_only_layers": [1],
            "use_sliding_window": True,
            "sliding_window": 33,
            "max_window_layers": 3,
        },
    ),
    "mixtral": (
        "Mixtral",
        {"num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    "glm4_moe": (
        "Glm4Moe",
        {
            "num_hidden_layers": 3,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 1.8,
            "n_group": 4,
            "topk_group": 2,
            "head_dim": 32,
            "use_qk_norm": True,
            "attention_bias": True,
            "num_nextn_predict_layers": 0,
        },
    ),
    "glm4_moe_lite": (
        "Glm4MoeLite",
        _LATENT
        | {"mlp_layer_types": ["sparse", "dense", "sparse", "sparse"], "attention_bias": True},
    ),
    "deepseek_v3": (
        "DeepseekV3",
        _LATENT
        | {
            "num_hidden_layers": 2,
            "first_k_dense_replace": 1,
            "n_group": 4,
            "topk_group": 2,
            "num_nextn_predict_layers": 0,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "original_max_position_embeddings": 64,
                "mscale": 1.0,
                "mscale_all_dim": 0.8,
            },
        },
    ),
    "gpt_oss": (
        "GptOss",
        {
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "intermediate_size": 48,
            "head_dim": 32,
            "sliding_window": 33,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 8.0,
                "original_max_position_embeddings": 64,
                "truncate": False,
            },
        },
    ),
}
# A change of a family's config whose lack would show in the logits.
FEATURES = [
    ("qwen3_moe", {"norm_topk_prob": False}),
    ("qwen3_moe", {"num_experts_per_tok": 2}),
    ("qwen2_moe", {"norm_topk_prob": True}),
    ("qwen2_moe", {"use_sliding_window": False}),
    ("glm4_moe", {"routed_scaling_factor": 1.0}),
    ("glm4_moe", {"topk_group": 4}),
    ("glm4_moe", {"norm_topk_prob": False}),
    ("glm4_moe_lite", {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}),
    ("glm4_moe_lite", {"rope_interleave": False}),
    ("deepseek_v3", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    ("deepseek_v3", {"topk_group": 4}),
    ("gpt_oss", {"sliding_window": 400}),
    ("gpt_oss", {"num_experts_per_tok": 2}),
]


def small_config(model_type):
    """(transformers' name, config fields) of one of either table, which the caller may change:
    transformers' config classes write into the sections that they are given."""
    name, own = (FAMILIES | MIXTURES | HYBRIDS)[model_type]
    return name, deepcopy(SIZES | own)
