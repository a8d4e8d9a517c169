"""Parts that keep a state of a sequence in place of its keys and values: short convolutions.

As layers.py's parts; a part of this kind stands where a layer's attention would.
"""

from dataclasses import dataclass

from marlin.device import ops_state
from marlin.device.ops_state import StateRuns
from marlin.device.program import View
from marlin.models.layers import Step, StepSizes
from marlin.models.spec import Fused, Linear, State, Tensor


@dataclass(frozen=True, slots=True)
class StateCache:
    """One layer's states.

    Attributes:
        parts: float32 [num_slots, ...] of each part that State says.
        runs: where a step's are.
    """

    parts: tuple[View, ...]
    runs: StateRuns

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)


@dataclass(frozen=True, slots=True)
class ShortConv:
    """delta = out(c * conv(b * u)), where b, c and u are the parts of in(x).

    Attributes:
        weight: [dim, taps], of each channel.
        bias: [dim] or None.
    """

    in_proj: Linear
    weight: Tensor
    bias: Tensor | None
    out_proj: Linear
    rope: None = None
    fused: tuple[Fused, ...] = ()

    @property
    def cache(self) -> State:
        dim, taps = self.weight.shape
        return State(((taps - 1, dim),))

    def activations(self, sizes: StepSizes) -> dict[str, tuple[int, int]]:
        """{name: (rows, float32 values a row)} of what record() reads and writes."""
        dim = self.weight.shape[0]
        return {"conv in": (sizes.max_tokens, 3 * dim), "attended": (sizes.max_tokens, dim)}

    def record(self, step: Step, index: int, x: str = "normed") -> None:
        label, cache = f"layer {index}", step.inputs.caches[index]
        step.linear(x, self.in_proj, "conv in", f"{label} in")
        dim, taps = self.weight.shape
        names = self.weight.name, self.bias.name if self.bias else ""
        weight, bias = (step.weights.get(name) for name in names)
        assert isinstance(weight, View) and (bias is None or isinstance(bias, View))
        views = step.acts["conv in"], weight, bias, cache.parts[0], cache.runs
        conv = ops_state.Conv(dim, taps, 3 * dim, gated=True)
        ops_state.causal_conv(step.recorder, *views, step.acts["attended"], conv)
        step.linear("attended", self.out_proj, "delta", f"{label} out")
