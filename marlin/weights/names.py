"""Tensor names of the Llama family in GGUF files and in Hugging Face checkpoints, and how their
rows differ.

Knows names and row order only; refuses to know files, sizes and values.
"""

import re

GLOBAL_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Divisors of the RoPE frequencies (Llama 3 scaling in GGUF); Hugging Face keeps the rule in
# config.json.
ROPE_FACTORS = "rope_freqs.weight"

_GLOBAL_TO_GGUF = {hf: gguf for gguf, hf in GLOBAL_NAMES.items()}
_LAYER_TO_GGUF = {hf: gguf for gguf, hf in LAYER_NAMES.items()}
_GGUF_LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,3})\.([a-z_]+)\.(weight|bias)", re.ASCII)
_HF_LAYER = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,3})\.([a-z_.]+)\.(weight|bias)", re.ASCII)


def hf_name(gguf_name):
    """The Hugging Face name of a GGUF tensor, or None when the Llama family has no such tensor."""
    if match := _GGUF_LAYER.fullmatch(gguf_name):
        layer, part, suffix = match.groups()
        return f"model.layers.{layer}.{LAYER_NAMES[part]}.{suffix}" if part in LAYER_NAMES else None
    part, _, suffix = gguf_name.rpartition(".")
    known = part in GLOBAL_NAMES and suffix == "weight"
    return f"{GLOBAL_NAMES[part]}.{suffix}" if known else None


def gguf_name(hf_name):
    """The GGUF name of a Hugging Face tensor, or None when the Llama family has no such tensor."""
    if match := _HF_LAYER.fullmatch(hf_name):
        layer, part, suffix = match.groups()
        return f"blk.{layer}.{_LAYER_TO_GGUF[part]}.{suffix}" if part in _LAYER_TO_GGUF else None
    part, _, suffix = hf_name.rpartition(".")
    known = part in _GLOBAL_TO_GGUF and suffix == "weight"
    return f"{_GLOBAL_TO_GGUF[part]}.{suffix}" if known else None


def rows_are_interleaved(gguf_architecture, hf_name):
    """Whether a GGUF file stores this tensor's rows in the order of interleaved RoPE.

    Files of architecture `llama` (Mistral is written as `llama` too) permute the rows of q_proj and
    k_proj, weights and biases; qwen2 and qwen3 files keep Hugging Face's order.
    """
    return (
        gguf_architecture == "llama"
        and ".self_attn." in hf_name
        and (".q_proj." in hf_name or ".k_proj." in hf_name)
    )


def unpermute_rows(array, num_heads):
    """Put rows stored for interleaved RoPE into Hugging Face's order (the two halves of a head).

    Hugging Face row h * head_dim + two * (head_dim / 2) + i is GGUF row h * head_dim + 2 * i + two.

    Args:
        array: [num_heads * head_dim, ...], elements or raw row bytes; head_dim is even.
        num_heads: query heads for q_proj, KV heads for k_proj.

    Returns:
        A copy of the same shape and dtype.
    """
    half = array.shape[0] // num_heads // 2
    assert array.shape[0] == num_heads * half * 2, (array.shape, num_heads)
    pairs = array.reshape(num_heads, half, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).copy().reshape(array.shape)
