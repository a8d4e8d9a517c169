"""The parts of an encoder, which reads a text both ways: each is normed after what it adds.

"normed" is all that there is of a residual stream. Knows nothing of files and requests.
"""

from dataclasses import dataclass

from marlin.device import ops
from marlin.models.layers import Attention, Step, StepSizes
from marlin.models.spec import LayerNorm, Linear


@dataclass(frozen=True, slots=True)
class FeedForward:
    """delta = down(gelu(up(normed))), GELU by the error function."""

    up: Linear
    down: Linear

    def activations(self, sizes: StepSizes) -> dict[str, tuple[int, int]]:
        """{name: (rows, float32 values a row)} of what record() reads and writes."""
        return {"up": (sizes.max_tokens, self.up.weight.shape[0])}

    def record(self, step: Step, index: int) -> None:
        label, up = f"layer {index}", step.acts["up"]
        step.linear("normed", self.up, "up", f"{label} up")
        ops.gelu(step.recorder, up, up, self.up.weight.shape[0])
        step.linear("up", self.down, "delta", f"{label} down")


@dataclass(frozen=True, slots=True)
class PostNormLayer:
    """normed = norm(normed + attention(normed)); normed = norm(normed + feed_forward(normed))."""

    attention: Attention
    attn_norm: LayerNorm
    feed_forward: FeedForward
    ffn_norm: LayerNorm

    def activations(self, sizes: StepSizes) -> dict[str, tuple[int, int]]:
        """As FeedForward's. Texts are computed as prompts are, and none of a decode's partials."""
        found = self.attention.activations(sizes) | self.feed_forward.activations(sizes)
        return {name: shape for name, shape in found.items() if name != "partials"}

    def record(self, step: Step, index: int) -> None:
        self.attention.record(step, index)
        layer_norm(step, self.attn_norm)
        self.feed_forward.record(step, index)
        layer_norm(step, self.ffn_norm)


def layer_norm(step: Step, norm: LayerNorm) -> None:
    """normed = layer_norm(normed + delta)."""
    normed, delta = step.acts["normed"], step.acts["delta"]
    weight, bias = step.weights[norm.weight.name], step.weights[norm.bias.name]
    config = step.config
    ops.layer_norm(
        *(step.recorder, normed, weight, bias, normed, config.hidden_dim, config.rms_norm_eps),
        delta=delta,
    )
