"""What a GGUF header says of every family in the same words.

What one family says in its own way is in its file.
"""

import numpy as np

from marlin.errors import ModelFileError
from marlin.files.fields import Fields, file_fields
from marlin.models.config import (
    GGUF,
    MAX_CONTEXT_TOKENS,
    MAX_DIM,
    MAX_LAYERS,
    MAX_VOCAB,
    context_tokens,
    read_sizes,
    yarn,
)
from marlin.models.rope import RopeScaling, yarn_attention_factor
from marlin.weights.gguf import GGUFFile


def fields_of(file: GGUFFile, gguf_architecture: str) -> Fields:
    """The architecture's own keys; an array of one repeated number is that number."""
    return file_fields(file.path, _without_uniform_arrays(file.metadata), f"{gguf_architecture}.")


def shared(
    file: GGUFFile,
    fields: Fields,
    architecture: str,
    *,
    turns_partly: bool = False,
    scaling: RopeScaling | None = None,
    has_log_multiplier: bool = False,
    experts: bool = False,
) -> dict:
    """The fields of ModelConfig that GGUF files spell alike in every family.

    Args:
        fields: fields_of(file).
        architecture: ModelConfig's.
        turns_partly: the family reads rope.dimension_count.
        scaling: what the family has read of RoPE's; None is what every file says in the same words.
        has_log_multiplier: YaRN's yarn_log_multiplier is DeepSeek's mscale_all_dim, beside an
            mscale of 1.
        experts: whether the family reads what files say of a mixture.

    Raises:
        ModelFileError: one is missing or wrong, or the model needs what is not supported.
    """
    general, tensors = file_fields(file.path, file.metadata), file.tensors
    if not experts and fields.count("expert_count", 0, minimum=0, maximum=MAX_DIM):
        fields.fail("expert_count", f"0 (no {architecture} has a mixture of experts here)")
    sizes = read_sizes(fields, GGUF)
    guessing = fields.count("nextn_predict_layers", 0, minimum=0, maximum=sizes["num_layers"] - 1)
    sizes["num_layers"] -= guessing  # which block_count counts, too
    names = ("attention.value_length", "rope.dimension_count")
    for name in names[:1] if turns_partly else names:
        if fields.count(name, sizes["head_dim"], maximum=MAX_DIM) != sizes["head_dim"]:
            fields.fail(name, f"the head's {sizes['head_dim']} dimensions")
    num_tokens = vocab_size(general, tensors)
    if scaling is None:
        scaling = _rope_scaling(fields, sizes["max_context_tokens"], has_log_multiplier)
    return {
        "architecture": architecture,
        **sizes,
        "vocab_size": num_tokens,
        "max_context_tokens": context_tokens(sizes["max_context_tokens"], scaling),
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon", maximum=1.0),
        "rope_theta": fields.number("rope.freq_base", 10000.0, above=1.0),
        "rope_scaling": scaling,
        "tie_embeddings": "output.weight" not in tensors,
        "qkv_bias": not tensors.keys().isdisjoint(("blk.0.attn_q.bias", "blk.0.attn_qkv.bias")),
        "o_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "qk_norm": "blk.0.attn_q_norm.weight" in tensors,
        "eos_token_ids": _eos_token_ids(general, num_tokens),
        "num_prediction_layers": guessing,
    }


def windows(fields: Fields, num_layers: int, period: int) -> tuple[int | None, ...]:
    """The window of each layer. The pattern is a period, or says of each layer if it has one.

    Args:
        period: every how many layers one has no window, where the file does not say.
    """
    window = fields.count("attention.sliding_window", 0, minimum=0, maximum=1 << 31) or None
    name = "attention.sliding_window_pattern"
    pattern = fields.raw(name)
    if isinstance(pattern, bool):  # the same of every layer
        pattern = np.array([pattern] * num_layers)
    if isinstance(pattern, np.ndarray):
        if pattern.dtype != np.bool_ or len(pattern) != num_layers:
            fields.fail(name, f"{num_layers} of true and false")
        return tuple(window if slides else None for slides in pattern)
    period = fields.count(name, period, maximum=MAX_LAYERS)
    return tuple(None if (i + 1) % period == 0 else window for i in range(num_layers))


