"""A model's hyperparameters, in one shape whatever file they were read from.

Hugging Face and GGUF spellings stop here. Owns which models are supported and refuses the rest by
name; knows nothing of weights beyond the shape and presence of tensors in a GGUF file.
"""

import os
from dataclasses import dataclass

import numpy as np

from marlin.errors import ModelFileError
from marlin.files.fields import file_fields
from marlin.files.strict_json import read_json_object
from marlin.models.rope import RopeScaling, yarn_attention_factor

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3")
# Tokens that end a turn in the chat formats of these families (ChatML, Llama 3).
END_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>")

# Bounds that no model of these families comes near; they keep a lying file from asking for
# terabytes. (Llama 3.1 405B: 126 layers, hidden 16384, intermediate 53248, 128 heads.)
MAX_LAYERS = 1024
MAX_DIM = 1 << 20
MAX_HEADS = 4096
MAX_HEAD_DIM = 1024
MAX_VOCAB = 1 << 22
MAX_CONTEXT_TOKENS = 1 << 26
# YaRN's beta_fast and beta_slow are rotations within a context: no pair of dimensions makes more
# than one a token, and files say 32 and 1. Past these bounds their logarithms overflow.
MAX_YARN_ROTATIONS = MAX_CONTEXT_TOKENS
MIN_YARN_ROTATIONS = 1e-6


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Hyperparameters of one model.

    Attributes:
        architecture: one of ARCHITECTURES.
        num_layers, hidden_dim, intermediate_dim, num_heads, num_kv_heads, head_dim, vocab_size:
            sizes; num_heads is a multiple of num_kv_heads and head_dim is even.
        max_context_tokens: the longest context the model is made for.
        rms_norm_eps: added to the mean square of every norm.
        rope_theta, rope_scaling: see models/rope.py.
        tie_embeddings: the output matrix is the embedding matrix.
        qkv_bias, o_bias, mlp_bias: which linear layers have a bias.
        qk_norm: queries and keys pass an RMS norm over head_dim before RoPE.
        sliding_window: tokens that a query sees, itself included, or None for all.
        eos_token_ids: tokens that end a generation, no repeats.
    """

    architecture: str
    num_layers: int
    hidden_dim: int
    intermediate_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_context_tokens: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling
    tie_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_window: int | None
    eos_token_ids: tuple[int, ...]


def config_from_hf(folder):
    """Read `config.json`, and the end tokens of `generation_config.json` where there is one.

    Understands the spellings of transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters).

    Raises:
        ModelFileError: a field is missing or wrong, or the model needs what is not supported.
    """
    path = os.path.join(folder, "config.json")
    fields = file_fields(path, read_json_object(path))
    architecture = fields.choice("model_type", ARCHITECTURES)
    _refuse_unsupported_hf(fields)
    num_heads = fields.count("num_attention_heads", maximum=MAX_HEADS)
    hidden_dim = fields.count("hidden_size", maximum=MAX_DIM)
    vocab_size = fields.count("vocab_size", maximum=MAX_VOCAB)
    max_tokens = fields.count("max_position_embeddings", maximum=MAX_CONTEXT_TOKENS)
    theta, scaling, max_tokens = _hf_rope(fields, max_tokens)
    attention_bias = architecture in ("llama", "qwen3") and fields.flag("attention_bias", False)
    num_layers = fields.count("num_hidden_layers", maximum=MAX_LAYERS)
    return ModelConfig(
        architecture=architecture,
        num_layers=num_layers,
        hidden_dim=hidden_dim,
        intermediate_dim=fields.count("intermediate_size", maximum=MAX_DIM),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(fields, "num_key_value_heads", num_heads),
        head_dim=_hf_head_dim(fields, architecture, hidden_dim, num_heads),
        vocab_size=vocab_size,
        max_context_tokens=max_tokens,
        rms_norm_eps=fields.number("rms_norm_eps", maximum=1.0),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        qkv_bias=architecture == "qwen2" or attention_bias,
        o_bias=attention_bias,
        mlp_bias=architecture == "llama" and fields.flag("mlp_bias", False),
        qk_norm=architecture == "qwen3",
        sliding_window=_hf_sliding_window(fields, architecture, num_layers),
        eos_token_ids=_hf_eos_token_ids(folder, fields, vocab_size),
    )


def _refuse_unsupported_hf(fields):
    fields.choice("hidden_act", ("silu", "swish"), "silu")
    names = fields.raw("architectures")
    if names is not None:
        listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not listed or not any(name.endswith("ForCausalLM") for name in names):
            fields.fail("architectures", "a causal language model (…ForCausalLM)")
    if fields.number("partial_rotary_factor", 1.0) != 1.0:
        fields.fail("partial_rotary_factor", "1 (RoPE over the whole head)")


def _num_kv_heads(fields, name, num_heads):
    num_kv_heads = fields.count(name, num_heads, maximum=num_heads)
    if num_heads % num_kv_heads:
        fields.fail(name, f"a divisor of the {num_heads} query heads")
    return num_kv_heads


def _hf_head_dim(fields, architecture, hidden_dim, num_heads):
    # A Qwen3 file without head_dim means 128 (transformers' default), not hidden / heads.
    implied = 128 if architecture == "qwen3" else None
    head_dim = fields.count("head_dim", implied, maximum=MAX_HEAD_DIM)
    if head_dim is None:
        if hidden_dim % num_heads:
            fields.fail("hidden_size", f"a multiple of the {num_heads} heads (head_dim is absent)")
        head_dim = hidden_dim // num_heads
    if head_dim % 2 or head_dim > MAX_HEAD_DIM:
        fields.fail("head_dim", f"an even number up to {MAX_HEAD_DIM} (it comes to {head_dim})")
    return head_dim


def _hf_sliding_window(fields, architecture, num_layers):
    if architecture == "llama":
        return None
    if architecture == "mistral":
        if "sliding_window" in fields.values:
            return fields.count("sliding_window", None, maximum=1 << 31)
        return 4096
    if not fields.flag("use_sliding_window", False):
        return None
    window = fields.count("sliding_window", 4096, maximum=1 << 31)
    kinds = fields.raw("layer_types")
    if kinds is None:
        first = fields.count("max_window_layers", 28, minimum=0, maximum=1 << 31)
        kinds = ["full_attention"] * min(first, num_layers)
        kinds += ["sliding_attention"] * (num_layers - len(kinds))
    if kinds == ["full_attention"] * num_layers:
        return None
    if kinds == ["sliding_attention"] * num_layers:
        return window
    fields.fail("use_sliding_window", "false, or the window on every layer (no mixture)")


def _hf_eos_token_ids(folder, fields, vocab_size):
    sources = [fields]
    path = os.path.join(folder, "generation_config.json")
    if os.path.exists(path):
        sources.append(file_fields(path, read_json_object(path)))
    found = []
    for source in sources:
        value = source.raw("eos_token_id")
        for token_id in [] if value is None else value if isinstance(value, list) else [value]:
            if type(token_id) is not int or not 0 <= token_id < vocab_size:
                source.fail("eos_token_id", f"token ids below the vocabulary's {vocab_size}")
            found.append(token_id)
    return tuple(dict.fromkeys(found))


def _hf_rope(fields, max_tokens):
    """(theta, RopeScaling, max_context_tokens) from either spelling."""
    rope = fields.section("rope_parameters") or fields.section("rope_scaling")
    theta_fields = rope if rope and rope.raw("rope_theta") is not None else fields
    theta = theta_fields.number("rope_theta", 10000.0, above=1.0)
    if rope is None:
        return theta, RopeScaling(), max_tokens
    if rope.number("partial_rotary_factor", 1.0) != 1.0:
        rope.fail("partial_rotary_factor", "1 (RoPE over the whole head)")
    # Older files say `type`; some hold both, and `rope_type` is the one that counts.
    name = "rope_type" if rope.raw("rope_type") is not None else "type"
    kind = rope.choice(name, ("default", "linear", "llama3", "yarn"), "default")
    if kind == "default":
        return theta, RopeScaling(), max_tokens
    if kind == "linear":
        return theta, RopeScaling("linear", rope.number("factor")), max_tokens
    original = rope.count(
        "original_max_position_embeddings",
        *([max_tokens] if kind == "yarn" else []),
        maximum=MAX_CONTEXT_TOKENS,
    )
    scaling = (_hf_llama3 if kind == "llama3" else _hf_yarn)(rope, original, max_tokens)
    return theta, scaling, _context_tokens(max_tokens, scaling)


def _context_tokens(max_tokens, scaling):
    """Files that switch YaRN on by hand state the original context; the longer one is meant."""
    if scaling.type != "yarn":
        return max_tokens
    stretched = int(min(scaling.original_max_tokens * scaling.factor, MAX_CONTEXT_TOKENS))
    return max(max_tokens, stretched)


def _hf_llama3(rope, original, max_tokens):
    low = rope.number("low_freq_factor")
    return RopeScaling(
        type="llama3",
        factor=rope.number("factor"),
        original_max_tokens=original,
        low_freq_factor=low,
        high_freq_factor=rope.number("high_freq_factor", above=low),
    )


def _hf_yarn(rope, original, max_tokens):
    factor = rope.number("factor", max_tokens / original)
    stated = rope.number("attention_factor", None)
    mscale, all_dim = rope.number("mscale", None), rope.number("mscale_all_dim", None)
    beta_fast, beta_slow = _yarn_rotations(rope, "")
    return RopeScaling(
        type="yarn",
        factor=factor,
        original_max_tokens=original,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        truncate=rope.flag("truncate", True),
        attention_factor=stated or yarn_attention_factor(factor, mscale, all_dim),
    )


def _yarn_rotations(fields, prefix):
    """(beta_fast, beta_slow)."""
    most = MAX_YARN_ROTATIONS
    slow = fields.number(f"{prefix}beta_slow", 1.0, above=MIN_YARN_ROTATIONS, maximum=most)
    return fields.number(f"{prefix}beta_fast", 32.0, above=slow, maximum=most), slow


def config_from_gguf(gguf_file):
    """Read the hyperparameters out of a GGUF header.

    Args:
        gguf_file: a GGUFFile.

    Returns:
        ModelConfig. Mistral models say `llama` there, and stay so unless they have a window.

    Raises:
        ModelFileError: a field is missing or wrong, or the model needs what is not supported.
    """
    path, metadata, tensors = gguf_file.path, gguf_file.metadata, gguf_file.tensors
    general = file_fields(path, metadata)
    architecture = general.choice("general.architecture", GGUF_ARCHITECTURES)
    fields = file_fields(path, _without_uniform_arrays(metadata), f"{architecture}.")
    if fields.count("expert_count", 0, minimum=0, maximum=MAX_DIM):
        fields.fail("expert_count", "0 (mixtures of experts are not supported)")
    num_heads = fields.count("attention.head_count", maximum=MAX_HEADS)
    hidden_dim = fields.count("embedding_length", maximum=MAX_DIM)
    vocab_size = _gguf_vocab_size(general, tensors)
    max_tokens = fields.count("context_length", maximum=MAX_CONTEXT_TOKENS)
    scaling = _gguf_rope_scaling(fields, max_tokens)
    window = None
    if architecture == "llama":
        # Qwen's files may carry the number of a window that is off, so only here it counts.
        window = fields.count("attention.sliding_window", None, maximum=1 << 31)
    return ModelConfig(
        architecture=architecture if window is None else "mistral",
        num_layers=fields.count("block_count", maximum=MAX_LAYERS),
        hidden_dim=hidden_dim,
        intermediate_dim=fields.count("feed_forward_length", maximum=MAX_DIM),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(fields, "attention.head_count_kv", num_heads),
        head_dim=_gguf_head_dim(fields, hidden_dim, num_heads),
        vocab_size=vocab_size,
        max_context_tokens=_context_tokens(max_tokens, scaling),
        rms_norm_eps=fields.number("attention.layer_norm_rms_epsilon", maximum=1.0),
        rope_theta=fields.number("rope.freq_base", 10000.0, above=1.0),
        rope_scaling=scaling,
        tie_embeddings="output.weight" not in tensors,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        o_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        sliding_window=window,
        eos_token_ids=_gguf_eos_token_ids(general, vocab_size),
    )


def _without_uniform_arrays(metadata):
    """Per-layer arrays of one repeated number become that number; others stay, to be refused."""
    values = dict(metadata)
    for key, value in metadata.items():
        is_array = isinstance(value, np.ndarray) and not key.startswith("tokenizer.")
        if is_array and value.size and (value == value[0]).all():
            values[key] = value[0].item()
    return values


def _gguf_vocab_size(general, tensors):
    if "token_embd.weight" not in tensors:
        raise ModelFileError(general.path, "is missing", tensor="token_embd.weight")
    shape = tensors["token_embd.weight"].shape
    if len(shape) != 2 or shape[0] > MAX_VOCAB:
        message = f"shape {list(shape)}; expected [vocabulary, hidden]"
        raise ModelFileError(general.path, message, tensor="token_embd.weight")
    tokens = general.raw("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > shape[0]:
        message = f"{shape[0]} rows for the {len(tokens)} tokens of the tokenizer"
        raise ModelFileError(general.path, message, tensor="token_embd.weight")
    return shape[0]


def _gguf_head_dim(fields, hidden_dim, num_heads):
    head_dim = fields.count("attention.key_length", None, maximum=MAX_HEAD_DIM)
    if head_dim is None:
        if hidden_dim % num_heads:
            fields.fail("embedding_length", f"a multiple of the {num_heads} heads")
        head_dim = hidden_dim // num_heads
    if head_dim % 2 or head_dim > MAX_HEAD_DIM:
        fields.fail("attention.key_length", f"an even number up to {MAX_HEAD_DIM}, not {head_dim}")
    for name in ("attention.value_length", "rope.dimension_count"):
        if fields.count(name, head_dim, maximum=MAX_DIM) != head_dim:
            fields.fail(name, f"the head's {head_dim} dimensions")
    return head_dim


def _gguf_rope_scaling(fields, max_tokens):
    kind = fields.choice("rope.scaling.type", ("none", "linear", "yarn"), None)
    if kind is None:
        factor = fields.number("rope.scale_linear", 1.0)
        return RopeScaling("linear", factor) if factor != 1.0 else RopeScaling()
    if kind == "none":
        return RopeScaling()
    factor = fields.number("rope.scaling.factor")
    if kind == "linear":
        return RopeScaling("linear", factor)
    beta_fast, beta_slow = _yarn_rotations(fields, "rope.scaling.yarn_")
    original = fields.count(
        "rope.scaling.original_context_length", max_tokens, maximum=MAX_CONTEXT_TOKENS
    )
    return RopeScaling(
        type="yarn",
        factor=factor,
        original_max_tokens=original,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        # GGUF states a multiple of YaRN's own number, Hugging Face the number itself.
        attention_factor=fields.number("rope.scaling.attn_factor", 1.0)
        * yarn_attention_factor(factor),
    )


def _gguf_eos_token_ids(general, vocab_size):
    found = [
        general.count(f"tokenizer.ggml.{name}_token_id", None, minimum=0, maximum=vocab_size - 1)
        for name in ("eos", "eot", "eom")
    ]
    tokens = general.raw("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        # The header has room for one end token and chat models have several.
        found += [tokens.index(text) for text in END_TOKENS if text in tokens]
    return tuple(dict.fromkeys(token_id for token_id in found if token_id is not None))
