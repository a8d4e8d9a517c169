"""Recording the kernels of layers that keep a state of a sequence: as ops.py does the others."""

from typing import NamedTuple

from marlin.device.ops import BOTH, READ, VAR_SEQUENCES, WRITE, maybe
from marlin.device.program import Recorder, View, make_params


class StateRuns(NamedTuple):
    """Which rows of a step belong to which sequence, and where their states lie.

    Attributes:
        runs: int32 [any, 4]: first row, rows, slot of the state before them or -1, slot of that
            after them.
        starts: int32 [num_sequences + 1], of each sequence its first run.
        num_slots: states that there are.
    """

    runs: View
    starts: View
    num_slots: int


class Conv(NamedTuple):
    """A causal convolution of each channel.

    Attributes:
        dim, taps: channels, and the rows that an output is made of.
        row_floats: of x.
        gated: a row of x is three rows of dim, of which the first times the third is convolved, and
            the second multiplies the result.
        silu: y = silu(the sum).
    """

    dim: int
    taps: int
    row_floats: int
    gated: bool = False
    silu: bool = False


def causal_conv(
    recorder: Recorder,
    x: View,
    weight: View,
    bias: View | None,
    states: View,
    where: StateRuns,
    y: View,
    conv: Conv,
) -> None:
    """y[t] = the sum of weight[:, k] * x[t - taps + 1 + k], in each sequence.

    Args:
        weight: float [dim, taps].
        states: float [num_slots, taps - 1, dim], the last rows that were convolved, oldest first.
    """
    params = make_params(
        "ConvParams",
        sequences_var=VAR_SEQUENCES,
        num_slots=where.num_slots,
        has_bias=int(bias is not None),
        **{name: int(value) for name, value in conv._asdict().items()},
    )
    bindings = [(x, READ), (weight, READ), maybe(bias, READ), (states, BOTH)]
    bindings += [(where.runs, READ), (where.starts, READ), (y, WRITE)]
    recorder.dispatch("causal_conv", params, bindings)
