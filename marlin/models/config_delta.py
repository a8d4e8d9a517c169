"""What files say of a gated delta rule and of the layers that have one, in the words that families
share.
"""

from dataclasses import dataclass

import numpy as np

from marlin.device.abi import MAX_KEY_DIM, MAX_TAPS
from marlin.device.ops_state import Delta
from marlin.files.fields import Fields
from marlin.models.config import MAX_DIM, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS
from marlin.models.config_experts import MixtureConfig

LINEAR, FULL = "linear_attention", "full_attention"
# The section of config.json in a folder that `quantize` made of a GGUF file, whose tensors keep
# the file's order of heads, its decays and its matrices. No other folder has it.
LAYOUT = "linear_layout"
# Every how many layers one has attention, where a file does not say.
IMPLIED_INTERVAL = 4


@dataclass(frozen=True, slots=True)
class DeltaConfig(MixtureConfig):
    """Attributes of the families; num_experts is 0 where no layer has any:

    linear_layers: of each layer, whether it has a delta rule in place of attention.
    rotary_dim: the first dimensions of a head, which RoPE turns.
    taps: rows that an output of a convolution is made of.
    delta: its heads, and how files store them.
    groups_qkvz, groups_ba: a file holds these matrices as one, key head by key head.
    """

    linear_layers: tuple[bool, ...]
    rotary_dim: int
    taps: int
    delta: Delta
    groups_qkvz: bool = False
    groups_ba: bool = False


def from_hf(fields: Fields, num_layers: int) -> dict:
    """linear_layers, taps and delta of DeltaConfig.

    Raises:
        ModelFileError: one is wrong, or more than kernels take.
    """
    names = {
        "linear_num_key_heads": (16, MAX_HEADS),
        "linear_num_value_heads": (32, MAX_HEADS),
        "linear_key_head_dim": (128, MAX_DIM),
        "linear_value_head_dim": (128, MAX_DIM),
    }
    sizes = [fields.count(name, said, maximum=most) for name, (said, most) in names.items()]
    return {
        "linear_layers": _layers_of_hf(fields, num_layers),
        "taps": fields.count("linear_conv_kernel_dim", 4, minimum=2, maximum=MAX_TAPS),
        "delta": _checked(fields, Delta(*sizes), tuple(names)[1:]),
    }


def layout_of_json(config: DeltaConfig, grouped: bool) -> dict:
    """The section of config.json that says how tensors differ from those of folders, whose matrices
    are `grouped` or not; none where they do not."""
    own = _layout(config.delta, config.groups_qkvz, config.groups_ba)
    usual = _layout(config.delta._replace(tiled=False, is_log=True), grouped, grouped)
    return {} if own == usual else {LAYOUT: own}


def with_layout(fields: Fields, found: dict, grouped: bool) -> dict:
    """delta, groups_qkvz and groups_ba of DeltaConfig, of what from_hf() has found."""
    usual = _layout(found["delta"], grouped, grouped)
    section = fields.section(LAYOUT)
    if section is not None:
        for name in section.values:
            if name not in usual:
                section.fail(name, f"one of {', '.join(usual)}")
        usual = {name: section.flag(name) for name in usual}
    tiled, is_log = usual["heads_take_turns"], usual["decay_is_log"]
    return found | {
        "delta": found["delta"]._replace(tiled=tiled, is_log=is_log),
        "groups_qkvz": usual["qkvz_is_one"],
        "groups_ba": usual["ba_is_one"],
    }


def _layout(delta, groups_qkvz, groups_ba):
    return {
        "heads_take_turns": delta.tiled,
        "decay_is_log": delta.is_log,
        "qkvz_is_one": groups_qkvz,
        "ba_is_one": groups_ba,
    }


def from_gguf(fields: Fields, num_layers: int, tiled: bool) -> dict:
    """The same of a GGUF header, whose decay is stored as it is.

    Args:
        tiled: values' heads take turns with the keys' heads.
    """
    names = "ssm.time_step_rank", "ssm.state_size", "ssm.inner_size"
    keys = fields.count("ssm.group_count", maximum=MAX_HEADS)
    values = fields.count(names[0], maximum=MAX_HEADS)
    width = fields.count(names[2], maximum=MAX_DIM)
    if width % values:
        fields.fail(names[2], f"a multiple of the {values} heads of values")
    delta = Delta(keys, values, fields.count(names[1], maximum=MAX_DIM), width // values)
    delta = delta._replace(tiled=tiled and keys < values, is_log=False)
    return {
        "linear_layers": _layers_of_gguf(fields, num_layers),
        "taps": fields.count("ssm.conv_kernel", minimum=2, maximum=MAX_TAPS),
        "delta": _checked(fields, delta, names),
    }


def _checked(fields, delta, names):
    """names: the fields of the heads of values, and of a key's and a value's dimensions."""
    if delta.value_heads % delta.key_heads:
        fields.fail(names[0], f"a multiple of the {delta.key_heads} heads of keys")
    for name, size, most in (
        (names[1], delta.key_dim, MAX_KEY_DIM),
        (names[2], delta.value_dim, MAX_HEAD_DIM),
    ):
        if size % 16 or size > most:
            fields.fail(name, f"a head of a multiple of 16 dimensions, {most} at most ({size})")
    return delta


def _layers_of_hf(fields, num_layers):
    interval = fields.count("full_attention_interval", IMPLIED_INTERVAL, maximum=MAX_LAYERS)
    kinds = fields.raw("layer_types")
    if kinds is None:
        return tuple((index + 1) % interval > 0 for index in range(num_layers))
    is_known = type(kinds) is list and {*map(str, kinds)} <= {LINEAR, FULL}
    if not is_known or len(kinds) != num_layers:
        fields.fail("layer_types", f"{num_layers} of {LINEAR} and {FULL}")
    return tuple(kind == LINEAR for kind in kinds)


def _layers_of_gguf(fields, num_layers):
    """The array may go on with layers that guess tokens ahead."""
    name = "attention.recurrent_layers"
    stated = fields.raw(name)
    if stated is None:
        interval = fields.count("full_attention_interval", IMPLIED_INTERVAL, maximum=MAX_LAYERS)
        return tuple((index + 1) % interval > 0 for index in range(num_layers))
    if isinstance(stated, bool):
        return (stated,) * num_layers
    is_flags = isinstance(stated, np.ndarray) and stated.dtype == np.bool_
    if not is_flags or len(stated) < num_layers:
        fields.fail(name, f"{num_layers} of true and false")
    return tuple(stated[:num_layers].tolist())
