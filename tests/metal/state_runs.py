"""One small run of each kernel whose sequences have a state, compared with the oracle."""

import numpy as np
import reference
import reference_state
from test_attention_shaders import normal

from marlin.device import ops_state


def causal_conv(shader):
    """A sequence that leaves a state behind on the way; more channels than a threadgroup has."""
    dim, taps = 300, 4
    sequences = [[(0, 2, -1, 2)], [(2, 1, 0, 1), (3, 4, 1, 0)]]
    runs = np.array([run for of_one in sequences for run in of_one], np.int32)
    starts = np.array([0, 1, 3], np.int32)
    for gated, bias in ((1, None), (0, normal(dim))):
        x, states = normal(7, dim * (3 if gated else 1)), normal(3, taps - 1, dim)
        weight, y = normal(dim, taps), np.full((7, dim), np.nan, np.float32)
        options = {"gated": bool(gated), "silu": not gated}
        expected, left = reference_state.causal_conv(x, weight, bias, states, sequences, **options)
        sizes = {"dim": dim, "taps": taps, "row_floats": x.shape[1], "num_slots": 3}
        sizes |= {"gated": gated, "silu": 1 - gated, "has_bias": int(bias is not None)}
        bindings = [x, weight, bias, states, runs, starts, y]
        params = ("ConvParams", {"sequences_var": 0, **sizes})
        assert shader("state").run("causal_conv", (2, 2, 1), bindings, params, [2])
        reference.assert_close(y, expected)
        np.testing.assert_allclose(states, left, rtol=1e-6, atol=1e-30)


def delta_rule(shader):
    """Heads that share keys, and a last piece of values that does not fill a threadgroup."""
    delta = ops_state.Delta(2, 4, 32, 48)
    sequences = [[(0, 2, -1, 2)], [(2, 1, 0, 1), (3, 4, 1, 0)]]
    runs = np.array([run for of_one in sequences for run in of_one], np.int32)
    starts = np.array([0, 1, 3], np.int32)
    x, gates = normal(7, delta.row_floats), [normal(7, 4), normal(7, 4), normal(4), normal(4)]
    states, y = normal(3, 4, 32, 48), np.full((7, delta.value_floats), np.nan, np.float32)
    expected, left = reference_state.delta_rule(x, gates, states, sequences, delta)
    sizes = {name: int(value) for name, value in delta._asdict().items()} | {"num_slots": 3}
    bindings = [x, *gates, states, runs, starts, y]
    params = ("DeltaParams", {"sequences_var": 0, **sizes})
    assert shader("state").run("delta_rule", (2, 8, 1), bindings, params, [2])
    reference.assert_close(y, expected)
    np.testing.assert_allclose(states, left, rtol=2e-5, atol=2e-5)


def take_columns(shader):
    columns, x, y = ops_state.Columns(700, 4, 170, 20, 100), normal(3, 700), normal(3, 450)
    expected = reference_state.take_columns(x, columns, y, 30)
    fields = columns._asdict() | {"rows_var": 0, "y_floats": 450, "y_start": 30}
    assert shader("state").run("take_columns", (3, 1, 1), [x, y], ("ColumnsParams", fields), [3])
    np.testing.assert_array_equal(y, expected)


STATE_RUNS = {"causal_conv": causal_conv, "delta_rule": delta_rule, "take_columns": take_columns}
