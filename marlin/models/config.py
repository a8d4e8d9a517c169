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
        num_prediction_layers: layers behind the others that guess tokens ahead; they are not read.
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
    num_prediction_layers: int = 0


# What every file states: ModelConfig's name, then config.json's, a GGUF header's, and the most.
SIZES = {
    "num_layers": ("num_hidden_layers", "block_count", MAX_LAYERS),
    "hidden_dim": ("hidden_size", "embedding_length", MAX_DIM),
    "intermediate_dim": ("intermediate_size", "feed_forward_length", MAX_DIM),
    "num_heads": ("num_attention_heads", "attention.head_count", MAX_HEADS),
    "num_kv_heads": ("num_key_value_heads", "attention.head_count_kv", MAX_HEADS),
    "head_dim": ("head_dim", "attention.key_length", MAX_HEAD_DIM),
    "max_context_tokens": ("max_position_embeddings", "context_length", MAX_CONTEXT_TOKENS),
}
HF, GGUF = 0, 1


def read_sizes(fields: Fields, kind: int, implies_kv_heads: bool = True) -> dict[str, int]:
    """SIZES of a file that calls them as HF or GGUF ones do.

    Where a head's dimensions are not stated, they are the hidden ones shared out.

    Args:
        implies_kv_heads: a file may leave KV heads out, and has as many as query heads then.
    """
    words = {name: str(row[kind]) for name, row in SIZES.items()}
    heads = fields.count(words["num_heads"], maximum=MAX_HEADS)
    implied, most = {"head_dim": [None]}, {"num_kv_heads": heads}
    if implies_kv_heads:
        implied["num_kv_heads"] = [heads]
    found = {
        name: fields.count(words[name], *implied.get(name, ()), maximum=most.get(name, row[2]))
        for name, row in SIZES.items()
    }
    if heads % found["num_kv_heads"]:
        fields.fail(words["num_kv_heads"], f"a divisor of the {heads} query heads")
    name = words["head_dim"]
    if found["head_dim"] is None:
        if found["hidden_dim"] % heads:
            expected = f"a multiple of the {heads} heads ({name} is absent)"
            fields.fail(words["hidden_dim"], expected)
        found["head_dim"] = found["hidden_dim"] // heads
    if (size := found["head_dim"]) % 2 or size > MAX_HEAD_DIM:
        fields.fail(name, f"an even number up to {MAX_HEAD_DIM} (it comes to {size})")
    return found


def context_tokens(max_tokens: int, scaling: RopeScaling) -> int:
    """Files that switch YaRN on by hand state the original context; the longer one is meant."""
    if scaling.type != "yarn":
        return max_tokens
    assert scaling.original_max_tokens is not None, "YaRN is read with its original context"
    stretched = int(min(scaling.original_max_tokens * scaling.factor, MAX_CONTEXT_TOKENS))
    return max(max_tokens, stretched)


def yarn(
    fields: Fields, prefix: str, factor: float, original: int, attention_factor: float
) -> RopeScaling:
    """YaRN with the bounds that the fields beginning with `prefix` set."""
    most = MAX_YARN_ROTATIONS
    slow = fields.number(f"{prefix}beta_slow", 1.0, above=MIN_YARN_ROTATIONS, maximum=most)
    fast = fields.number(f"{prefix}beta_fast", 32.0, above=slow, maximum=most)
    return RopeScaling(
        type="yarn",
        factor=factor,
        original_max_tokens=original,
        beta_fast=fast,
        beta_slow=slow,
        attention_factor=attention_factor,
    )
