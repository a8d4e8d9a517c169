"""Convolutions whose sequences have a state: against the oracle, and the same bits wherever a
sequence is cut."""

import launch
import numpy as np
import pytest
import reference
import reference_state

from marlin.errors import DeviceError

SHAPES = [(1, 2), (257, 4), (300, 8)]
KINDS = [{}, {"silu": True}, {"gated": True}]
# Three sequences in a step: one begins, one goes on in its slot, one leaves a state behind on the
# way and goes on from there.
SEQUENCES = [[(0, 5, -1, 4)], [(5, 1, 2, 2)], [(6, 1, 0, 1), (7, 9, 1, 3)]]
ROWS, SLOTS = 16, 6


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def case(dim, taps, kind, has_bias):
    x = normal(ROWS, 3 * dim + 5 if kind.get("gated") else dim)
    bias = normal(dim, seed=2) if has_bias else None
    return x, normal(dim, taps, seed=1), bias, normal(SLOTS, taps - 1, dim, seed=3)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "+".join(kind) or "plain")
@pytest.mark.parametrize(("dim", "taps"), SHAPES)
def test_a_row_is_made_of_those_before_it_in_its_sequence(device, dim, taps, kind):
    arrays = case(dim, taps, kind, has_bias=not kind)
    y, states = launch.causal_conv(device, *arrays, SEQUENCES, **kind)
    expected, left = reference_state.causal_conv(*arrays, SEQUENCES, **kind)
    reference.assert_close(y, expected)
    np.testing.assert_allclose(states, left, rtol=1e-6, atol=1e-30)
    untouched = [0, 5]
    np.testing.assert_array_equal(states[untouched], arrays[3][untouched])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "+".join(kind) or "plain")
@pytest.mark.parametrize(
    "cuts", [(1,) * 16, (1, 1, 14), (7, 2, 7)], ids=lambda cuts: f"{len(cuts)} runs"
)
def test_the_bits_of_a_sequence_do_not_depend_on_where_it_is_cut(device, kind, cuts):
    """In one step or many, through one slot or through a new one each time."""
    x, weight, bias, states = case(70, 4, kind, True)
    whole = launch.causal_conv(device, x, weight, bias, states, [[(0, 16, -1, 5)]], **kind)
    ends = np.cumsum(cuts).tolist()
    runs = [
        (end - count, count, -1 if end == count else index % 5, 5 if end == 16 else (index + 1) % 5)
        for index, (end, count) in enumerate(zip(ends, cuts, strict=True))
    ]
    one_step = launch.causal_conv(device, x, weight, bias, states, [runs], **kind)
    np.testing.assert_array_equal(one_step[0], whole[0])
    np.testing.assert_array_equal(one_step[1][5], whole[1][5])
    rows = []
    for first, count, source, slot in runs:
        part = x[first : first + count].copy()
        y, states = launch.causal_conv(
            device, part, weight, bias, states, [[(0, count, source, slot)]], **kind
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
    arrays = case(40, 3, {}, False)
    with pytest.raises(DeviceError, match=r"\(causal_conv\): an index in a buffer points"):
        launch.causal_conv(device, *arrays, [[(0, 1, -1, 0)], [wrong]])


@pytest.mark.parametrize("starts", [[0, 2], [-1, 1], [0, 2**31 - 1]])
def test_a_sequence_whose_runs_there_are_not(device, starts, monkeypatch):
    arrays = case(40, 3, {}, False)
    runs, _ = launch.runs_of([[(0, 1, -1, 0)]])
    monkeypatch.setattr(launch, "runs_of", lambda _: (runs, np.array(starts, np.int32)))
    with pytest.raises(DeviceError, match=r"\(causal_conv\): an index in a buffer points"):
        launch.causal_conv(device, *arrays, [[(0, 1, -1, 0)]])
