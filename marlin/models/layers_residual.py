"""How the parts of a layer are normed, and added to the residual stream.

A layer that leaves its delta has it added by whoever comes next, in one kernel with a norm.
"""

from dataclasses import dataclass

from marlin.models.layers import Attention, GatedFeedForward, Step, StepSizes
from marlin.models.layers_latent import LatentAttention
from marlin.models.spec import Tensor


class ResidualLayer:
    """What a layer of two parts says of itself.

    Attributes:
        leaves_delta: its last addition to hidden is still in delta when it is recorded.
    """

    __slots__ = ()
    leaves_delta = True
    attention: Attention | LatentAttention
    feed_forward: GatedFeedForward

    def activations(self, sizes: StepSizes) -> dict[str, tuple[int, int]]:
        """{name: (rows, float32 values a row)} of what record() reads and writes."""
        found = self.attention.activations(sizes)
        for name, shape in self.feed_forward.activations(sizes).items():
            found[name] = max(shape, found.get(name, shape))
        return found

    def record(self, step: Step, index: int) -> None:
        """Add the layer before this one to hidden, where it left a delta, and then this one."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class PreNormLayer(ResidualLayer):
    """hidden += attention(norm(hidden)); hidden += feed_forward(norm(hidden))."""

    attn_norm: Tensor
    attention: Attention | LatentAttention
    ffn_norm: Tensor
    feed_forward: GatedFeedForward

    def record(self, step: Step, index: int) -> None:
        """As ResidualLayer's."""
        step.norm(self.attn_norm, delta=step.acts["delta"] if index else None)
        self.attention.record(step, index)
        step.norm(self.ffn_norm, delta=step.acts["delta"])
        self.feed_forward.record(step, index)


@dataclass(frozen=True, slots=True)
class SandwichLayer(ResidualLayer):
    """hidden += norm(attention(norm(hidden))); hidden += norm(feed_forward(norm(hidden))).

    Attributes:
        post_eps: of the norms after a part; None is the model's.
    """

    attn_norm: Tensor
    attention: Attention
    post_attn_norm: Tensor
    ffn_norm: Tensor
    feed_forward: GatedFeedForward
    post_ffn_norm: Tensor
    post_eps: float | None = None

    def record(self, step: Step, index: int) -> None:
        """As ResidualLayer's."""
        step.norm(self.attn_norm, delta=step.acts["delta"] if index else None)
        self.attention.record(step, index)
        step.norm_delta(self.post_attn_norm, self.post_eps)
        step.norm(self.ffn_norm, delta=step.acts["delta"])
        self.feed_forward.record(step, index)
        step.norm_delta(self.post_ffn_norm, self.post_eps)


@dataclass(frozen=True, slots=True)
class PostNormLayer(ResidualLayer):
    """hidden += norm(attention(hidden)); hidden += norm(feed_forward(hidden))."""

    attention: Attention
    post_attn_norm: Tensor
    feed_forward: GatedFeedForward
    post_ffn_norm: Tensor
    leaves_delta = False

    def record(self, step: Step, index: int) -> None:
        """As ResidualLayer's."""
        self.attention.record(step, index, "hidden")
        step.add_norm(self.post_attn_norm)
        self.feed_forward.record(step, index, "hidden")
        step.add_norm(self.post_ffn_norm)
