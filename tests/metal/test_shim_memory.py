"""Memory of metal.m on the simulated Metal: what counts, what is refused, what stays resident."""

import mmap

import numpy as np
import pytest
from silu import DIM, silu_program

from marlin.device import ops
from marlin.device.program import Recorder, View
from marlin.errors import DeviceError

MIB = 1 << 20


def test_a_buffer_beyond_what_the_gpu_may_use_is_refused_with_both_numbers(fresh, monkeypatch):
    monkeypatch.setenv("SIMMETAL_WORKING_SET", str(MIB))
    device = fresh()
    held = device.create(MIB // 2)
    text = f"{MIB // 2 + 1} bytes: the GPU may use {MIB} bytes, and {MIB // 2} of them are taken"
    with pytest.raises(DeviceError, match=text):
        device.create(MIB // 2 + 1)
    assert device.info()["allocated_bytes"] == MIB // 2
    held.release()
    device.create(MIB // 2 + 1).release()


def test_mapped_and_wrapped_memory_counts_too(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("SIMMETAL_WORKING_SET", str(MIB))
    device, path = fresh(), tmp_path / "weights"
    path.write_bytes(bytes(MIB))
    device.map(path, 0, MIB // 2)
    device.wrap(mmap.mmap(-1, MIB // 4))
    for refused in (lambda: device.map(path, 1, MIB // 2), lambda: device.create(MIB // 2)):
        with pytest.raises(DeviceError, match=f"may use {MIB} bytes, and {3 * MIB // 4} of them"):
            refused()


def test_a_buffer_longer_than_the_gpus_longest_is_refused(fresh, monkeypatch):
    monkeypatch.setenv("SIMMETAL_MAX_BUFFER", str(MIB))
    with pytest.raises(DeviceError, match=f"{MIB + 1} bytes: this GPU's largest has {MIB}"):
        fresh().create(MIB + 1)


def test_memory_that_begins_within_a_page_cannot_be_wrapped(metal_device):
    memory = np.zeros(3 * mmap.PAGESIZE, np.uint8)
    address = memory.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE + mmap.PAGESIZE + 64
    code = metal_device.library.marlin_buffer_wrap(metal_device.handle, address, 64)
    with pytest.raises(DeviceError, match="within a page"):
        metal_device.check(code)


@pytest.mark.parametrize("offset", [0, 4, 4096, 5000])
def test_kernels_read_a_mapped_file_where_it_was_mapped(metal_device, tmp_path, offset):
    values = np.arange(4000, dtype=np.float32)
    path = tmp_path / "values"
    path.write_bytes(values.tobytes())
    mapped, rows = metal_device.map(path, offset, 4 * DIM), metal_device.create(4)
    out = metal_device.create(4 * DIM)
    recorder = Recorder(metal_device)
    ops.gather_rows(recorder, View.of(rows), View.of(mapped), View.of(out), DIM)
    program = recorder.finish()
    program.run(0, 0, 1)
    first = offset // 4
    np.testing.assert_array_equal(out.array(np.float32), values[first : first + DIM])
    program.close()


def test_buffers_are_kept_resident_while_they_live(metal_device, sim):
    before = sim["resident"]
    program, views = silu_program(metal_device)
    program.run(1)
    assert sim["resident"] == before + 2
    program.close()
    for view in views:
        view.buffer.release()
    assert sim["resident"] == before


def test_residency_is_asked_for_by_the_step_after_a_new_buffer_and_by_keep_resident(fresh, sim):
    device, before = fresh(), sim["requested"]
    program, _ = silu_program(device)
    for _ in range(3):
        program.run(1)
    assert sim["requested"] == before + 1
    device.keep_resident()
    device.keep_resident()
    assert sim["requested"] == before + 3
    program.run(1)
    assert sim["requested"] == before + 3


def test_the_first_request_is_followed_by_a_command_so_that_memory_goes_back(fresh, sim):
    """Also where nothing else ever runs; once."""
    device, before = fresh(), sim["blits"]
    device.create(64)
    device.keep_resident()
    device.keep_resident()
    assert sim["blits"] == before + 1


def test_buffers_that_no_step_has_used_yet_can_be_kept_resident(fresh, sim):
    device, before = fresh(), sim["resident"]
    device.create(64)
    device.keep_resident()
    assert sim["resident"] == before + 1


def test_an_older_system_has_no_residency_sets(fresh, sim, monkeypatch):
    monkeypatch.setenv("SIMMETAL_OLD_OS", "1")
    device, before = fresh(), (sim["resident"], sim["requested"])
    program, _ = silu_program(device)
    program.run(1)
    device.keep_resident()
    assert (sim["resident"], sim["requested"]) == before
