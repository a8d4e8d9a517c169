"""Families of mixtures of experts for tests: config fields over dense_families.SIZES, small, and
with every feature where it shows."""

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
}
# A change of a family's config whose lack would show in the logits.
FEATURES = [
    ("qwen3_moe", {"norm_topk_prob": False}),
    ("qwen3_moe", {"num_experts_per_tok": 2}),
]
