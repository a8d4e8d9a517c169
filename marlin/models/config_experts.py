"""What files say of a mixture of experts, in the words that families share.

What one family says in its own way is in its file.
"""

from dataclasses import KW_ONLY, dataclass

from marlin.device.abi import MAX_EXPERTS, MAX_SLOTS
from marlin.files.fields import Fields
from marlin.models.config import MAX_DIM, ModelConfig

# What a model says of experts that has none.
WITHOUT_EXPERTS = {"num_experts": 0, "num_slots": 0, "expert_dim": 0}


@dataclass(frozen=True, slots=True)
class MixtureConfig(ModelConfig):
    """A model whose layers choose experts.

    Attributes:
        num_experts, num_slots, expert_dim: of a layer, of a token, and rows of an expert's gate.
        normalizes: the chosen experts' weights are divided by their sum.
        dense_layers: those that have one feed-forward, of intermediate_dim.
        routed_scale: what the weights are multiplied by.
        num_groups, kept_groups: see ops.Router.
        shared_dim: rows of the gate of what every token takes besides; 0: there is no such.
    """

    _: KW_ONLY
    num_experts: int
    num_slots: int
    expert_dim: int
    normalizes: bool = True
    dense_layers: tuple[int, ...] = ()
    routed_scale: float = 1.0
    num_groups: int = 1
    kept_groups: int = 1
    shared_dim: int = 0


def from_hf(
    fields: Fields, *, width: str = "moe_intermediate_size", count: str | None = None
) -> dict:
    """num_experts, num_slots and expert_dim of MixtureConfig.

    Args:
        width, count: config.json's words for expert_dim and num_experts; None is either of two.

    Raises:
        ModelFileError: one is missing, wrong, or more than kernels take.
    """
    older = fields.raw("num_experts") is not None
    name = count or ("num_experts" if older else "num_local_experts")
    total = fields.count(name, maximum=MAX_EXPERTS)
    return {
        "num_experts": total,
        "num_slots": fields.count("num_experts_per_tok", maximum=min(total, MAX_SLOTS)),
        "expert_dim": fields.count(width, maximum=MAX_DIM),
    }


def from_gguf(fields: Fields, *implied_width: int) -> dict:
    """The same of a GGUF header.

    Args:
        implied_width: what a file without expert_feed_forward_length means.
    """
    count = fields.count("expert_count", maximum=MAX_EXPERTS)
    return {
        "num_experts": count,
        "num_slots": fields.count("expert_used_count", maximum=min(count, MAX_SLOTS)),
        "expert_dim": fields.count("expert_feed_forward_length", *implied_width, maximum=MAX_DIM),
    }
