"""Records no caller should make, run where a crash would show: each is refused or runs within its buffers."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_runner import BUFFER_BYTES, ROOT, RecordRunner

from marlin.device import abi
from marlin.device.device import Device
from marlin.device.program import make_params

PACKED = ("int8", "int4", "fp4")
DENSE = ("f32", "f16", "bf16")
# Kernel: parameter struct, number of bindings, as their heads in metal_shim say.
KERNELS = {
    **{f"embed_{kind}": ("EmbedParams", 5) for kind in (*PACKED, *DENSE)},
    **{f"matvec_{kind}": ("LinearParams", 6) for kind in (*PACKED, *DENSE)},
    "rms_norm": ("RmsNormParams", 4),
    "rope_table": ("RopeTableParams", 3),
    "rope_kv_write": ("RopeKvParams", 7),
    "silu_mul": ("RowsParams", 3),
    "gather_rows": ("RowsParams", 3),
    "attention": ("AttentionParams", 6),
    "attention_split": ("AttentionParams", 6),
    "attention_combine": ("AttentionParams", 6),
    "penalize": ("SampleParams", 4),
    "sample": ("SampleParams", 3),
    "repack": ("RepackParams", 4),
}
LARGEST_BUFFER = 4
MAPPED_FILE = 5


@pytest.fixture(scope="module")
def runner():
    runner = RecordRunner()
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def kernel_ids():
    device = Device(num_threads=1)
    yield {name: device.library.marlin_kernel_find(name.encode()) for name in KERNELS}
    device.close()


def record_of(kernel_id, params, bindings):
    """abi.DISPATCH with a grid of one; bindings are (buffer, access, offset, bytes)."""
    record = np.zeros((), abi.DISPATCH)
    record["kernel"], record["num_bindings"] = kernel_id, len(bindings)
    record["grid_value"], record["grid_var"] = 1, -1
    record["param_bytes"] = params.nbytes
    record["params"][: params.nbytes] = np.frombuffer(params.tobytes(), np.uint8)
    for i, binding in enumerate(bindings):
        record["bindings"][i] = binding
    return record


def whole(buffer_id, access):
    return (buffer_id, access, 0, BUFFER_BYTES[buffer_id - 1])


def test_a_kernel_does_not_write_a_file_that_is_bound_for_reading(runner, kernel_ids):
    params = make_params("RowsParams", rows_var=0, dim=8)
    bindings = [whole(3, abi.READ), whole(3, abi.READ), (MAPPED_FILE, abi.READ, 0, 4096)]
    records = np.array([record_of(kernel_ids["silu_mul"], params, bindings)])
    assert runner.run(records, [1]).startswith("error: dispatch 0 (silu_mul): binding 2")


@pytest.mark.parametrize(
    "num_blocks, block_size",
    [(2**32 - 1, 2**32 - 16), (2**31, 2**32 - 16), (2**32 - 1, 16), (1, 2**31), (2**28, 16)],
)
def test_a_cache_whose_size_overflows_is_refused(runner, kernel_ids, num_blocks, block_size):
    sizes = {"num_heads": 1, "num_kv_heads": 1, "head_dim": 16, "table_stride": 1, "window": 0}
    sizes |= {"num_blocks": num_blocks, "block_size": block_size, "max_splits": 1, "scale": 1.0}
    params = make_params("AttentionParams", tiles_var=0, splits_var=0, **sizes)
    bindings = [whole(4, abi.READ)] * 4 + [whole(1, abi.READ), whole(4, abi.WRITE)]
    records = np.array([record_of(kernel_ids["attention"], params, bindings)])
    assert runner.run(records, [1]).startswith("error: dispatch 0 (attention)")


# --- random records ---

SIZES = st.one_of(
    st.integers(0, 9),
    st.sampled_from([15, 16, 17, 32, 33, 48, 64, 96, 128, 256, 1024, 4096, 2**20, 2**24]),
    st.sampled_from([2**31 - 1, 2**31, 2**32 - 16, 2**32 - 1]),
)
VARS = st.lists(st.one_of(st.integers(0, 5), st.sampled_from([-1, 64, 2**31 - 1])), max_size=4)


def mostly(value, *others):
    """The value nine times in ten."""
    return st.integers(0, 9).flatmap(lambda i: st.just(value) if i else st.sampled_from(others))


@st.composite
def bindings(draw):
    buffer_id = draw(mostly(LARGEST_BUFFER, 1, 2, 3, MAPPED_FILE, 0, 6, -1))
    size = BUFFER_BYTES[buffer_id - 1] if 1 <= buffer_id <= len(BUFFER_BYTES) else 4096
    offset = draw(mostly(0, 1, 2, 4, 64, size, -4, 2**63 - 4))
    num_bytes = draw(mostly(size - offset, 0, 4, 64, size // 2, size + 4, -1, 2**63 - 1))
    num_bytes = max(-(2**63), min(num_bytes, 2**63 - 1))
    return buffer_id, draw(mostly(3, 0, 1, 2)), offset, num_bytes


@st.composite
def dispatches(draw, kernel_ids):
    name = draw(st.sampled_from(sorted(KERNELS)))
    struct, num_bindings = KERNELS[name]
    params = np.zeros((), abi.PARAMS[struct])
    for field in params.dtype.names:
        kind = params.dtype[field].kind
        if kind == "f":
            params[field] = draw(st.sampled_from([0.0, 1.0, -1.0, 1e-38, 3e38, np.inf, np.nan]))
        elif kind == "i":
            params[field] = draw(mostly(0, 1, 2, -1, 8, 2**31 - 1))
        else:
            params[field] = draw(SIZES)
    bound = [draw(bindings()) for _ in range(num_bindings)]
    record = record_of(kernel_ids[name], params, bound)
    record["barrier"] = draw(st.integers(0, 1))
    record["param_bytes"] = draw(mostly(params.nbytes, 0, 4, 64, 65, -1))
    record["num_bindings"] = draw(mostly(num_bindings, 0, 1, 12, 13, -1, 2**31 - 1))
    record["grid_value"][1] = draw(mostly(1, 0, -1, 2**31 - 1))
    record["grid_var"][2] = draw(mostly(-1, 0, 7, 8, -(2**31)))
    return record


# Derandomized: the same records in every run, so that a failure is one that can be run again.
@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_likely_records_run_or_are_refused(runner, kernel_ids, data):
    records = np.array(data.draw(st.lists(dispatches(kernel_ids), min_size=1, max_size=3)))
    answer = runner.run(records, data.draw(VARS))
    assert answer == "ok" or answer.startswith("error: ")


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(raw=st.binary(min_size=abi.DISPATCH.itemsize, max_size=abi.DISPATCH.itemsize), variables=VARS)
def test_records_of_random_bytes_are_refused(runner, raw, variables):
    records = np.frombuffer(raw, abi.DISPATCH).copy()
    records["kernel"] %= 32
    assert runner.run(records, variables).startswith("error: ")


# --- the order of ends ---

ENDS = {
    "a program closed after its device": "device.close(); program.close()",
    "a program run after its device": "device.close(); fails(program.run, 1)",
    "a program waited for after its device": "program.submit(1); device.close(); fails(program.wait)",
    "a program in flight with its device": "program.submit(1); device.close()",
    "a buffer released after its device": "device.close(); fails(buffer.release)",
    "an array of a released buffer": "buffer.release(); fails(buffer.array, 'u1')",
    "an array of a closed device": "device.close(); fails(buffer.array, 'u1')",
}
SCRIPT = """
from marlin.device import ops
from marlin.device.device import Device
from marlin.device.program import Recorder, View
from marlin.errors import DeviceError

def fails(call, *arguments):
    try:
        call(*arguments)
    except DeviceError:
        return
    raise AssertionError("it went through")

device = Device(num_threads=2)
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
