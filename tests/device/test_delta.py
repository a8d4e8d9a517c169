"""The gated delta rule, and columns taken out of rows: against the oracle, and the same bits
wherever a sequence is cut."""

import launch
import numpy as np
import pytest
import reference
import reference_state

from marlin.device.ops_state import Columns, Delta
from marlin.errors import DeviceError

DELTAS = [
    Delta(1, 1, 16, 16),
    Delta(2, 6, 32, 48),
    Delta(2, 4, 128, 128, tiled=True, is_log=False),
]
# As test_state.py's: one begins, one goes on in its slot, one leaves a state behind on the way.
SEQUENCES = [[(0, 5, -1, 4)], [(5, 1, 2, 2)], [(6, 1, 0, 1), (7, 9, 1, 3)]]
ROWS, SLOTS = 16, 6


def case(delta, rows=ROWS, seed=0):
    """(x, gates, states), of which nothing dies out and nothing grows."""
    rng = np.random.default_rng(seed)
    shapes = (rows, delta.row_floats), (SLOTS, delta.value_heads, delta.key_dim, delta.value_dim)
    x, states = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    of_rows, of_heads = (rows, delta.value_heads), (delta.value_heads,)
    a, b, decay, shift = (
        rng.uniform(-1.5, 1.5, shape).astype(np.float32)
        for shape in (of_rows, of_rows, of_heads, of_heads)
    )
    return x, (a, b, decay if delta.is_log else -np.exp(decay), shift), states


@pytest.mark.parametrize("delta", DELTAS, ids=str)
def test_a_row_sees_what_its_sequence_has_left_of_those_before(device, delta):
    arrays = case(delta)
    y, states = launch.delta_rule(device, *arrays, SEQUENCES, delta)
    expected, left = reference_state.delta_rule(*arrays, SEQUENCES, delta)
    reference.assert_close(y, expected)
    np.testing.assert_allclose(states, left, rtol=2e-5, atol=2e-5)
    untouched = [0, 5]
    np.testing.assert_array_equal(states[untouched], arrays[2][untouched])


def test_two_hundred_rows_stay_close_to_the_oracle(device):
    """More than any chunk of other programs: rounding does not build up."""
    delta = DELTAS[2]
    arrays = case(delta, rows=200)
    y, states = launch.delta_rule(device, *arrays, [[(0, 200, -1, 0)]], delta)
    expected, left = reference_state.delta_rule(*arrays, [[(0, 200, -1, 0)]], delta)
    reference.assert_close(y, expected)
    np.testing.assert_allclose(states, left, rtol=2e-5, atol=2e-5)


def test_a_large_gate_and_a_row_of_zeros_give_numbers(device):
    """softplus(x) is x where exp(x) would be none; what has no length keeps none."""
    delta = DELTAS[0]
    x, (a, b, decay, shift), states = case(delta, rows=4)
    a[1], a[2], b[1], b[2] = 200, -200, -200, 200
    x[3] = 0
    arrays = x, (a, b, decay, shift), states
    y, _ = launch.delta_rule(device, *arrays, [[(0, 4, 0, 0)]], delta)
    reference.assert_close(y, reference_state.delta_rule(*arrays, [[(0, 4, 0, 0)]], delta)[0])


@pytest.mark.parametrize("delta", DELTAS, ids=str)
@pytest.mark.parametrize(
    "cuts", [(1,) * 16, (1, 1, 14), (7, 2, 7)], ids=lambda cuts: f"{len(cuts)} runs"
)
def test_the_bits_of_a_sequence_do_not_depend_on_where_it_is_cut(device, delta, cuts):
    """In one step or many, through one slot or through a new one each time."""
    x, (a, b, *of_heads), states = case(delta)
    whole = launch.delta_rule(device, x, (a, b, *of_heads), states, [[(0, 16, -1, 5)]], delta)
    ends = np.cumsum(cuts).tolist()
    runs = [
        (end - count, count, -1 if end == count else index % 5, 5 if end == 16 else (index + 1) % 5)
        for index, (end, count) in enumerate(zip(ends, cuts, strict=True))
    ]
    one_step = launch.delta_rule(device, x, (a, b, *of_heads), states, [runs], delta)
    np.testing.assert_array_equal(one_step[0], whole[0])
    np.testing.assert_array_equal(one_step[1][5], whole[1][5])
    rows = []
    for first, count, source, slot in runs:
        part, gates = slice(first, first + count), (a[first : first + count], b[first:][:count])
        y, states = launch.delta_rule(
            device, x[part], (*gates, *of_heads), states, [[(0, count, source, slot)]], delta
        )
        rows.append(y)
    np.testing.assert_array_equal(np.concatenate(rows), whole[0])
    np.testing.assert_array_equal(states[5], whole[1][5])


@pytest.mark.parametrize(
    "wrong",
    [
        (-1, 1, 0, 0), (0, 0, 0, 0), (16, 1, 0, 0), (0, 1, -2, 0), (0, 1, 6, 0), (0, 1, 0, -1),
        (0, 1, 0, 6), (2**31 - 1, 2, 0, 0), (1, 2**31 - 1, 0, 0),
    ],
)  # fmt: skip
def test_a_run_with_a_row_or_a_slot_that_there_is_not(device, wrong):
    with pytest.raises(DeviceError, match=r"\(delta_rule\): an index in a buffer points"):
        launch.delta_rule(device, *case(DELTAS[0]), [[(0, 1, -1, 0)], [wrong]], DELTAS[0])


@pytest.mark.parametrize("missing", ["x", "a", "b"])
def test_rows_that_one_of_the_inputs_does_not_have(device, missing):
    x, (a, b, *of_heads), states = case(DELTAS[0])
    short = {"x": x, "a": a, "b": b}
    short[missing] = short[missing][:8]
    gates = short["a"], short["b"], *of_heads
    with pytest.raises(DeviceError, match=r"\(delta_rule\): an index in a buffer points"):
        launch.delta_rule(device, short["x"], gates, states, [[(0, 9, -1, 0)]], DELTAS[0])


@pytest.mark.parametrize(
    ("columns", "y_floats", "y_start"),
    [
        (Columns(700, 4, 170, 20, 100), 450, 30),
        (Columns(64, 1, 0, 0, 64), 64, 0),
        (Columns(12, 4, 3, 2, 1), 9, 5),
    ],
)
def test_columns_are_put_side_by_side_and_nothing_else_is_written(
    device, columns, y_floats, y_start
):
    rng = np.random.default_rng(1)
    x, y = (rng.standard_normal((5, n)).astype(np.float32) for n in (columns.x_floats, y_floats))
    expected = reference_state.take_columns(x, columns, y, y_start)
    np.testing.assert_array_equal(launch.take_columns(device, x, columns, y, y_start), expected)
