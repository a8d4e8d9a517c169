"""Tiny random models of the families as transformers builds, saves and runs them: the reference."""

from copy import deepcopy

import numpy as np
import transformers
from dense_families import SIZES
from hybrid_families import HYBRIDS
from mixture_families import small_config
from pytorch import torch
from tiny_models import random_tensor
from transformers import (
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

# One thread is as fast for models this small, and does not spin beside the device's own threads.
torch.set_num_threads(1)

CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
}
# A window and a RoPE of its own for each kind of layer, over which the tests' prompts are long
# enough to tell them apart, and another scale than the heads'.
GEMMA3 = {
    "head_dim": 32,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 33,
    "query_pre_attn_scalar": 24,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "linear", "factor": 2.5, "rope_theta": 500.0},
    },
}

# Of Qwen3-Next and its line, whose norm within a delta rule is of the other kind.
DELTA_NORMS = "layernorm.weight", "q_norm.weight", "k_norm.weight", "model.norm.weight"

# Of a tower that is skipped.
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
          "num_attention_heads": 2}  # fmt: skip


def build(family, seed=0, **changes):
    """A float32 model of one of CLASSES, or of mixture_families.small_config, with
    tiny_models.random_tensor's values; changes are config fields."""
    name = None
    if family in CLASSES:
        config_class, model_class = CLASSES[family]
        config = SIZES | (GEMMA3 if family == "gemma3" else {})
    else:
        name, config = small_config(family)
        whole = getattr(transformers, f"{name}Config")
        config_class = getattr(transformers, f"{name}TextConfig", whole)
        model_class = getattr(transformers, f"{name}ForCausalLM", None)
    config = deepcopy(config | changes)  # transformers writes into the sections
    if name == "MuseGlimmer":
        config_class, model_class = whole, transformers.MuseGlimmerForConditionalGeneration
        config = {"text_config": config, "vision_config": VISION}
    model = model_class(config_class(**config)).eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = random_tensor(name, tuple(parameter.shape), rng)
            if stores_less_one(model, name):
                values -= 1
            parameter.copy_(torch.from_numpy(values))
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.copy_(torch.from_numpy(random_tensor(name, (1,), rng)))
            if name.endswith(("e_score_correction_bias", "expert_bias")):
                values = rng.standard_normal(buffer.shape).astype(np.float32)
                buffer.copy_(torch.from_numpy(values / 4))
    return model


def stores_less_one(model, name):
    """Whether a tensor is a norm that the model adds 1 to."""
    ends = {
        "gemma2": "norm.weight",
        "gemma3_text": "norm.weight",
        "muse_glimmer": "layernorm.weight",
    } | dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), DELTA_NORMS)
    return name.endswith(ends.get(model.config.model_type, "no norm"))


def with_weights(model, tensors):
    """The same model with other weights, {Hugging Face name: float32 array}; all must be given."""
    copy = type(model)(model.config).eval()
    state = {name: torch.from_numpy(np.array(values)) for name, values in tensors.items()}
    if model.config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    copy.load_state_dict(state)
    return copy.float()


def tensors_of(model):
    """{Hugging Face name: float32 array} of a model's parameters, a tied output matrix once."""
    return {name: values.detach().numpy().copy() for name, values in model.named_parameters()}


class HalfCache(DynamicCache):
    """Keys and values as float16 stores them, which is what the KV cache holds."""

    def update(self, key_states, value_states, *args, **kwargs):
        rounded = (states.half().float() for states in (key_states, value_states))
        return super().update(*rounded, *args, **kwargs)


def logits_of(model, token_ids, half_cache=True):
    """float32 [len(token_ids), vocab_size]; half_cache: attend to keys and values as float16."""
    # A cache is told of layers that keep a state, and not of windows, whose keys it would drop.
    config = model.config if model.config.model_type in HYBRIDS else None
    cache = HalfCache(config=config) if half_cache else None
    with torch.no_grad():
        ids = torch.tensor([token_ids])
        return model(ids, past_key_values=cache, use_cache=half_cache).logits[0].numpy()
