"""Multimodal models whose language model is a family's own: where config.json has it.

Owns the list of wrappers, and what the text part of one means that leaves a number out: what the
class of transformers does that reads it. Towers are plan.py's. Refuses to know families beyond
their names.
"""

from collections.abc import Mapping

from marlin.files.fields import Fields, file_fields

# Sizes that transformers' classes of a text part imply.
_LLAMA = {
    **{"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"intermediate_size": 11008, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    **{"vocab_size": 32000},
}
_MISTRAL = _LLAMA | {
    **{"intermediate_size": 14336, "max_position_embeddings": 131072, "num_key_value_heads": 8}
}
_QWEN2_VL = {"rope_theta": 1e6, "rms_norm_eps": 1e-5}
_QWEN3_VL = {"rope_theta": 5e5, "rms_norm_eps": 1e-6, "head_dim": 128}

# {model_type: {model_type of the text part: (family's model_type, what it implies)}}; the first one
# is what a text part without a model_type is.
_WRAPPERS: dict[str, dict[str, tuple[str, Mapping]]] = {
    "gemma3": {"gemma3_text": ("gemma3_text", {})},
    "gemma4": {"gemma4_text": ("gemma4_text", {})},
    "gemma4_unified": {"gemma4_unified_text": ("gemma4_unified_text", {})},
    "mistral3": {"mistral": ("mistral", {}), "ministral3": ("ministral3", {})},
    "muse_glimmer": {"muse_glimmer_text": ("muse_glimmer_text", {})},
    "llava": {
        "llama": ("llama", _LLAMA),
        "mistral": ("mistral", _MISTRAL),
        "qwen2": ("qwen2", {}),
    },
    "llava_next": {"llama": ("llama", _LLAMA), "mistral": ("mistral", _MISTRAL)},
    "idefics3": {"llama": ("llama", {})},
    "smolvlm": {"llama": ("llama", {})},
    "internvl": {"qwen2": ("qwen2", {}), "qwen3": ("qwen3", {}), "llama": ("llama", {})},
    "qwen2_vl": {"qwen2_vl_text": ("qwen2", _QWEN2_VL)},
    "qwen2_5_vl": {"qwen2_5_vl_text": ("qwen2", _QWEN2_VL)},
    "qwen3_5": {"qwen3_5_text": ("qwen3_5_text", {})},
    "qwen3_5_moe": {"qwen3_5_moe_text": ("qwen3_5_moe_text", {})},
    "qwen3_vl": {"qwen3_vl_text": ("qwen3", _QWEN3_VL)},
}
MODEL_TYPES = tuple(_WRAPPERS)
# Of these, older folders say the text part's fields beside the others and have no text_config.
_FLAT = ("qwen2_vl", "qwen2_5_vl")


def text_part(fields: Fields, model_type: str) -> tuple[str, Fields]:
    """(the family's model_type, the fields of the language model) of a multimodal config.json.

    Raises:
        ModelFileError: there is none, it is of another kind, or the two levels contradict each
            other.
    """
    kinds = _WRAPPERS[model_type]
    implied = next(iter(kinds))
    text = fields.section("text_config")
    if text is None and model_type in _FLAT:
        own = {name: value for name, value in fields.values.items() if name != "architectures"}
        family, defaults = kinds[implied]
        return family, file_fields(fields.path, own).with_defaults(dict(defaults))
    if text is None:
        fields.fail("text_config", "the language model's fields")
    family, defaults = kinds[text.choice("model_type", tuple(kinds), implied)]
    outer = {name: fields.raw(name) for name in ("tie_word_embeddings", "eos_token_id")}
    tied = outer["tie_word_embeddings"]
    if tied is not None and text.raw("tie_word_embeddings") not in (None, tied):
        text.fail("tie_word_embeddings", f"{tied}, as beside text_config")
    return family, text.with_defaults({**defaults, **outer})
