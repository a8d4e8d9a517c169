"""Parts of models that mix a gated delta rule with attention whose output passes a gate.

As layers_state.py's: a GatedDelta stands where a layer's attention would.
"""

from dataclasses import dataclass, fields

from marlin.device import ops, ops_state
from marlin.device.ops_state import Columns, Conv, Delta, Gates
from marlin.models.layers import Attention, Step, StepSizes
from marlin.models.spec import Fused, Linear, State, Tensor


@dataclass(frozen=True, slots=True)
class GatedDelta:
    """delta = out(norm(delta_rule(silu(conv(queries, keys, values of x)))) * silu(z(x))).

    Attributes:
        qkv, z, b, a: of all heads' queries, keys and values; of the gates of values; of what the
            state takes up and how it is forgotten. Where z is None, qkv's rows are those of z, too,
            key head by key head; where a is None, b's are.
        conv: [channels, taps].
        decay, shift: [value_heads].
        norm: [value_dim], of each head.
    """

    qkv: Linear
    z: Linear | None
    b: Linear
    a: Linear | None
    conv: Tensor
    decay: Tensor
    shift: Tensor
    norm: Tensor
    out_proj: Linear
    delta: Delta
    rope: None = None
    fused: tuple[Fused, ...] = ()

    @property
    def cache(self) -> State:
        channels, taps = self.conv.shape
        delta = self.delta
        return State(
            ((taps - 1, channels), (delta.value_heads, delta.key_dim, delta.value_dim)),
        )

    def activations(self, sizes: StepSizes) -> dict[str, tuple[int, int]]:
        """{name: (rows, float32 values a row)} of what record() reads and writes."""
        delta, rows = self.delta, sizes.max_tokens
        found = {
            "delta in": delta.row_floats,
            "delta conv": delta.row_floats,
            "gate": delta.value_floats,
            "attended": delta.value_floats,
            "delta b": delta.value_heads,
            "delta a": delta.value_heads,
        }
        if self.z is None:
            found["delta all"] = delta.row_floats + delta.value_floats
        if self.a is None:
            found["delta gates"] = 2 * delta.value_heads
        return {name: (rows, count) for name, count in found.items()}

    def record(self, step: Step, index: int, x: str = "normed") -> None:
        label, acts, delta = f"layer {index}", step.acts, self.delta
        cache = step.inputs.caches[index]
        self._project(step, x, label)
        recorder, attended = step.recorder, acts["attended"]
        channels, taps = self.conv.shape
        views = acts["delta in"], step.floats(self.conv), None, cache.parts[0], cache.runs
        conv = Conv(channels, taps, channels, silu=True)
        ops_state.causal_conv(recorder, *views, acts["delta conv"], conv)
        of_heads = step.floats(self.decay), step.floats(self.shift)
        gates = Gates(acts["delta a"], acts["delta b"], *of_heads)
        states = cache.parts[1], cache.runs, attended
        ops_state.delta_rule(recorder, acts["delta conv"], gates, *states, delta)
        norm, eps, heads = step.floats(self.norm), step.config.rms_norm_eps, delta.value_heads
        sizes = attended, delta.value_dim, eps
        ops.rms_norm(recorder, attended, norm, *sizes, rows_per_var=heads)
        ops.silu_mul(recorder, acts["gate"], attended, attended, delta.value_floats)
        step.linear("attended", self.out_proj, "delta", f"{label} out")

    def _project(self, step, x, label):
        delta = self.delta
        keys, share = delta.key_heads, delta.value_heads // delta.key_heads
        sizes = delta.key_dim, delta.key_dim, share * delta.value_dim
        if self.z is None:
            step.linear(x, self.qkv, "delta all", f"{label} qkvz")
            _take(step, "delta all", keys, (*sizes, sizes[2]), ("delta in",) * 3 + ("gate",))
        else:
            step.linear(x, self.qkv, "delta in", f"{label} qkv")
            step.linear(x, self.z, "gate", f"{label} z")
        if self.a is None:
            step.linear(x, self.b, "delta gates", f"{label} ba")
            _take(step, "delta gates", keys, (share, share), ("delta b", "delta a"))
        else:
            step.linear(x, self.b, "delta b", f"{label} b")
            step.linear(x, self.a, "delta a", f"{label} a")


@dataclass(frozen=True, slots=True)
class GatedAttention(Attention):
    """As Attention; q's rows are, head by head, a query and a gate, whose sigmoid multiplies what
    is attended."""

    @classmethod
    def of(cls, plain: Attention, q: Linear) -> "GatedAttention":
        """With everything but q that another has."""
        found = {field.name: getattr(plain, field.name) for field in fields(plain)}
        return cls(**found | {"q": q})

    def activations(self, sizes: StepSizes) -> dict[str, tuple[int, int]]:
        """{name: (rows, float32 values a row)} of what record() reads and writes."""
        rows, dim = sizes.max_tokens, self.num_heads * self.cache.head_dim
        own = {"queries and gates": (rows, 2 * dim), "gate": (rows, dim)}
        return Attention.activations(self, sizes) | own

    def record(self, step: Step, index: int, x: str = "normed", then: Tensor | None = None) -> None:
        label, heads, head_dim = f"layer {index}", self.num_heads, self.cache.head_dim
        step.linear(x, self.q, "queries and gates", f"{label} q and gate")
        _take(step, "queries and gates", heads, (head_dim, head_dim), ("q", "gate"))
        step.linear(x, self.k, "k", f"{label} k")
        step.linear(x, self.v, "v", f"{label} v")
        self._write(step, index)
        self._attend(step, index)
        attended = step.acts["attended"]
        ops.sigmoid_mul(step.recorder, step.acts["gate"], attended, attended, heads * head_dim)
        step.linear("attended", self.o, "delta", f"{label} o", then)


def _take(step, x, count, widths, names):
    """Rows of x are `count` groups, of the pieces of `widths` each: the first ones of all groups go
    to the first of `names`, and so on; one that is named again goes on behind what it has."""
    stride, start, lengths = sum(widths), 0, dict.fromkeys(names, 0)
    for width, name in zip(widths, names, strict=True):
        lengths[name] += count * width
    filled = dict.fromkeys(names, 0)
    for width, name in zip(widths, names, strict=True):
        taken = Columns(count * stride, count, stride, start, width)
        where = step.acts[name], lengths[name], filled[name]
        ops_state.take_columns(step.recorder, step.acts[x], taken, *where)
        filled[name] += count * width
        start += width
