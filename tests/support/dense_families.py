"""Configs of the dense families beyond the first, small ones with every feature that they have.

Windows, original contexts and other lengths are such that the tests' prompts are past them.
"""

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
KINDS = ["sliding_attention", "full_attention"]
# {model_type: (transformers' names of config and model, config fields)}.
FAMILIES = {
    "smollm3": (
        "SmolLM3",
        {
            "no_rope_layers": [1, 0],
            "use_sliding_window": True,
            "sliding_window": 33,
            "layer_types": KINDS,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.3,
            "logits_scaling": 0.5,
        },
    ),
    "olmo2": ("Olmo2", {}),
    "olmo3": (
        "Olmo3",
        {
            "sliding_window": 33,
            "layer_types": KINDS,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 5e5,
                    "factor": 4.0,
                    "original_max_position_embeddings": 128,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    "phi3": (
        "Phi3",
        {
            "original_max_position_embeddings": 16,
            "sliding_window": 200,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 100.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
                "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            },
        },
    ),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 32,
            "sliding_window": 33,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 1.5,
        },
    ),
    "ministral3": (
        "Ministral3",
        {
            "head_dim": 32,
            "sliding_window": 100,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 16.0,
                "original_max_position_embeddings": 32,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.3,
            },
        },
    ),
    "exaone4": ("Exaone4", {"head_dim": 32, "sliding_window": 33, "layer_types": KINDS}),
    "muse_glimmer_text": (
        "MuseGlimmer",
        {
            "head_dim": 32,
            "sliding_window": 33,
            "layer_types": KINDS,
            "layer_rope_theta": [5e3, 0],
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e3},
            "final_logit_softcapping": 1.5,
            "output_multiplier": 0.7,
            "qk_scale_factor": 2.0,
            "post_norm_eps": 0.3,
        },
    ),
    "glm4": ("Glm4", {"head_dim": 32, "eos_token_id": [5]}),
}
# (model_type, fields that are changed): each must show in the logits.
FEATURES = [
    ("smollm3", {"no_rope_layers": [1, 1]}),
    ("smollm3", {"use_sliding_window": False, "layer_types": ["full_attention"] * 2}),
    ("granite", {"embedding_multiplier": 1.0}),
    ("granite", {"residual_multiplier": 1.0}),
    ("granite", {"attention_multiplier": 0.25}),
    ("granite", {"logits_scaling": 1.0}),
    ("olmo3", {"sliding_window": 400}),
    ("phi3", {"original_max_position_embeddings": 400}),
    ("phi3", {"sliding_window": None}),
    ("gemma2", {"attn_logit_softcapping": None}),
    ("gemma2", {"final_logit_softcapping": None}),
    ("gemma2", {"query_pre_attn_scalar": 32}),
    ("gemma2", {"sliding_window": 400}),
    ("ministral3", {"sliding_window": None}),
    ("exaone4", {"layer_types": ["full_attention"] * 2}),
    ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    ("glm4", {"partial_rotary_factor": 1.0}),
    ("muse_glimmer_text", {"layer_rope_theta": [5e3, 5e3]}),
    ("muse_glimmer_text", {"layer_types": ["full_attention"] * 2}),
    ("muse_glimmer_text", {"final_logit_softcapping": 20.0}),
    ("muse_glimmer_text", {"output_multiplier": 1.0}),
    ("muse_glimmer_text", {"qk_scale_factor": 1.0}),
    ("muse_glimmer_text", {"post_norm_eps": 1e-8}),
]
