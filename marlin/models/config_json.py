"""The config.json that a converted model gets, as far as every family writes it alike.

In the spellings of transformers 4, which 5 reads too; config_hf.py reads both.
"""

from marlin.models.config import HF, SIZES, ModelConfig


def shared_values(config: ModelConfig, hf_class: str) -> dict:
    """config.json's object for a config, as far as every family spells it alike."""
    return {
        "architectures": [hf_class],
        "model_type": config.architecture,
        "hidden_act": "silu",
        **{row[HF]: getattr(config, name) for name, row in SIZES.items()},
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling_values(config.rope_scaling),
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": config.o_bias,
        "mlp_bias": config.mlp_bias,
        "eos_token_id": list(config.eos_token_ids),
        "num_nextn_predict_layers": config.num_prediction_layers,
    }


def _rope_scaling_values(scaling):
    if scaling.type is None:
        return None
    names = {
        "llama3": ("low_freq_factor", "high_freq_factor"),
        "yarn": ("beta_fast", "beta_slow", "truncate", "attention_factor"),
    }.get(scaling.type, ())
    values = {"rope_type": scaling.type, "factor": scaling.factor}
    if names:
        values["original_max_position_embeddings"] = scaling.original_max_tokens
    return values | {name: getattr(scaling, name) for name in names}
