"""Recording linear layers of packed weights together with what comes before and after them: a norm,
a gate, a residual. For a decode step, in which dispatches and the barriers between them cost time.

Shapes are in the head of shaders/matvec_fused.h.
"""

from typing import NamedTuple

from marlin.device import abi, ops
from marlin.device.ops import BOTH, READ, WRITE, Weight, maybe, read_weight
from marlin.device.program import Recorder, View, make_params

ACTIVATIONS = {"silu": abi.SILU, "gelu": abi.GELU}


class Normed(NamedTuple):
    """That x is a hidden row times a norm's weights, but not yet divided by its size.

    Attributes:
        squares: float [rows, k / 16], sums of the hidden row's squares.
        eps: of the norm.
    """

    squares: View
    eps: float


class Residual(NamedTuple):
    """What a layer's output is added to: hidden += output * scale; y = hidden * norm.

    Attributes:
        hidden: float [rows, n], in place.
        norm: float [n], the weights of the norm that comes next.
        squares: float [rows, ceil(n / 16)], filled with the sums of hidden's squares.
        scale: what is added is multiplied by it.
    """

    hidden: View
    norm: View
    squares: View
    scale: float


def can_fuse(weight: Weight) -> bool:
    """Whether there is a kernel for a layer of this weight."""
    return weight.kind in abi.FUSED_KINDS and not weight.num_experts


def can_gate(gate: Weight, up: Weight) -> bool:
    """Whether there is a kernel for the two of them."""
    shapes = [(w.kind, w.n, w.k, w.group_size, w.flags) for w in (gate, up)]
    return can_fuse(gate) and shapes[0] == shapes[1]


def linear(
    recorder: Recorder,
    x: View,
    weight: Weight,
    y: View,
    bias: View | None,
    label: str,
    normed: Normed | None,
    residual: Residual | None,
) -> None:
    """y = x W^T + bias, x normed, y added to a residual."""
    more: list[tuple[View, int] | None] = [None, None, None]
    if residual is not None:
        more = [(residual.hidden, BOTH), (residual.norm, READ), (residual.squares, WRITE)]
    flags = abi.RESIDUAL if residual is not None else 0
    scale = 1.0 if residual is None else residual.scale
    _dispatch(recorder, x, weight, y, (bias, None), label, normed, flags, more, scale=scale)


def gated(
    recorder: Recorder,
    x: View,
    weights: tuple[Weight, Weight],
    y: View,
    biases: tuple[View | None, View | None],
    activation: str,
    label: str,
    normed: Normed | None,
) -> None:
    """y = activation(x W^T + b) * (x V^T + c) of the weights W, V and the biases b, c."""
    gate, up = weights
    which = ACTIVATIONS[activation]
    more = read_weight(up)
    _dispatch(recorder, x, gate, y, biases, label, normed, abi.GATED, more, activation=which)


def _dispatch(
    recorder, x, weight, y, biases, label, normed, flags, more, *, activation=0, scale=1.0
):
    """more: bindings 7 to 9."""
    flags |= weight.flags | (abi.OUTPUT_BIAS if biases[0] is not None else 0)
    params = make_params(
        "FusedParams",
        rows_var=ops.VAR_TOKENS,
        n=weight.n,
        k=weight.k,
        group_size=weight.group_size,
        flags=flags | (abi.NORMED if normed is not None else 0),
        activation=activation,
        eps=0.0 if normed is None else normed.eps,
        residual_scale=scale,
    )
    squares = None if normed is None else (normed.squares, READ)
    bindings = [(x, READ), *read_weight(weight), maybe(biases[0], READ), (y, WRITE), squares]
    bindings += [*more, maybe(biases[1], READ)]
    recorder.dispatch(f"matvec_fused_{weight.kind}", params, bindings, label=label)
