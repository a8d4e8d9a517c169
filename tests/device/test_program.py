"""A caller's mistake is a DeviceError that names the dispatch, and never a crash: what native code
checks when a program is created, submitted and waited for."""

import numpy as np
import pytest

from marlin.device import abi, ops
from marlin.device.program import Program, Recorder, View, make_params
from marlin.errors import DeviceError

DIM = 8
ROW_BYTES = 4 * DIM
ROWS = 4


class Bench:
    """A device's buffers a, b, c of four rows of eight floats, and one dispatch over them."""

    def __init__(self, device):
        self.device = device
        self.a, self.b, self.c = (device.create(ROWS * ROW_BYTES) for _ in range(3))

    def bindings(self):
        views = [View.of(buffer) for buffer in (self.a, self.b, self.c)]
        return list(zip(views, (abi.READ, abi.READ, abi.WRITE), strict=True))

    def dispatch(self, **changes):
        """A Recorder with c = silu(a) * b, or that with another kernel, params or bindings."""
        given = {
            "kernel": "silu_mul",
            "params": make_params("RowsParams", rows_var=0, dim=DIM),
            "bindings": self.bindings(),
        } | changes
        recorder = Recorder(self.device)
        recorder.dispatch(**given)
        return recorder

    def binding(self, index, view):
        """dispatch() with one binding changed."""
        views = self.bindings()
        views[index] = (view, views[index][1])
        return self.dispatch(bindings=views)

    def close(self):
        for buffer in (self.a, self.b, self.c):
            buffer.release()


@pytest.fixture
def bench(each_kind):
    bench = Bench(each_kind)
    yield bench
    bench.close()


@pytest.fixture
def program(bench):
    program = bench.dispatch().finish()
    yield program
    program.close()


def refuses(recorder, match):
    """The recorded program cannot be created, and the reason matches."""
    with pytest.raises(DeviceError, match=match):
        recorder.finish()


# --- records ---


def test_a_sound_program_runs(bench, program):
    bench.a.array(np.float32)[:], bench.b.array(np.float32)[:] = 0, 1
    bench.c.array(np.float32)[:] = 7
    program.run(3)
    assert bench.c.array(np.float32).tolist() == [0] * 3 * DIM + [7] * DIM


@pytest.mark.parametrize("name", ["", "silu_mu", "SILU_MUL", "silu_mul ", "x" * 500])
def test_an_unknown_kernel_name_is_named(bench, name):
    with pytest.raises(DeviceError, match="no kernel is named " + name[:64]):
        bench.dispatch(kernel=name)


@pytest.mark.parametrize("kernel_id", [0, -1, 1000, 2**31 - 1, -(2**31)])
def test_an_unknown_kernel_id_is_refused(bench, program, kernel_id):
    records = program.records.copy()
    records["kernel"] = kernel_id
    with pytest.raises(DeviceError, match=f"dispatch 0: kernel id {kernel_id} does not exist"):
        Program(bench.device, records, [""])


@pytest.mark.parametrize("buffer_id", [-1, 10**6, 2**31 - 1, -(2**31)])
def test_a_buffer_that_does_not_exist_is_refused(bench, program, buffer_id):
    records = program.records.copy()
    records["bindings"]["buffer"][0, 1] = buffer_id
    match = rf"dispatch 0 \(silu_mul\): binding 1 names buffer {buffer_id}, which does not exist"
    with pytest.raises(DeviceError, match=match):
        Program(bench.device, records, [""])


def test_a_released_buffer_cannot_be_recorded(bench):
    buffer = bench.device.create(ROW_BYTES)
    buffer.release()
    with pytest.raises(DeviceError, match="released already"):
        bench.binding(0, View(buffer, 0, ROW_BYTES))


def test_the_id_of_a_released_buffer_is_refused(bench, program):
    buffer = bench.device.create(ROW_BYTES)
    records = program.records.copy()
    records["bindings"]["buffer"][0, 1] = buffer.id
    buffer.release()
    with pytest.raises(DeviceError, match="binding 1 names buffer .*, which does not exist"):
        Program(bench.device, records, [""])


@pytest.mark.parametrize(
    "offset, num_bytes",
    [
        (0, ROWS * ROW_BYTES + 1),
        (4, ROWS * ROW_BYTES),
        (ROWS * ROW_BYTES + 4, 0),
        (-4, ROW_BYTES),
        (0, -1),
        (4, 2**63 - 1),
        (2**63 - 4, ROW_BYTES),
    ],
)
def test_a_range_outside_its_buffer_is_refused(bench, offset, num_bytes):
    refuses(bench.binding(2, View(bench.c, offset, num_bytes)), "binding 2, .* leaves buffer")


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_floats_that_begin_between_words_are_refused(bench, index, offset):
    buffer = (bench.a, bench.b, bench.c)[index]
    recorder = bench.binding(index, View(buffer, offset, ROW_BYTES))
    refuses(recorder, rf"binding {index} .* begins where its elements cannot be read")


