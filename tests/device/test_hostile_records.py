"""Records no caller should make, run where a crash would show: each is refused or stays within its
buffers."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_list import read_kernels
from record_runner import ALL_ONE, BUFFER_BYTES, MAPPED_FILE, ROOT, RecordRunner

from marlin.device import abi
from marlin.device.device import Device, why_not
from marlin.device.program import make_params
from marlin.weights.kinds import KINDS, NEVER, PACKED_KINDS

# Kernel: parameter struct, number of bindings. A unit of a probe reads more than a buffer here has.
KERNELS = {
    name: (row.params, row.bindings)
    for name, row in read_kernels().items()
    if not name.startswith("probe_")
}
# Parameters with which every kernel runs on whole buffers, one row of it at least.
SOUND = {
    **{"rows_var": 0, "rows_per_var": 1, "vocab_size": 32, "dim": 64, "group_size": 32, "flags": 2},
    **{"n": 32, "k": 256, "has_delta": 1, "eps": 1e-5, "half_dim": 8, "scale": 1.0},
    **{"num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "block_size": 16, "num_blocks": 4},
    **{"tiles_var": 0, "splits_var": 0, "table_stride": 4, "window": 0, "max_splits": 1},
    **{"type": 3, "permute_heads": 0},
    **{"adds": 0, "delta_scale": 1.0, "rotary_dim": 16, "interleaved": 0, "factor": 1.0},
    **{"softcap": 0.0, "position_scale": 0.0, "scale_tokens": 1, "cap": 0.0},
    **{"has_sinks": 1, "has_norms": 1, "kv_f32": 0},
    **{"num_experts": 2, "num_slots": 2, "x_slots": 1, "gating": 1, "normalizes": 1},
    **{"has_bias": 1, "bias": 1, "num_groups": 1, "kept_groups": 1, "epsilon": 0.0},
    **{"sequences_var": 0, "taps": 4, "row_floats": 192, "gated": 1, "silu": 1},
    **{"key_heads": 1, "value_heads": 2, "key_dim": 16, "value_dim": 16, "tiled": 0, "is_log": 1},
    **{"x_floats": 64, "y_floats": 64, "pieces": 2, "stride": 32, "start": 4, "width": 24},
    **{"y_start": 8, "latent_dim": 0, "nope_dim": 4, "rope_dim": 4, "rank": 8, "row_dim": 16},
    **{"y_start": 8, "activation": 0, "residual_scale": 1.0},
}
WITHOUT_BIAS = tuple(name for name in PACKED_KINDS if KINDS[name].bias == NEVER)


@pytest.fixture(scope="module", params=["cpu", "metal"])
def runner(request):
    """A process with each kind of device; off a Mac with the simulated Metal."""
    simulated = None
    if request.param == "metal" and sys.platform != "darwin":
        simulated = request.getfixturevalue("simulated_metal")
    elif request.param == "metal" and (reason := why_not("metal")):
        pytest.skip(reason)
    # Random records overlap as they please: the simulation would end the process for that.
    environment = simulated.environment | {"SIMMETAL_HAZARDS": "0"} if simulated else {}
    runner = RecordRunner(request.param, simulated and simulated.library, environment)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def kernel_ids():
    device = Device(num_threads=1, kind="cpu")
    yield {name: device.library.marlin_kernel_find(name.encode()) for name in KERNELS}
    device.close()


def record_of(kernel_id, params, bindings):
    """abi.DISPATCH; bindings are (buffer, access, offset, bytes)."""
    record = np.zeros((), abi.DISPATCH)
    record["kernel"], record["num_bindings"] = kernel_id, len(bindings)
    record["param_bytes"] = params.nbytes
    record["params"][: params.nbytes] = np.frombuffer(params.tobytes(), np.uint8)
    for i, binding in enumerate(bindings):
        record["bindings"][i] = binding
    return record


def whole(buffer_id, access=abi.READ | abi.WRITE):
    return (buffer_id, access, 0, BUFFER_BYTES)


def sound_record(kernel_ids, name, **changes):
    """A record of a kernel over buffers 1, 2, ... that runs; changes are parameters."""
    struct, num_bindings = KERNELS[name]
    values = SOUND | ({"flags": 0} if name.endswith(WITHOUT_BIAS) else {}) | changes
    values = {field: values[field] for field in abi.PARAMS[struct].names}
    bound = [whole(1 + i) for i in range(num_bindings)]
    if name == "attention_split":  # its output is larger than its input
        bound[0] = (1, abi.READ, 0, 4096)
    return record_of(kernel_ids[name], make_params(struct, **values), bound)


@pytest.mark.parametrize("name", KERNELS)
def test_the_records_that_the_random_ones_start_from_run(runner, kernel_ids, name):
    assert runner.run(np.array([sound_record(kernel_ids, name)]), [1]) == "ok"


def smallest_accepted(runner, record, index, seed):
    """Bytes of binding `index`, at the end of its buffer, with which the record still runs."""

    def runs(num_bytes):
        binding = record["bindings"][index]
        binding["offset"], binding["bytes"] = BUFFER_BYTES - num_bytes, num_bytes
        return runner.run(np.array([record]), [1], seed) == "ok"

    too_few, enough = -2, int(record["bindings"]["bytes"][index])
    while enough - too_few > 2:
        middle = (too_few + enough) // 4 * 2
        too_few, enough = (too_few, middle) if runs(middle) else (middle, enough)
    assert runs(enough)
    return enough


@pytest.mark.parametrize("seed", [0, ALL_ONE])
@pytest.mark.parametrize("name", KERNELS)
def test_no_kernel_touches_more_than_the_smallest_ranges_that_it_accepts(
    runner, kernel_ids, name, seed
):
    """Each range ends where a page begins that may not be touched: a byte more would be a crash.
    Ids of one are the last of a vocabulary, cache or list of two."""
    record = sound_record(kernel_ids, name, vocab_size=2, num_blocks=2, n=16)
    bindings = range(KERNELS[name][1])
    sizes = [smallest_accepted(runner, record, index, seed) for index in bindings]
    assert runner.run(np.array([record]), [1], seed) == "ok"
    assert sum(size > 0 for size in sizes) >= 2


@pytest.mark.parametrize("flags", [abi.NORMED | abi.GATED, abi.NORMED | abi.RESIDUAL])
@pytest.mark.parametrize("name", ["matvec_fused_int4", "matvec_fused_int8"])
def test_no_fused_layer_touches_more_than_it_asks_for(runner, kernel_ids, name, flags):
    flags |= abi.OUTPUT_BIAS | (abi.WEIGHT_BIAS if name.endswith("int4") else 0)
    record = sound_record(kernel_ids, name, n=16, flags=flags)
    sizes = [smallest_accepted(runner, record, i, 0) for i in range(KERNELS[name][1])]
    assert runner.run(np.array([record]), [1]) == "ok"
    assert sum(size > 0 for size in sizes) >= 8


@pytest.mark.parametrize("name", KERNELS)
def test_no_kernel_writes_a_file_that_is_bound_for_reading(runner, kernel_ids, name):
    for index in range(KERNELS[name][1]):
        record = sound_record(kernel_ids, name)
        record["bindings"][index] = whole(MAPPED_FILE, abi.READ)
        answer = runner.run(np.array([record]), [1])
        assert answer == "ok" or answer.startswith(f"error: dispatch 0 ({name})"), answer


@pytest.mark.parametrize("name", ["attention", "attention_split", "rope_kv_write"])
@pytest.mark.parametrize(
    "num_blocks, block_size",
    [(2**32 - 1, 2**32 - 16), (2**31, 2**32 - 16), (2**32 - 1, 16), (1, 2**31), (2**28, 16)],
)
def test_a_cache_whose_size_overflows_is_refused(runner, kernel_ids, name, num_blocks, block_size):
    record = sound_record(kernel_ids, name, num_blocks=num_blocks, block_size=block_size)
    answer = runner.run(np.array([record]), [1])
    assert answer.startswith(f"error: dispatch 0 ({name}): ") and "index" not in answer


@pytest.mark.parametrize(
    "name, written, index",
    [("sort_experts", 1, 0), ("sort_experts", 2, 0), ("matvec_experts_f32", 5, 6),
     ("matmul_experts_f32", 5, 7), ("attention", 5, 3), ("attention_split", 5, 4)],
)  # fmt: skip
def test_no_kernel_writes_over_the_indices_that_it_goes_by(
    runner, kernel_ids, name, written, index
):
    """What was checked of them would no longer be so when they are read again."""
    record = sound_record(kernel_ids, name)
    record["bindings"][written] = record["bindings"][index]
    answer = runner.run(np.array([record]), [8000])
    assert answer.startswith(f"error: dispatch 0 ({name}): binding {written} ")
    assert "lies over the indices" in answer


# --- random records ---

SIZES = st.one_of(
    st.integers(0, 9),
    st.sampled_from([15, 16, 17, 32, 33, 48, 64, 96, 128, 256, 1024, 4096, 2**20, 2**24]),
    st.sampled_from([2**31 - 1, 2**31, 2**32 - 16, 2**32 - 1]),
)
FLOATS = st.sampled_from([0.0, 1.0, -1.0, 1e-38, 3e38, np.inf, np.nan])
VARS = st.lists(st.sampled_from([1, 1, 2, 3, 0, 5, 64, -1, 2**31 - 1]), min_size=1, max_size=2)
SEEDS = st.sampled_from([0, 0, 0, -1, 1, 2, 3])
BINDING_VALUES = {
    "buffer": st.integers(-1, MAPPED_FILE + 1),
    "access": st.integers(0, 3),
    "offset": st.sampled_from([0, 1, 2, 4, 64, BUFFER_BYTES, -4, 2**63 - 4]),
    "bytes": st.sampled_from([0, 4, 64, 1024, BUFFER_BYTES, BUFFER_BYTES + 4, -1, 2**63 - 1]),
}
RECORD_VALUES = {
    "param_bytes": st.sampled_from([0, 4, 64, 80, 81, -1]),
    "num_bindings": st.sampled_from([0, 1, 12, 13, -1, 2**31 - 1]),
    "kernel": st.integers(-1, 40),
}


@st.composite
def dispatches(draw, kernel_ids):
    """A sound record with up to four things wrong, or only unusual."""
    name = draw(st.sampled_from(sorted(KERNELS)))
    struct, num_bindings = KERNELS[name]
    record = sound_record(kernel_ids, name)
    record["barrier"] = draw(st.integers(0, 1))
    params = record["params"][: abi.PARAMS[struct].itemsize].view(abi.PARAMS[struct])
    for _ in range(draw(st.integers(0, 4))):
        what = draw(st.sampled_from(["params", "params", "bindings", "bindings", "record"]))
        if what == "params":
            field = draw(st.sampled_from(params.dtype.names))
            kind = params.dtype[field].kind
            values = {"f": FLOATS, "u": SIZES, "i": st.sampled_from([0, 1, 7, 8, -1, 2**31 - 1])}
            params[field] = draw(values[kind])
        elif what == "bindings":
            field = draw(st.sampled_from(sorted(BINDING_VALUES)))
            index = draw(st.integers(0, num_bindings - 1))
            record["bindings"][field][index] = draw(BINDING_VALUES[field])
        else:
            field = draw(st.sampled_from(sorted(RECORD_VALUES)))
            record[field] = draw(RECORD_VALUES[field])
    return record


# Derandomized: the same records in every run, so that a failure is one that can be run again.
@settings(max_examples=600)
@given(data=st.data())
def test_likely_records_run_or_are_refused(runner, kernel_ids, data):
    records = np.array(data.draw(st.lists(dispatches(kernel_ids), min_size=1, max_size=3)))
    answer = runner.run(records, data.draw(VARS), data.draw(SEEDS))
    assert answer == "ok" or answer.startswith("error: ")


@settings(max_examples=100)
@given(raw=st.binary(min_size=abi.DISPATCH.itemsize, max_size=abi.DISPATCH.itemsize))
def test_records_of_random_bytes_are_refused(runner, raw):
    records = np.frombuffer(raw, abi.DISPATCH).copy()
    records["kernel"] %= 32
    assert runner.run(records, [1]).startswith("error: ")


# --- the order of ends ---

ENDS = {
    "a program closed after its device": "device.close(); program.close()",
    "a program run after its device": "device.close(); fails(program.run, 1)",
    "a wait after its device": "program.submit(1); device.close(); fails(program.wait)",
    "a program in flight with its device": "program.submit(1); device.close()",
    "a buffer released after its device": "device.close(); fails(buffer.release)",
    "an array of a released buffer": "buffer.release(); fails(buffer.array, 'u1')",
    "an array of a closed device": "device.close(); fails(buffer.array, 'u1')",
}
SCRIPT = """
from marlin.device import ops
from marlin.device.device import Device, why_not
from marlin.device.program import Recorder, View
from marlin.errors import DeviceError

def fails(call, *arguments):
    try:
        call(*arguments)
    except DeviceError:
        return
    raise AssertionError("it went through")

device = Device(num_threads=2, kind="cpu")
buffer = device.create(1 << 20)
recorder = Recorder(device)
ops.silu_mul(recorder, *[View.of(buffer)] * 3, 8)
program = recorder.finish()
program.run(1)
"""


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_things_may_end_in_any_order(end):
    command = [sys.executable, "-c", SCRIPT + end]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr[-1000:]
