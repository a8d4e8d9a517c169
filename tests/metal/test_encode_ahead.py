"""A step that is asked for again is encoded while it runs, and only committed when it is asked for.

What a step asks for, its vars and its dispatches, says what is encoded; what it reads does not.
"""

import numpy as np
import pytest
from silu import DIM

from marlin.device import ops
from marlin.device.program import Recorder, View
from marlin.errors import DeviceError

ROWS, COUNT = 3, 4


@pytest.fixture
def step(fresh):
    """(program of COUNT dispatches, its input, its output)."""
    device = fresh()
    x, up, y = (device.create(4 * ROWS * DIM) for _ in range(3))
    recorder = Recorder(device)
    ops.silu_mul(recorder, View.of(x), View.of(up), View.of(y), DIM)
    for _ in range(COUNT - 1):
        ops.silu_mul(recorder, View.of(y), View.of(up), View.of(y), DIM)
    up.array(np.float32)[:] = 1
    arrays = [buffer.array(np.float32, (ROWS, DIM)) for buffer in (x, y)]
    program = recorder.finish()
    yield program, *arrays
    program.close()


def encoded(sim, call, *arguments, **options):
    """Dispatches that a call encoded."""
    before = sim["dispatched"]
    call(*arguments, **options)
    return sim["dispatched"] - before


def expected(x):
    for _ in range(COUNT):
        x = x / (1 + np.exp(-x))
    return x


def test_from_the_third_time_on_a_step_is_encoded_before_it_is_asked_for(step, sim):
    program, x, y = step
    counts = []
    for number in range(5):
        x[:] = number + 1
        counts.append((encoded(sim, program.submit, ROWS), encoded(sim, program.wait)))
        np.testing.assert_allclose(y, expected(np.full_like(x, number + 1)), rtol=1e-6)
    assert counts == [(COUNT, 0), (COUNT, COUNT), *[(0, COUNT)] * 3]


@pytest.mark.parametrize(
    "rows, options", [(ROWS - 1, {}), (ROWS, {"first": 0, "count": 2})], ids=["vars", "dispatches"]
)
def test_what_asks_for_something_else_gets_that(step, sim, rows, options):
    program, x, y = step
    x[:] = 1
    for _ in range(2):
        program.run(ROWS)
    y[:] = np.nan
    asked = options.get("count", COUNT)
    assert encoded(sim, program.submit, rows, **options) == asked
    assert encoded(sim, program.wait) == 0
    assert (~np.isnan(y)).all(axis=1).sum() == rows
    assert encoded(sim, program.submit, ROWS) == COUNT
    program.wait()
    np.testing.assert_allclose(y, expected(x), rtol=1e-6)


def test_other_programs_do_not_see_what_is_encoded(step, sim):
    program, *_ = step
    for _ in range(2):
        program.run(ROWS)
    view = View.of(program.device.create(4 * DIM))
    recorder = Recorder(program.device)
    ops.silu_mul(recorder, view, view, view, DIM)
    other = recorder.finish()
    assert encoded(sim, other.submit, 1) == 1
    other.wait()
    assert encoded(sim, program.submit, ROWS) == 0
    program.wait()
    other.close()


def test_what_is_never_asked_for_is_given_back(step, sim, simulated_metal):
    program, *_ = step
    program.run(ROWS)
    before = sim.objects
    for _ in range(3):
        program.run(ROWS)
    assert sim.objects > before
    program.run(ROWS - 1)
    assert sim.objects == before


def test_after_a_failure_nothing_is_encoded_ahead(step, sim, monkeypatch):
    program, *_ = step
    for _ in range(2):
        program.run(ROWS)
    monkeypatch.setenv("SIMMETAL_FAIL", "1")
    with pytest.raises(DeviceError, match="the GPU failed"):
        program.run(ROWS)
    monkeypatch.delenv("SIMMETAL_FAIL")
    for _ in range(3):
        assert encoded(sim, program.submit, ROWS) == COUNT
        program.wait()


def test_a_replay_of_more_than_one_command_buffer_is_not(fresh, sim, monkeypatch):
    monkeypatch.setenv("SIMMETAL_CLOCK", "silu:100000000")
    device = fresh()
    view = View.of(device.create(4 * DIM))
    recorder = Recorder(device)
    for _ in range(2):
        ops.silu_mul(recorder, view, view, view, DIM)
    program = recorder.finish()
    for _ in range(4):
        assert encoded(sim, program.submit, 1) == 2
        assert encoded(sim, program.wait) == 0
