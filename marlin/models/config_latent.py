"""What files say of latent attention (MLA), and of the mixtures of DeepSeek's line, whose families
share it."""

import math
from dataclasses import KW_ONLY, dataclass

from marlin.device.abi import MAX_EXPERTS, MAX_SLOTS
from marlin.files.fields import Fields, file_fields
from marlin.models import config_experts, config_gguf
from marlin.models.config import MAX_DIM, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS
from marlin.models.config_experts import MixtureConfig
from marlin.models.config_hf import rope_section
from marlin.weights.gguf import GGUFFile

# Numbers of a row of the cache that kernels read together.
VALUE_STEP = 16
# GGUF's number of it.
SIGMOID = 2
# What GGUF files say of YaRN where mscale and mscale_all_dim are 1: a tenth of them.
LOG_MULTIPLIER = 0.1


@dataclass(frozen=True, slots=True)
class LatentConfig(MixtureConfig):
    """Attributes of latent attention:

    q_rank: floats of which a token's queries are made; 0: of the hidden state.
    kv_rank: floats of a latent.
    nope_dim, rope_dim: of a head's query, what does not turn, and then what does; head_dim is both.
    value_dim: of a head's output.
    interleaved: pairs that turn are neighbours, and not halves.
    mscale_all_dim: of YaRN, by which scores grow, too; 0: they do not.
    """

    _: KW_ONLY
    q_rank: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    interleaved: bool = True
    mscale_all_dim: float = 0.0

    @property
    def attention_scale(self) -> float:
        """What scores are multiplied by."""
        scaling, grown = self.rope_scaling, 1.0
        if scaling.type == "yarn" and scaling.factor > 1:
            grown = 0.1 * self.mscale_all_dim * math.log(scaling.factor) + 1.0
        return grown * grown * self.head_dim**-0.5


def from_hf(fields: Fields) -> dict:
    """The fields of LatentConfig that MixtureConfig has not, but for kv heads.

    Raises:
        ModelFileError: one is missing, wrong, or of a size that no kernel reads.
    """
    if "q_lora_rank" not in fields.values:
        fields.fail("q_lora_rank", "there: null where queries are made of the hidden state")
    rope = rope_section(fields)
    found = {
        "q_rank": fields.count("q_lora_rank", 0, maximum=MAX_DIM),
        "kv_rank": _rank(fields, "kv_lora_rank"),
        "nope_dim": fields.count("qk_nope_head_dim", maximum=MAX_HEAD_DIM),
        "rope_dim": _even(fields, "qk_rope_head_dim"),
        "value_dim": fields.count("v_head_dim", maximum=MAX_HEAD_DIM),
        "interleaved": fields.flag("rope_interleave", True),
        "mscale_all_dim": (rope and rope.number("mscale_all_dim", None, minimum=0.0)) or 0.0,
    }
    _check_row(fields, "kv_lora_rank", found)
    return found


def _rank(fields, name):
    rank = fields.count(name, maximum=MAX_HEAD_DIM)
    if rank % VALUE_STEP:
        fields.fail(name, f"a multiple of {VALUE_STEP}")
    return rank


def _even(fields, name):
    dim = fields.count(name, maximum=MAX_HEAD_DIM)
    if dim % 2:
        fields.fail(name, "an even number")
    return dim


def _check_row(fields, name, found):
    if found["kv_rank"] + found["rope_dim"] > MAX_HEAD_DIM:
        fields.fail(name, f"{MAX_HEAD_DIM} at most with the {found['rope_dim']} that turn")


def experts_of_hf(fields: Fields, num_layers: int) -> dict:
    """The fields of MixtureConfig; those that a file may leave out are filled in."""
    if fields.count("moe_layer_freq", 1, maximum=MAX_LAYERS) != 1:
        fields.fail("moe_layer_freq", "1 (all layers but the first have experts)")
    total = fields.count("n_routed_experts", maximum=MAX_EXPERTS)
    width = fields.count("moe_intermediate_size", maximum=MAX_DIM)
    num_shared = fields.count("n_shared_experts", minimum=0, maximum=MAX_DIM)
    found = {
        "num_experts": total,
        "num_slots": fields.count("num_experts_per_tok", maximum=min(total, MAX_SLOTS)),
        "expert_dim": width,
        "normalizes": fields.flag("norm_topk_prob", True),
        "dense_layers": _dense_layers(fields, num_layers),
        "routed_scale": fields.number("routed_scaling_factor"),
        "num_groups": fields.count("n_group", maximum=total),
        "kept_groups": fields.count("topk_group", maximum=total),
        "shared_dim": num_shared * width,
    }
    check_groups(fields, ("n_group", "topk_group"), found)
    return found


