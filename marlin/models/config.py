"""A model's hyperparameters, in one shape whatever file they were read from, and their limits.

Hugging Face and GGUF spellings stop in config_hf.py, config_gguf.py and the family's file.
"""

from dataclasses import KW_ONLY, dataclass

from marlin.files.fields import Fields
from marlin.models.rope import RopeScaling

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
        architecture: its family's model_type (registry.py).
        num_layers, hidden_dim, intermediate_dim, num_heads, num_kv_heads, head_dim, vocab_size:
            sizes; num_heads is a multiple of num_kv_heads and head_dim is even.
        max_context_tokens: the longest context the model is made for.
        rms_norm_eps: added to the mean square of every norm.
        rope_theta, rope_scaling: see models/rope.py.
        tie_embeddings: the output matrix is the embedding matrix.
        windows: for each layer, tokens that a query sees, itself included, or None for all.
        eos_token_ids: tokens that end a generation as far as the model's own config names them, no
            repeats; the tokenizer knows all of them.
        qkv_bias, o_bias, mlp_bias: which linear layers have a bias.
        qk_norm: queries and keys pass an RMS norm over head_dim before RoPE.
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
    windows: tuple[int | None, ...]
    eos_token_ids: tuple[int, ...]
    _: KW_ONLY
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False


def num_kv_heads(fields: Fields, name: str, num_heads: int, *, is_implied: bool = True) -> int:
    """The KV heads that a field says; where it may be absent, as many as query heads."""
    found = fields.count(name, *([num_heads] if is_implied else []), maximum=num_heads)
    if num_heads % found:
        fields.fail(name, f"a divisor of the {num_heads} query heads")
    return found


def context_tokens(max_tokens: int, scaling: RopeScaling) -> int:
    """Files that switch YaRN on by hand state the original context; the longer one is meant."""
    if scaling.type != "yarn":
        return max_tokens
    assert scaling.original_max_tokens is not None, "YaRN is read with its original context"
    stretched = int(min(scaling.original_max_tokens * scaling.factor, MAX_CONTEXT_TOKENS))
    return max(max_tokens, stretched)


def yarn_rotations(fields: Fields, prefix: str) -> tuple[float, float]:
    """(beta_fast, beta_slow) of the fields that begin with `prefix`."""
    most = MAX_YARN_ROTATIONS
    slow = fields.number(f"{prefix}beta_slow", 1.0, above=MIN_YARN_ROTATIONS, maximum=most)
    return fields.number(f"{prefix}beta_fast", 32.0, above=slow, maximum=most), slow
