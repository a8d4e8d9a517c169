"""Writes a ModelConfig as the config.json of a Hugging Face folder; config.py reads it back.

Uses transformers 4's spellings, which transformers 5 reads too.
"""

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def hf_config(config):
    """config.json's object for a ModelConfig.

    A config that its architecture cannot express there (a llama with biases on q, k and v alone)
    does not survive being read back; the caller compares.
    """
    values = {
        "architectures": [CLASSES[config.architecture]],
        "model_type": config.architecture,
        "hidden_act": "silu",
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_dim,
        "intermediate_size": config.intermediate_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_context_tokens,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling(config.rope_scaling),
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": config.o_bias,
        "mlp_bias": config.mlp_bias,
        "eos_token_id": list(config.eos_token_ids),
    }
    if config.architecture == "mistral":
        values["sliding_window"] = config.sliding_window
    return values


def _rope_scaling(scaling):
    if scaling.type is None:
        return None
    values = {"rope_type": scaling.type, "factor": scaling.factor}
    if scaling.type in ("llama3", "yarn"):
        values["original_max_position_embeddings"] = scaling.original_max_tokens
    if scaling.type == "llama3":
        values["low_freq_factor"] = scaling.low_freq_factor
        values["high_freq_factor"] = scaling.high_freq_factor
    if scaling.type == "yarn":
        values["beta_fast"] = scaling.beta_fast
        values["beta_slow"] = scaling.beta_slow
        values["truncate"] = scaling.truncate
        values["attention_factor"] = scaling.attention_factor
    return values