def check_groups(fields: Fields, names: tuple[str, str], found: dict) -> None:
    """Refuse groups of experts that cannot be kept apart, or too few of them.

    Args:
        names: what the file calls num_groups and kept_groups.
        found: of MixtureConfig.
    """
    total, groups, kept = (found[name] for name in ("num_experts", "num_groups", "kept_groups"))
    if total % groups:
        fields.fail(names[0], f"a divisor of the {total} experts")
    if kept > groups:
        fields.fail(names[1], f"{groups} at most, the groups that there are")
    if kept * (total // groups) < found["num_slots"]:
        fields.fail(names[1], f"groups of {found['num_slots']} experts at least, of a token")


def from_gguf(file: GGUFFile, architecture: str, gguf_architecture: str) -> LatentConfig:
    """The whole of it, by a GGUF header, whose words for a head are of a row of the cache.

    Raises:
        ModelFileError: as Family.config_from_gguf()'s.
    """
    fields = config_gguf.fields_of(file, gguf_architecture)
    head_dim = fields.count("attention.key_length_mla", maximum=MAX_HEAD_DIM)
    rope_dim = _even(fields, "rope.dimension_count")
    if rope_dim >= head_dim:
        fields.fail("rope.dimension_count", f"less than the head's {head_dim} dimensions")
    latent = {
        "q_rank": fields.count("attention.q_lora_rank", 0, minimum=0, maximum=MAX_DIM),
        "kv_rank": _rank(fields, "attention.kv_lora_rank"),
        "nope_dim": head_dim - rope_dim,
        "rope_dim": rope_dim,
        "value_dim": fields.count("attention.value_length_mla", maximum=MAX_HEAD_DIM),
    }
    _check_row(fields, "attention.kv_lora_rank", latent)
    row = {"attention.head_count_kv": 1, "attention.value_length": latent["kv_rank"]}
    row["attention.key_length"] = latent["kv_rank"] + rope_dim
    for name, size in row.items():
        if fields.count(name, maximum=MAX_DIM) != size:
            fields.fail(name, f"{size} (of a row for all heads)")
    own = dict.fromkeys(("attention.key_length", "attention.value_length"), head_dim)
    own["attention.head_count_kv"] = fields.count("attention.head_count", maximum=MAX_HEADS)
    if log := fields.number("rope.scaling.yarn_log_multiplier", 0.0, minimum=0.0):
        if not math.isclose(log, LOG_MULTIPLIER, rel_tol=1e-6):
            fields.fail("rope.scaling.yarn_log_multiplier", f"{LOG_MULTIPLIER:g}, or absent")
        latent["mscale_all_dim"] = own["rope.scaling.yarn_log_multiplier"] = 1.0
    said = {fields.prefix + name: value for name, value in own.items()}
    local = file_fields(file.path, fields.values | said, fields.prefix)
    shared = config_gguf.shared(
        file, local, architecture, turns_partly=True, has_log_multiplier=True, experts=True
    )
    shared["qkv_bias"] = "blk.0.attn_kv_a_mqa.bias" in file.tensors
    windows = (None,) * shared["num_layers"]
    experts = _experts_of_gguf(file, fields, shared["num_layers"])
    return LatentConfig(**shared, **latent, **experts, windows=windows)


def _experts_of_gguf(file, fields, num_layers):
    """Which layers have experts their tensors say, and a file that does not say how it ranks them
    has corrections where it is by a sigmoid."""
    routers = [f"blk.{index}.ffn_gate_inp.weight" in file.tensors for index in range(num_layers)]
    dense = tuple(index for index, has_router in enumerate(routers) if not has_router)
    corrects = any(name.endswith("exp_probs_b.bias") for name in file.tensors)
    if fields.count("expert_gating_func", SIGMOID if corrects else 1) != SIGMOID:
        fields.fail("expert_gating_func", f"{SIGMOID}, a sigmoid")
    found = config_experts.from_gguf(fields)
    total = found["num_experts"]
    names = "expert_group_count", "expert_group_used_count"
    num_shared = fields.count("expert_shared_count", 0, minimum=0, maximum=MAX_DIM)
    found |= {
        "normalizes": fields.flag("expert_weights_norm", False),
        "dense_layers": dense,
        "routed_scale": fields.number("expert_weights_scale", 0.0, minimum=0.0) or 1.0,
        "num_groups": fields.count(names[0], 1, maximum=total),
        "kept_groups": fields.count(names[1], 1, maximum=total),
        "shared_dim": num_shared * found["expert_dim"],
    }
    check_groups(fields, names, found)
    return found


def _dense_layers(fields, num_layers):
    kinds = fields.raw("mlp_layer_types")
    if kinds is None:
        count = fields.count("first_k_dense_replace", minimum=0, maximum=MAX_LAYERS)
        return tuple(range(min(count, num_layers)))
    known = "dense", "sparse"
    if type(kinds) is not list or len(kinds) != num_layers or not {*map(str, kinds)} <= {*known}:
        fields.fail("mlp_layer_types", f"{num_layers} of {' and '.join(known)}")
    return tuple(index for index, kind in enumerate(kinds) if kind == "dense")
