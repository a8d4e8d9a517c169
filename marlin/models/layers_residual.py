"""How the parts of a layer are normed, and added to the residual stream.

A layer that leaves its delta has it added by whoever comes next, in one kernel with a norm.
"""

from dataclasses import dataclass

from marlin.models.layers import SCALED, Attention, GatedFeedForward, Step, StepSizes
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
        """As ResidualLayer's; norms are folded into the matrices before and after them where a step
        fuses and these are packed."""
        if self._follows(step, _layer_at(step, index - 1)):
            self._record_attention(step, index, SCALED)
        else:
            step.norm(self.attn_norm, delta=step.acts["delta"] if index else None)
            self._record_attention(step, index, "normed")
        x = SCALED if self._folds_middle(step) else "normed"
        after = _layer_at(step, index + 1)
        if isinstance(after, PreNormLayer) and after._follows(step, self):
            self.feed_forward.record(step, index, x, after.attn_norm)
        else:
            self.feed_forward.record(step, index, x)

    def _record_attention(self, step, index, x):
        attention = self._foldable
        if attention is not None and self._folds_middle(step):
            attention.record(step, index, x, self.ffn_norm)
            return
        self.attention.record(step, index, x)
        step.norm(self.ffn_norm, delta=step.acts["delta"])

    @property
    def _foldable(self) -> Attention | None:
        """The attention, where it and the feed-forward are of the kinds that norms fold into."""
        attention, plain = self.attention, type(self.feed_forward) is GatedFeedForward
        return attention if plain and type(attention) is Attention else None

    def _folds_middle(self, step):
        if not step.fuses or self._foldable is None:
            return False
        return step.packed(self.attention.o, self.feed_forward.gate, self.feed_forward.up)

    def _follows(self, step, before):
        """Whether the norm of this layer's attention is folded into the layer before."""
        attention = self._foldable
        plain = isinstance(before, PreNormLayer) and before._foldable is not None
        if not step.fuses or not plain or attention is None:
            return False
        return step.packed(before.feed_forward.down, *attention.readers)


def _layer_at(step, index):
    """None where the model has no such layer, or runs alone."""
    return step.layers[index] if 0 <= index < len(step.layers) else None


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
