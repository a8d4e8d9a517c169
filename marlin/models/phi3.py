"""Phi-3 and Phi-4: a Llama whose files hold q, k and v as one matrix, and gate and up as another.

RoPE turns a part of a head in some, and has frequencies of its own for long contexts in others.
"""

from dataclasses import dataclass

import numpy as np

from marlin.files.fields import Fields
from marlin.models import config_gguf, config_hf
from marlin.models.config import MAX_CONTEXT_TOKENS, ModelConfig
from marlin.models.layers import Rope
from marlin.models.llama import LlamaLine
from marlin.models.rope import RopeScaling, longrope_attention_factor
from marlin.models.spec import ModelSpec
from marlin.weights import ggml_types
from marlin.weights.gguf import GGUFFile
from marlin.weights.tensor_file import read_bytes

ORIGINAL_TOKENS = 4096
FACTORS = "rope_factors_{}.weight"


@dataclass(frozen=True, slots=True)
class Phi3Config(ModelConfig):
    """Attributes of the family:

    rotary_dim: the first dimensions of a head, which RoPE turns.
    """

    rotary_dim: int


class Phi3(LlamaLine[Phi3Config]):
    model_type = "phi3"
    hf_class = "Phi3ForCausalLM"
    gguf_architecture = "phi3"
    rows_interleaved = False

    def config_from_hf(self, fields: Fields) -> Phi3Config:
        section, scaling = _longrope(fields)
        shared = config_hf.shared(
            fields, self.model_type, implies_kv_heads=True, rope=section, turns_partly=True
        )
        config_hf.refuse_mixture(fields, shared["num_layers"], "full_attention")
        dim = config_hf.rotary_dim(fields, shared["head_dim"])
        if scaling is not None:
            shared["rope_scaling"] = scaling
            _check_factors(fields, scaling, dim)
        window = fields.count("sliding_window", None, maximum=1 << 31)
        return Phi3Config(**shared, windows=(window,) * shared["num_layers"], rotary_dim=dim)

    def config_from_gguf(self, file: GGUFFile) -> Phi3Config:
        fields = config_gguf.fields_of(file, self.gguf_architecture)
        scaling = _gguf_longrope(file, fields)
        shared = config_gguf.shared(
            file, fields, self.model_type, turns_partly=True, scaling=scaling
        )
        window = fields.count("attention.sliding_window", 0, minimum=0, maximum=1 << 31) or None
        dim = config_gguf.rotary_dim(fields, shared["head_dim"])
        if scaling is not None:
            _check_factors(fields, scaling, dim)
        return Phi3Config(**shared, windows=(window,) * shared["num_layers"], rotary_dim=dim)

    def hf_config(self, config: Phi3Config) -> dict:
        values = super().hf_config(config)
        del values["mlp_bias"], values["attention_bias"]
        values["sliding_window"] = config.windows[0]
        values["partial_rotary_factor"] = config.rotary_dim / config.head_dim
        scaling = config.rope_scaling
        if scaling.type == "longrope":
            values["original_max_position_embeddings"] = scaling.original_max_tokens
            values["rope_scaling"] = {
                "rope_type": "longrope",
                "short_factor": list(scaling.short_factors),
                "long_factor": list(scaling.long_factors),
                "attention_factor": scaling.attention_factor,
                "partial_rotary_factor": values["partial_rotary_factor"],
            }
        return values

    def spec(self, config: Phi3Config) -> ModelSpec:
        rope = Rope(config.rotary_dim, config.rope_theta, config.rope_scaling)
        layers = tuple(self._layer(config, rope, index) for index in range(config.num_layers))
        unused = tuple(FACTORS.format(kind) for kind in ("long", "short"))
        return ModelSpec.usual(config, layers, unused=unused)


def _longrope(fields):
    """(the section without its rule, its RopeScaling), or (None, None) where RoPE is not scaled."""
    rope = config_hf.rope_section(fields)
    name = "rope_type" if rope is not None and rope.raw("rope_type") is not None else "type"
    # What transformers takes for LongRoPE in this family; Microsoft's first files say "su".
    if rope is None:
        return None, None
    if rope.choice(name, ("default", "longrope", "su", "yarn"), "default") == "default":
        return None, None
    longest = fields.count("max_position_embeddings", maximum=MAX_CONTEXT_TOKENS)
    name, limits = "original_max_position_embeddings", {"minimum": 2, "maximum": MAX_CONTEXT_TOKENS}
    original = fields.count(name, ORIGINAL_TOKENS, **limits)
    # transformers takes the one outside the section, or what a file without it means.
    if rope.count(name, original, **limits) != original:
        rope.fail(name, f"the {original} that the config says or means outside the section")
    factor = rope.number("factor", longest / original)
    stated = rope.number("attention_factor", None)
    scaling = RopeScaling(
        type="longrope",
        original_max_tokens=original,
        attention_factor=stated or longrope_attention_factor(factor, original),
        **{f"{kind}_factors": _numbers(rope, f"{kind}_factor") for kind in ("short", "long")},
    )
    rules = ("rope_type", "type", "factor", "short_factor", "long_factor")
    kept = {key: value for key, value in rope.values.items() if key not in rules}
    return fields.with_defaults({"_": kept}).object("_"), scaling


def _numbers(rope, name):
    items = rope.elements(name)
    if not items.values:
        rope.fail(name, "a number for each pair of dimensions that turn")
    return tuple(items.number(item) for item in items.values)


def _gguf_longrope(file, fields):
    tensors = {kind: file.tensors.get(FACTORS.format(kind)) for kind in ("short", "long")}
    if None in tensors.values():
        if any(tensors.values()):
            fields.fail(
                "rope.scaling.type", f"beside both of {', '.join(map(FACTORS.format, tensors))}"
            )
        return None
    short, long = (
        ggml_types.dequantize(info.dtype, read_bytes(info), info.shape).ravel()
        for info in tensors.values()
    )
    return RopeScaling(
        type="longrope",
        original_max_tokens=fields.count(
            "rope.scaling.original_context_length", ORIGINAL_TOKENS, maximum=MAX_CONTEXT_TOKENS
        ),
        attention_factor=fields.number("rope.scaling.attn_factor", 1.0),
        short_factors=tuple(map(float, short)),
        long_factors=tuple(map(float, long)),
    )


def _check_factors(fields, scaling, rotary_dim):
    for kind, factors in (("short", scaling.short_factors), ("long", scaling.long_factors)):
        if len(factors) != rotary_dim // 2 or not all(0 < factor < np.inf for factor in factors):
            fields.fail(f"{kind}_factor", f"{rotary_dim // 2} numbers above 0")
