"""Which tensors a model of the Llama family has, and their shapes, in Hugging Face names."""

import re

from marlin.errors import ModelFileError
from marlin.weights.names import ROPE_FACTORS, gguf_name

# RoPE's frequencies or its tables, which old versions of transformers and of llama.cpp's converter,
# and ColossalAI, stored beside the weights.
_COMPUTED = re.compile(
    r"model\.(layers\.[0-9]+\.self_attn\.)?rotary_emb\.(inv_freq|(cos|sin)_cached)"
    r"|blk\.[0-9]+\.attn_rot_embd",
    re.ASCII,
)


def tensor_shapes(config):
    """{Hugging Face name: shape, outermost first} of every tensor that the config implies."""
    hidden, vocab = config.hidden_dim, config.vocab_size
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (vocab, hidden)
    for layer in range(config.num_layers):
        for name, shape in _layer_shapes(config).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    return shapes


def is_unused(config, name):
    """Whether published checkpoints of the family hold this tensor although nothing reads it: the
    config says what is in it, or it is the embedding again."""
    return bool(_COMPUTED.fullmatch(name)) or (config.tie_embeddings and name == "lm_head.weight")


def check_gguf_leftovers(config, tensors):
    """check_leftovers() of a GGUF file, by the names in it; any may hold factors of RoPE."""
    known = {gguf_name(name) for name in tensor_shapes(config)} | {ROPE_FACTORS}
    check_leftovers(config, tensors, known | {name for name in tensors if is_unused(config, name)})


def check_leftovers(config, tensors, known):
    """Refuse tensors that the model would leave out: its answers would be wrong without a word.

    Args:
        tensors: {name: TensorInfo}, all that the checkpoint holds.
        known: names that may be there.

    Raises:
        ModelFileError: one may not, and is named.
    """
    for name, info in tensors.items():
        if name not in known:
            message = (
                f"is not a tensor of this {config.architecture} model, as its config and its first "
                "block describe it; answers that leave it out could be wrong"
            )
            raise ModelFileError(info.path, message, tensor=info.name)


def check_tensors(path, config, tensors, *, optional=()):
    """Check a checkpoint's tensors against its config.

    Args:
        path: of the checkpoint, named when a tensor is missing.
        config: ModelConfig.
        tensors: {Hugging Face name: TensorInfo}.
        optional: names that may be there besides.

    Raises:
        ModelFileError: a tensor is missing, too many, or of another shape.
    """
    expected = tensor_shapes(config)
    for name, shape in expected.items():
        if name not in tensors:
            message = f"is missing; the config implies it, with shape {list(shape)}"
            raise ModelFileError(path, message, tensor=name)
        info = tensors[name]
        if info.shape != shape:
            message = f"shape {list(info.shape)}; the config implies {list(shape)}"
            raise ModelFileError(info.path, message, tensor=info.name)
    check_leftovers(config, tensors, expected.keys() | set(optional))


def _layer_shapes(config):
    hidden, inner, head = config.hidden_dim, config.intermediate_dim, config.head_dim
    queries, keys = config.num_heads * head, config.num_kv_heads * head
    linear = {
        "self_attn.q_proj": (queries, hidden, config.qkv_bias),
        "self_attn.k_proj": (keys, hidden, config.qkv_bias),
        "self_attn.v_proj": (keys, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, queries, config.o_bias),
        "mlp.gate_proj": (inner, hidden, config.mlp_bias),
        "mlp.up_proj": (inner, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, inner, config.mlp_bias),
    }
    shapes = {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    if config.qk_norm:
        shapes |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
    for name, (outputs, inputs, has_bias) in linear.items():
        shapes[f"{name}.weight"] = (outputs, inputs)
        if has_bias:
            shapes[f"{name}.bias"] = (outputs,)
    return shapes