def rotary_dim(fields: Fields, head_dim: int) -> int:
    """The first dimensions of a head that RoPE turns."""
    dim = fields.count("rope.dimension_count", head_dim, maximum=head_dim)
    if dim % 2:
        fields.fail("rope.dimension_count", "an even number")
    return dim


def _without_uniform_arrays(metadata):
    """Per-layer arrays of one repeated number become that number; others stay, to be refused."""
    values = dict(metadata)
    for key, value in metadata.items():
        is_array = isinstance(value, np.ndarray) and not key.startswith("tokenizer.")
        if is_array and value.size and (value == value[0]).all():
            values[key] = value[0].item()
    return values


def vocab_size(general: Fields, tensors: dict) -> int:
    """The embedding's rows, no fewer than the tokenizer's tokens; raises as shared()."""
    name, tokens = "token_embd.weight", general.raw("tokenizer.ggml.tokens")
    if name not in tensors:
        raise ModelFileError(general.path, "is missing", tensor=name)
    shape = tensors[name].shape
    if len(shape) != 2 or shape[0] > MAX_VOCAB:
        message = f"shape {list(shape)}; expected [vocabulary, hidden]"
        raise ModelFileError(general.path, message, tensor=name)
    if isinstance(tokens, list) and len(tokens) > shape[0]:
        message = f"{shape[0]} rows for the {len(tokens)} tokens of the tokenizer"
        raise ModelFileError(general.path, message, tensor=name)
    return shape[0]


def _rope_scaling(fields, max_tokens, has_log_multiplier):
    # As llama.cpp reads it: no type is "linear", and no factor, or 0, is 1.
    kind = fields.choice("rope.scaling.type", ("none", "linear", "yarn"), "linear")
    scale = fields.number("rope.scaling.attn_factor", 1.0)
    if kind == "yarn":
        return _yarn(fields, max_tokens, scale, has_log_multiplier)
    if scale != 1.0:
        fields.fail("rope.scaling.attn_factor", "1, or beside the scaling type yarn")
    older = fields.number("rope.scale_linear", 0.0, minimum=0.0)
    factor = fields.number("rope.scaling.factor", older, minimum=0.0) or 1.0
    if kind == "none" or factor == 1.0:
        return RopeScaling()
    return RopeScaling("linear", factor)


def _yarn(fields, max_tokens, scale, has_log_multiplier):
    only = {"ext_factor": 1.0, "attn_factor": 1.0}
    log_multiplier = None
    if has_log_multiplier:
        log_multiplier = fields.number("rope.scaling.yarn_log_multiplier", None, minimum=0.0)
    else:
        only["log_multiplier"] = 0.0
    for name, neutral in only.items():
        if fields.number(f"rope.scaling.yarn_{name}", neutral, minimum=0.0) != neutral:
            fields.fail(f"rope.scaling.yarn_{name}", f"{neutral:g}")
    factor = fields.number("rope.scaling.factor")
    original = fields.count(
        "rope.scaling.original_context_length", max_tokens, maximum=MAX_CONTEXT_TOKENS
    )
    # GGUF states a multiple of YaRN's own number, Hugging Face the number itself.
    scale *= yarn_attention_factor(factor, log_multiplier and 1.0, log_multiplier)
    return yarn(fields, "rope.scaling.yarn_", factor, original, scale)


def _eos_token_ids(general, vocab_size):
    found = [
        general.count(f"tokenizer.ggml.{name}_token_id", None, minimum=0, maximum=vocab_size - 1)
        for name in ("eos", "eot", "eom")
    ]
    return tuple(dict.fromkeys(token_id for token_id in found if token_id is not None))