def test_half_weights_may_begin_at_any_even_byte(bench):
    weights = np.arange(2 * DIM, dtype=np.float16).reshape(2, DIM)
    buffer = bench.device.create(2 + weights.nbytes)
    buffer.array(np.float16, weights.shape, 2)[...] = weights
    bench.a.array(np.float32)[:] = 1
    weight = ops.Weight("f16", 2, DIM, View(buffer, 2, weights.nbytes))
    recorder = Recorder(bench.device)
    ops.linear(recorder, View(bench.a, 0, ROW_BYTES), weight, View(bench.c, 0, 8))
    program = recorder.finish()
    program.run(1)
    assert bench.c.array(np.float32)[:2].tolist() == weights.sum(axis=1).tolist()
    program.close()
    odd = ops.Weight("f16", 2, DIM, View(buffer, 1, weights.nbytes))
    recorder = Recorder(bench.device)
    ops.linear(recorder, View(bench.a, 0, ROW_BYTES), odd, View(bench.c, 0, 8))
    refuses(recorder, "begins where its elements cannot be read")
    buffer.release()


def test_rows_that_are_read_in_fours_begin_at_a_multiple_of_16_bytes(bench):
    weight = ops.Weight("f32", 1, DIM, View(bench.b, 0, ROW_BYTES))
    recorder = Recorder(bench.device)
    ops.linear(recorder, View(bench.a, 4, ROW_BYTES), weight, View(bench.c, 0, 4))
    refuses(recorder, "binding 0 .* begins where its elements cannot be read")


def test_writing_a_mapped_file_is_refused(bench, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(ROW_BYTES))
    mapped = bench.device.map(path, 0, ROW_BYTES)
    refuses(bench.binding(2, View.of(mapped)), "binding 2 writes buffer .*, which is read-only")
    mapped.release()


@pytest.mark.parametrize("name", ["RopeTableParams", "LinearParams"])
def test_parameters_of_another_size_are_refused(bench, name):
    params = np.zeros((), abi.PARAMS[name])
    refuses(bench.dispatch(params=params), "parameter bytes, not 3 and 8")


@pytest.mark.parametrize("num_bindings", [0, 2, 4, 12])
def test_another_number_of_bindings_is_refused(bench, num_bindings):
    bindings = [(View.of(bench.a), abi.READ)] * num_bindings
    refuses(bench.dispatch(bindings=bindings), f"has {num_bindings} bindings")


@pytest.mark.parametrize("num_bindings", [-1, 13, 2**31 - 1])
def test_a_number_of_bindings_that_no_record_holds_is_refused(bench, program, num_bindings):
    records = program.records.copy()
    records["num_bindings"] = num_bindings
    with pytest.raises(DeviceError, match=f"has {num_bindings} bindings"):
        Program(bench.device, records, [""])


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_binding_too_small_for_one_row_is_refused(bench, index):
    buffer = (bench.a, bench.b, bench.c)[index]
    recorder = bench.binding(index, View(buffer, 0, ROW_BYTES - 4))
    refuses(recorder, rf"binding {index} \({ROW_BYTES - 4} bytes\) does not hold one row")


@pytest.mark.parametrize("index", [0, 1, 2])
def test_an_unbound_binding_is_refused(bench, index):
    views = bench.bindings()
    views[index] = None
    refuses(bench.dispatch(bindings=views), rf"binding {index} \(0 bytes\)")


@pytest.mark.parametrize("dim", [0, 2**20 + 1, 2**32 - 1])
def test_a_dim_out_of_range_is_refused(bench, dim):
    params = make_params("RowsParams", rows_var=0, dim=dim)
    refuses(bench.dispatch(params=params), "silu_mul.*: has a dim out of range")


@pytest.mark.parametrize("rows_var", [-1, 8, 2**31 - 1])
def test_a_var_out_of_range_is_refused(bench, rows_var):
    params = make_params("RowsParams", rows_var=rows_var, dim=DIM)
    refuses(bench.dispatch(params=params), "names a var out of range")


def test_a_step_without_rows_runs_nothing(bench, program):
    bench.c.array(np.float32)[:] = 7
    program.run(0)
    assert (bench.c.array(np.float32) == 7).all()


def test_the_dispatch_at_fault_is_the_one_named(bench):
    recorder = bench.dispatch()
    bindings = [(View.of(bench.a), abi.READ)] * 2
    params = make_params("RowsParams", rows_var=0, dim=DIM)
    recorder.dispatch("gather_rows", params, bindings, (1, 1, 1))
    refuses(recorder, r"dispatch 1 \(gather_rows\)")


def test_an_empty_program_is_refused(bench):
    with pytest.raises(DeviceError, match="needs dispatches"):
        Recorder(bench.device).finish()


def test_a_refused_program_holds_no_buffer(bench):
    before = bench.device.info()["allocated_bytes"]
    buffer = bench.device.create(1 << 16)
    views = [
        (View.of(buffer), abi.READ),
        (View.of(buffer), abi.READ),
        (View(bench.c, 0, 4), abi.WRITE),
    ]
    refuses(bench.dispatch(bindings=views), "does not hold one row")
    buffer.release()
    assert bench.device.info()["allocated_bytes"] == before


