"""What files say of Gemma 4's layers, in config.json and in a GGUF header."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from marlin.device.abi import MAX_EXPERTS, MAX_SLOTS
from marlin.errors import ModelFileError
from marlin.files.fields import Fields, file_fields
from marlin.models import config_experts, config_gguf, config_hf
from marlin.models.config import MAX_DIM, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_VOCAB
from marlin.models.config_experts import WITHOUT_EXPERTS, MixtureConfig
from marlin.models.rope import RopeScaling
from marlin.weights import ggml_types
from marlin.weights.gguf import GGUFFile
from marlin.weights.tensor_file import read_bytes

PERIOD = 6
FULL, SLIDING = "full_attention", "sliding_attention"
# What a config.json means that leaves them out.
IMPLIED: dict[str, Any] = {
    **{"vocab_size": 262144, "hidden_size": 2304, "intermediate_size": 9216},
    **{"num_hidden_layers": 30, "num_attention_heads": 8, "num_key_value_heads": 4},
    **{"head_dim": 256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6},
    **{"sliding_window": 512, "tie_word_embeddings": True},
}
IMPLIED_ROPES = {
    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
    FULL: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
}
IMPLIED_FULL_HEAD_DIM = 512


@dataclass(frozen=True, slots=True)
class Gemma4Config(MixtureConfig):
    """Attributes of the family; head_dim and num_kv_heads are of layers with a window:

    full_head_dim, full_kv_heads: of those without.
    full_rope_theta, full_rope_scaling: of those without; rope_theta is of the others.
    keys_are_values: layers without a window make values of what keys are made of.
    num_readers: the last layers, which read what the last one of their kind before has cached.
    wide_readers: their feed-forward is twice as wide.
    row_dim: floats of a token's row for each layer; 0: there are none.
    logit_cap: 0 is none.
    """

    full_head_dim: int
    full_kv_heads: int
    full_rope_theta: float
    full_rope_scaling: RopeScaling
    keys_are_values: bool
    num_readers: int
    wide_readers: bool
    row_dim: int
    logit_cap: float

    def owner(self, index: int) -> int | None:
        """The layer whose keys and values a layer reads; None: its own."""
        first = self.num_layers - self.num_readers
        if index < first:
            return None
        slides = bool(self.windows[index])
        return max(i for i in range(first) if bool(self.windows[i]) == slides)


def from_hf(fields: Fields, shared: dict, full: Fields) -> dict:
    """The fields of Gemma4Config beside shared ones that config.json has.

    Args:
        shared: config_hf.shared() of the file.
        full: the section of RoPE of layers without a window, by ropes().
    """
    windows = _windows(fields, shared["num_layers"])
    head_dim, kv_heads = _full_heads(fields, windows, shared)
    return {
        "windows": windows,
        "full_head_dim": head_dim,
        "full_kv_heads": kv_heads,
        "full_rope_theta": full.number("rope_theta", above=1.0),
        "full_rope_scaling": _full_scaling(full, head_dim),
        "keys_are_values": fields.flag("attention_k_eq_v", False),
        "num_readers": _num_readers(fields, "num_kv_shared_layers", windows),
        "row_dim": _row_dim(fields, shared["vocab_size"]),
        "logit_cap": fields.number("final_logit_softcapping", None) or 0.0,
    }


def ropes(fields: Fields) -> tuple[Fields, Fields]:
    """The sections of RoPE of layers without a window, and of those with one."""
    fields = fields.with_defaults({"rope_parameters": IMPLIED_ROPES})
    ropes = config_hf.ropes_by_kind(fields)
    if ropes is None:
        return fields.fail("rope_parameters", "absent, or a section for each kind of layer")
    for rope in ropes:
        rope.number("rope_theta", above=1.0)  # which neither has from elsewhere
    return ropes


def _full_scaling(rope, head_dim):
    if rope.choice("rope_type", ("proportional", "default"), "default") == "default":
        config_hf.refuse_lost_scaling(rope)
        return RopeScaling()
    part = rope.number("partial_rotary_factor", 1.0, maximum=1.0)
    factor = rope.number("factor", 1.0)
    return RopeScaling("proportional", factor, num_turning=int(part * head_dim // 2))


def _full_heads(fields, windows, shared):
    """(head_dim, KV heads) of the layers without a window."""
    own = shared["head_dim"], shared["num_kv_heads"]
    overrides = fields.section("per_layer_config")
    if overrides is None:
        found = {_global_heads(fields, own[1])}
    else:
        places = {str(index): window for index, window in enumerate(windows)}
        for name in overrides.values:
            if name not in places or not _heads_of(overrides, name, own):
                overrides.fail(name, "head_dim and num_key_value_heads of a layer")
            if places[name] and _heads_of(overrides, name, own) != own:
                overrides.fail(name, "absent (a layer with a window is as the config says)")
        full = [name for name, window in places.items() if not window]
        found = {_heads_of(overrides, name, own) for name in full}
    if len(found) > 1:
        fields.fail("per_layer_config", "the same of all layers without a window")
    head_dim, kv_heads = found.pop()
    if shared["num_heads"] % kv_heads or head_dim % 2:
        name = "num_global_key_value_heads" if overrides is None else "per_layer_config"
        fields.fail(
            name, f"a divisor of {shared['num_heads']} heads of an even number of dimensions"
        )
    return head_dim, kv_heads


def _global_heads(fields, kv_heads):
    head_dim = fields.count("global_head_dim", IMPLIED_FULL_HEAD_DIM, maximum=MAX_HEAD_DIM)
    stated = fields.count("num_global_key_value_heads", kv_heads, maximum=MAX_HEADS)
    return head_dim, stated if fields.flag("attention_k_eq_v", False) else kv_heads


def _heads_of(overrides, name, own):
    """What a layer has in place of what the config says; None where it says anything else."""
    said = overrides.section(name)
    if said is None:
        return own
    names = {"head_dim": MAX_HEAD_DIM, "num_key_value_heads": MAX_HEADS}
    if set(said.values) - set(names):
        return None
    found = zip(names.items(), own, strict=True)
    return tuple(said.count(key, implied, maximum=most) for (key, most), implied in found)


def _windows(fields, count):
    kinds = [SLIDING if (index + 1) % PERIOD else FULL for index in range(count - 1)] + [FULL]
    window = fields.count("sliding_window", maximum=1 << 31)
    windows = config_hf.windows(fields, count, window, kinds)
    if windows[-1]:
        fields.fail("layer_types", f"{FULL} of the last layer")
    return windows


def _num_readers(fields, name, windows):
    count = fields.count(name, 0, minimum=0, maximum=len(windows) - 1)
    first = len(windows) - count
    if {bool(window) for window in windows[first:]} - {bool(window) for window in windows[:first]}:
        expected = "behind a layer of each kind that reads the keys and values of another"
        fields.fail(name, expected)
    return count


def _row_dim(fields, vocab_size):
    size = fields.count("hidden_size_per_layer_input", 0, minimum=0, maximum=MAX_DIM)
    rows = fields.count("vocab_size_per_layer_input", 262144, maximum=MAX_VOCAB)
    if size and rows != vocab_size:
        fields.fail("vocab_size_per_layer_input", f"the vocabulary's {vocab_size}")
    return size


def without_experts(fields: Fields) -> dict:
    """Of MixtureConfig; raises where a config says anything of experts."""
    for name in ("enable_moe_block", "num_experts", "top_k_experts", "moe_intermediate_size"):
        if fields.raw(name):
            fields.fail(name, "absent (this model has no experts)")
    return WITHOUT_EXPERTS


def experts_of_hf(fields: Fields) -> dict:
    """The fields of MixtureConfig."""
    if not fields.flag("enable_moe_block", False):
        return without_experts(fields)
    if fields.raw("num_experts") is None:
        fields.fail("enable_moe_block", "false, or beside num_experts")
    count = fields.count("num_experts", maximum=MAX_EXPERTS)
    return {
        "num_experts": count,
        "num_slots": fields.count("top_k_experts", maximum=min(count, MAX_SLOTS)),
        "expert_dim": fields.count("moe_intermediate_size", maximum=MAX_DIM),
    }


def experts_of_json(config: Gemma4Config) -> dict:
    """What experts_of_hf() reads back."""
    if not config.num_experts:
        return {}
    return {
        "enable_moe_block": True,
        "num_experts": config.num_experts,
        "top_k_experts": config.num_slots,
        "moe_intermediate_size": config.expert_dim,
    }


def from_gguf(file: GGUFFile, architecture: str, gguf_architecture: str) -> Gemma4Config:
    """The whole of it, by a GGUF header; raises as Family.config_from_gguf()."""
    fields = config_gguf.fields_of(file, gguf_architecture)
    windows = _gguf_windows(fields)
    sizes = _gguf_sizes(fields, windows)
    for name, neutral in (("attention.scale", 1.0), ("rope.scaling.factor", 1.0)):
        if fields.number(name, neutral, minimum=0.0) not in (0.0, neutral):
            fields.fail(name, f"{neutral:g}, as llama.cpp has it built in")
    own = {fields.prefix + name: value for name, value in sizes.items()}
    local = file_fields(file.path, fields.values | own, fields.prefix)
    shared = config_gguf.shared(file, local, architecture, experts=True)
    has_experts = fields.count("expert_count", 0, minimum=0, maximum=MAX_EXPERTS) > 0
    full = [index for index, window in enumerate(windows) if not window]
    first = len(windows) - _num_readers(fields, "attention.shared_kv_layers", windows)
    head_dim = fields.count("attention.key_length", maximum=MAX_HEAD_DIM)
    names = {f"blk.{index}.attn_{word}.weight" for index in full for word in ("v", "qkv")
             if index < first}  # fmt: skip
    return Gemma4Config(
        **shared,
        **(config_experts.from_gguf(fields) if has_experts else WITHOUT_EXPERTS),
        windows=windows,
        full_head_dim=head_dim,
        full_kv_heads=_by_layer(fields, "attention.head_count_kv", windows)[full[-1]],
        full_rope_theta=fields.number("rope.freq_base", above=1.0),
        full_rope_scaling=_stored_scaling(file, fields, head_dim),
        keys_are_values=names.isdisjoint(file.tensors),
        num_readers=len(windows) - first,
        wide_readers=_by_layer(fields, "feed_forward_length", windows)[-1]
        > sizes["feed_forward_length"],
        row_dim=fields.count("embedding_length_per_layer_input", 0, minimum=0, maximum=MAX_DIM),
        logit_cap=fields.number("final_logit_softcapping", 0.0, minimum=0.0),
    )


def _gguf_windows(fields):
    if fields.raw("attention.sliding_window_pattern") is None:
        fields.fail("attention.sliding_window_pattern", "which layers have a window")
    windows = config_gguf.windows(fields, fields.count("block_count", maximum=MAX_LAYERS), PERIOD)
    if windows[-1]:
        fields.fail("attention.sliding_window_pattern", "false of the last layer")
    return windows


def _by_layer(fields, name, windows):
    """One number for all layers, or one for each."""
    stated = fields.raw(name)
    if isinstance(stated, np.ndarray) and stated.dtype.kind in "iu" and len(stated) == len(windows):
        return stated.tolist()
    return [fields.count(name, maximum=MAX_DIM)] * len(windows)


def _gguf_sizes(fields, windows):
    """What a header would say of a model whose layers are all like those with a window."""
    count = len(windows)
    first = count - _num_readers(fields, "attention.shared_kv_layers", windows)
    widths = _by_layer(fields, "feed_forward_length", windows)
    width = widths[0]
    if {*widths[:first]} != {width} or not {*widths[first:]} <= {width, 2 * width}:
        fields.fail("feed_forward_length", "alike, or twice as long where caches are read")
    if len({*widths[first:]}) > 1:
        fields.fail("feed_forward_length", "alike in all layers that read caches of others")
    heads = _by_layer(fields, "attention.head_count_kv", windows)
    of_kind = [
        {n for n, w in zip(heads, windows, strict=True) if bool(w) == kind} for kind in (0, 1)
    ]
    if max(map(len, of_kind)) > 1 or not of_kind[1]:
        fields.fail(
            "attention.head_count_kv", "the same of all layers of a kind, of which both are"
        )
    head_dim = fields.count("attention.key_length_swa", maximum=MAX_HEAD_DIM)
    for name in ("attention.value_length", "rope.dimension_count"):
        full = fields.count("attention.key_length", maximum=MAX_HEAD_DIM)
        for end, expected in (("_swa", head_dim), ("", full)):
            if fields.count(name + end, expected, maximum=MAX_HEAD_DIM) != expected:
                fields.fail(name + end, f"the head's {expected} dimensions")
    return {
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.freq_base": fields.number("rope.freq_base_swa", 1e4, above=1.0),
        "attention.head_count_kv": of_kind[1].pop(),
        "feed_forward_length": width,
    }


# A frequency that is divided by so much turns nothing in any context.
STANDS_STILL = 1e29


def _stored_scaling(file, fields, head_dim):
    """The file holds 1 for the pairs that turn, and then a number past counting."""
    info = file.tensors.get("rope_freqs.weight")
    if info is None:
        return RopeScaling()
    if info.dtype != "F32" or info.shape != (head_dim // 2,):
        message = f"is {info.dtype} {list(info.shape)}, expected F32 [{head_dim // 2}]"
        raise ModelFileError(info.path, message, tensor=info.name)
    values = ggml_types.dequantize(info.dtype, read_bytes(info), info.shape)
    turning = int((values == 1.0).sum())
    if not (values[:turning] == 1.0).all() or not (values[turning:] > STANDS_STILL).all():
        message = "holds other factors than 1, and then more than 1e29"
        raise ModelFileError(info.path, message, tensor=info.name)
    return RopeScaling("proportional", 1.0, num_turning=turning)
