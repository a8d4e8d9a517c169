"""Families whose layers do not all cache alike, for tests: config fields over dense_families.SIZES,
small, and with every feature where it shows."""

# Heads of values that share keys, a part of each head that turns, and each kind of layer.
_DELTA = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    "head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 16,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1000.0,
        "partial_rotary_factor": 0.25,
    },
}
_EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 32,
}
# The last layer of each kind that keeps keys and values is not the one before those that read them.
_GEMMA4 = {
    "num_hidden_layers": 7,
    "layer_types": [
        *("sliding_attention", "full_attention", "sliding_attention", "sliding_attention"),
        *("full_attention", "sliding_attention", "full_attention"),
    ],
    "head_dim": 16,
    "sliding_window": 33,
    "final_logit_softcapping": 3.0,
    "tie_word_embeddings": True,
}
_GEMMA4_OF_KEYS = _GEMMA4 | {
    "attention_k_eq_v": True,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
}
_LFM2 = {
    "num_hidden_layers": 4,
    "layer_types": ["conv", "full_attention", "conv", "conv"],
    "conv_L_cache": 4,
    "conv_bias": True,
}
HYBRIDS = {
    "gemma4_text": (
        "Gemma4",
        _GEMMA4
        | {
            "global_head_dim": 32,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 97,
            "num_kv_shared_layers": 3,
            "use_double_wide_mlp": True,
        },
    ),
    "gemma4_unified_text": ("Gemma4Unified", _GEMMA4_OF_KEYS),
    "qwen3_next": ("Qwen3Next", _DELTA | _EXPERTS | {"mlp_only_layers": [2]}),
    "qwen3_5_text": ("Qwen3_5", _DELTA),
    "qwen3_5_moe_text": ("Qwen3_5Moe", _DELTA | _EXPERTS),
    "lfm2": (
        "Lfm2",
        _LFM2
        | {
            "block_auto_adjust_ff_dim": True,
            "block_ffn_dim_multiplier": 2.0,
            "block_multiple_of": 32,
        },
    ),
    "lfm2_moe": (
        "Lfm2Moe",
        _LFM2
        | {
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "num_dense_layers": 1,
            "routed_scaling_factor": 1.8,
        },
    ),
}
