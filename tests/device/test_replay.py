"""A step gives the same bits however its program is replayed: barriers, threads, ranges, rows."""

import launch
import numpy as np
import pytest
from tiny_step import TinyStep, assert_same_bits, run_step

from marlin.device.program import Recorder, View

ROWS = [1, 2, 3, 17, 37]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", ["int4", "fp4", "int8"])
def test_every_number_of_threads_gives_the_same_bits(isa, devices, rows, kind):
    expected = run_step(devices.get(isa, 1), rows, kind)
    assert np.isfinite(expected["logits"]).all() and expected["gate"].any()
    for num_threads in (2, 3):
        assert_same_bits(run_step(devices.get(isa, num_threads), rows, kind), expected)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_the_computed_barriers_are_enough(device, rows, split):
    expected = run_step(device, rows, split=split, barriers="all")
    for _ in range(3):  # a missing barrier shows only now and then
        assert_same_bits(run_step(device, rows, split=split), expected)


def one_at_a_time(program, variables):
    for index in range(len(program)):
        program.run(*variables, first=index, count=1)


def in_two_halves(program, variables):
    # The second range begins between the three projections that share one quantized input.
    program.run(*variables, first=0, count=3)
    program.run(*variables, first=3)


@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("replay", [one_at_a_time, in_two_halves])
def test_ranges_of_a_program_add_up_to_the_whole(device, rows, replay):
    expected = run_step(device, rows)
    assert_same_bits(run_step(device, rows, replay=replay), expected)


def test_a_program_replays_with_other_rows_and_gives_what_a_fresh_one_gives(device):
    with launch.Memory(device) as memory:
        step = TinyStep(memory)
        program = step.recorder.finish()
        for rows in (37, 1, 16, 2):
            program.run(*step.variables(rows))
            assert_same_bits(step.results(rows), run_step(device, rows))
        program.close()


def test_a_batch_of_rows_leaves_the_first_row_as_it_is_alone(device):
    alone, batch = run_step(device, 1), run_step(device, 37)
    for name in ("x", "normed", "attended", "gate"):
        np.testing.assert_array_equal(batch[name][0], alone[name][0], err_msg=name)


def test_many_replays_in_a_row_never_lose_a_worker(each_kind):
    with launch.Memory(each_kind) as memory:
        step = TinyStep(memory)
        program = step.recorder.finish()
        expected = None
        for _ in range(300):
            program.run(*step.variables(3))
            results = step.results(3)
            expected = expected or results
            assert_same_bits(results, expected)
        program.close()


def test_a_step_of_no_rows_runs_nothing(device):
    with launch.Memory(device) as memory:
        step = TinyStep(memory)
        program = step.recorder.finish()
        before = memory.read(step.views["x"], np.uint8, (64,))
        program.run(*launch.step())
        np.testing.assert_array_equal(memory.read(step.views["x"], np.uint8, (64,)), before)
        program.close()


# --- which barriers the Recorder computes ---


class Ranges:
    """Dispatches that read a range of one of two buffers of 256 bytes and write another."""

    def __init__(self, device, memory):
        self.buffers = [memory.room(256).buffer for _ in range(2)]
        self.recorder = Recorder(device)

    def record(self, read, write):
        """Record a dispatch that reads and writes (buffer, first byte) ranges of 32 bytes."""
        source, target = (View(self.buffers[b], first, 32) for b, first in (read, write))
        launch.ops.silu_mul(self.recorder, source, source, target, 8)

    def barriers(self):
        program = self.recorder.finish()
        flags = program.records["barrier"].tolist()
        program.close()
        return flags


@pytest.mark.parametrize(
    "dispatches, expected",
    [
        ([((0, 0), (1, 0)), ((1, 0), (0, 64))], [0, 1]),  # reads what was written
        ([((0, 0), (1, 0)), ((1, 64), (0, 0))], [0, 1]),  # writes what was read
        ([((0, 0), (1, 0)), ((0, 0), (1, 0))], [0, 1]),  # writes what was written
        ([((0, 0), (1, 0)), ((0, 0), (1, 32))], [0, 0]),  # both only read it
        ([((0, 0), (0, 32)), ((0, 64), (0, 96))], [0, 0]),  # other ranges of one buffer
        ([((0, 0), (0, 32)), ((0, 60), (0, 96))], [0, 1]),  # overlap by four bytes
        ([((0, 0), (0, 32)), ((0, 64), (0, 96)), ((0, 32), (1, 0))], [0, 0, 1]),  # not the last
        ([((0, 0), (1, 0)), ((1, 0), (1, 64)), ((1, 0), (1, 96))], [0, 1, 0]),  # a barrier settles
        ([((0, 0), (1, 0)), ((1, 0), (1, 64)), ((0, 0), (1, 64))], [0, 1, 1]),
    ],
)
def test_a_barrier_stands_where_ranges_conflict_and_nowhere_else(each_kind, dispatches, expected):
    with launch.Memory(each_kind) as memory:
        ranges = Ranges(each_kind, memory)
        for read, write in dispatches:
            ranges.record(read, write)
        assert ranges.barriers() == expected


def test_a_dispatch_that_reads_and_writes_one_range_needs_no_barrier_of_its_own(each_kind):
    with launch.Memory(each_kind) as memory:
        ranges = Ranges(each_kind, memory)
        ranges.record((0, 0), (0, 0))
        assert ranges.barriers() == [0]
