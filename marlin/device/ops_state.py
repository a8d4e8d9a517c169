"""Recording the kernels of layers that keep a state of a sequence: as ops.py does the others."""

from typing import NamedTuple

from marlin.device.ops import BOTH, READ, VAR_SEQUENCES, VAR_TOKENS, WRITE, maybe
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


class Delta(NamedTuple):
    """Heads of a gated delta rule.

    Attributes:
        key_heads, value_heads: the second a multiple of the first.
        key_dim, value_dim: of a head; multiples of 16, a key's at most abi.MAX_KEY_DIM.
        tiled: values' head j uses the keys of j modulo key_heads, and not those of its share.
        is_log: the decay is -exp of what is stored, and not as it is.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    tiled: bool = False
    is_log: bool = True

    @property
    def row_floats(self) -> int:
        """Of all queries, keys and values of a token."""
        return 2 * self.key_heads * self.key_dim + self.value_floats

    @property
    def value_floats(self) -> int:
        return self.value_heads * self.value_dim


class Gates(NamedTuple):
    """What a delta rule forgets and takes up: its state is multiplied by
    exp(decay * softplus(a + shift)), and the correction by sigmoid(b).

    Attributes:
        a, b: float [rows, value_heads].
        decay, shift: float [value_heads].
    """

    a: View
    b: View
    decay: View
    shift: View


def delta_rule(
    recorder: Recorder,
    x: View,
    gates: Gates,
    states: View,
    where: StateRuns,
    y: View,
    delta: Delta,
) -> None:
    """y[t] = S^T q, where S of each head is decayed and then corrected to give v for the key k.

    Args:
        x: float [rows, delta.row_floats], the queries of all heads, their keys, their values.
        states: float [num_slots, value_heads, key_dim, value_dim].
        y: float [rows, delta.value_floats].
    """
    params = make_params(
        "DeltaParams",
        sequences_var=VAR_SEQUENCES,
        num_slots=where.num_slots,
        **{name: int(value) for name, value in delta._asdict().items()},
    )
    bindings = [(view, READ) for view in (x, *gates)] + [(states, BOTH)]
    bindings += [(where.runs, READ), (where.starts, READ), (y, WRITE)]
    recorder.dispatch("delta_rule", params, bindings)


class Columns(NamedTuple):
    """Equal pieces of a row: so many, `width` floats each, the first at `start` and a next
    one `stride` behind it; `x_floats` is the row's length."""

    x_floats: int
    pieces: int
    stride: int
    start: int
    width: int


def take_columns(
    recorder: Recorder, x: View, taken: Columns, y: View, y_floats: int, y_start: int = 0
) -> None:
    """The pieces of each row of x, one behind the other, from y_start on in a row of y."""
    fields = taken._asdict() | {"y_floats": y_floats, "y_start": y_start}
    params = make_params("ColumnsParams", rows_var=VAR_TOKENS, **fields)
    recorder.dispatch("take_columns", params, [(x, READ), (y, BOTH)])