def test_make_params_wants_every_field_and_no_other():
    with pytest.raises(DeviceError, match="RowsParams has fields"):
        make_params("RowsParams", rows_var=0)
    with pytest.raises(DeviceError, match="RowsParams has fields"):
        make_params("RowsParams", rows_var=0, dim=1, size=2)


# --- submit and wait ---


@pytest.mark.parametrize("variables", [(ROWS + 1,), (-1,), (2**31 - 1,), (1, 0, 0, 0, 0, 0, 0, -1)])
def test_vars_that_the_buffers_cannot_hold_are_refused(program, variables):
    with pytest.raises(DeviceError, match=r"vars\[\d\] is "):
        program.submit(*variables)
    program.run(ROWS)


def test_the_smallest_binding_limits_the_rows(bench):
    program = bench.binding(1, View(bench.b, 0, 2 * ROW_BYTES + 4)).finish()
    program.run(2)
    with pytest.raises(DeviceError, match=r"vars\[0\] is 3, the bound buffers hold 0 to 2"):
        program.submit(3)
    program.close()


@pytest.mark.parametrize("first, count", [(-1, 1), (0, 2), (1, 1), (0, 0), (0, -1), (2**31 - 1, 2)])
def test_a_range_outside_the_program_is_refused(program, first, count):
    with pytest.raises(DeviceError, match="are not in a program of 1"):
        program.submit(1, first=first, count=count)


def test_more_vars_than_a_step_has_are_refused(program):
    with pytest.raises(DeviceError, match="at most 8"):
        program.submit(*[1] * 9)


def test_a_second_submit_is_busy_until_the_first_is_waited_for(bench, program):
    other = bench.dispatch().finish()
    program.submit(ROWS)
    for waiting in (program, other):
        with pytest.raises(DeviceError, match="a replay is in flight"):
            waiting.submit(ROWS)
    program.wait()
    other.run(ROWS)
    other.close()


def test_a_wait_without_a_submit_is_refused(bench, program):
    other = bench.dispatch().finish()
    with pytest.raises(DeviceError, match="no replay in flight"):
        program.wait()
    program.submit(1)
    with pytest.raises(DeviceError, match="no replay in flight"):
        other.wait()
    program.wait()
    with pytest.raises(DeviceError, match="no replay in flight"):
        program.wait()
    other.close()


def test_closing_a_program_in_flight_waits_for_it(bench):
    program = bench.dispatch().finish()
    bench.c.array(np.float32)[:] = 7
    bench.a.array(np.float32)[:] = 0
    program.submit(ROWS)
    program.close()
    assert (bench.c.array(np.float32) == 0).all()
    again = bench.dispatch().finish()
    again.run(ROWS)
    again.close()


def test_a_closed_program_runs_no_more(bench):
    program = bench.dispatch().finish()
    program.close()
    program.close()
    with pytest.raises(DeviceError, match="no program"):
        program.run(1)
    with pytest.raises(DeviceError):
        program.wait()


def test_a_program_keeps_a_released_buffer(bench):
    device = bench.device
    before = device.info()["allocated_bytes"]
    buffer = device.create(ROWS * ROW_BYTES)
    buffer.array(np.float32)[:] = 3.0
    program = bench.binding(1, View.of(buffer)).finish()
    buffer_id = buffer.id
    buffer.release()
    # What is created next must not take the memory or the id of one that is still in use.
    newcomer = device.create(ROWS * ROW_BYTES)
    newcomer.array(np.float32)[:] = -50.0
    bench.a.array(np.float32)[:] = 100.0
    program.run(ROWS)
    assert newcomer.id != buffer_id and (bench.c.array(np.float32) == 300.0).all()
    newcomer.release()
    assert device.info()["allocated_bytes"] == before + ROWS * ROW_BYTES
    program.close()
    assert device.info()["allocated_bytes"] == before


def test_one_program_may_end_while_another_uses_the_same_buffer(bench):
    buffer = bench.device.create(ROWS * ROW_BYTES)
    first, second = (bench.binding(1, View.of(buffer)).finish() for _ in range(2))
    buffer.release()
    first.close()
    second.run(ROWS)
    second.close()


def test_a_program_outlives_no_device(open_fresh):
    device = open_fresh()
    bench = Bench(device)
    program = bench.dispatch().finish()
    program.close()
    device.close()
    device.close()
    with pytest.raises(DeviceError):
        device.create(16)
    with pytest.raises(DeviceError):
        device.info()


# --- dump ---


def test_dump_has_a_line_for_every_dispatch(bench):
    recorder = bench.dispatch(label="first")
    ops.silu_mul(recorder, View.of(bench.c), View.of(bench.b), View.of(bench.a, 32), DIM)
    program = recorder.finish()
    lines = program.dump().splitlines()
    a, b, c = bench.a.id, bench.b.id, bench.c.id
    assert lines == [
        f"   0   silu_mul first r{a}+0:128 r{b}+0:128 w{c}+0:128",
        f"   1 | silu_mul r{c}+0:128 r{b}+0:128 w{a}+32:96",
    ]
    assert len(program) == 2
    program.close()
