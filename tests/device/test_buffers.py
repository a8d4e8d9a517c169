"""Opening a device; creating, mapping and releasing its buffers."""

import numpy as np
import pytest

from marlin.device.device import Device
from marlin.errors import DeviceError


@pytest.fixture
def fresh(open_fresh):
    device = open_fresh()
    yield device
    device.close()


def test_a_created_buffer_is_zeroed_and_counted(fresh):
    buffer = fresh.create(100_001)
    assert not buffer.array(np.uint8).any() and buffer.num_bytes == 100_001
    assert fresh.info()["allocated_bytes"] == 100_001
    buffer.release()
    assert fresh.info()["allocated_bytes"] == 0


def test_a_reused_id_begins_zeroed(fresh):
    first = fresh.create(64)
    first.array(np.uint8)[:] = 255
    first_id = first.id
    first.release()
    second = fresh.create(64)
    assert second.id == first_id and not second.array(np.uint8).any()


@pytest.mark.parametrize("num_bytes", [0, -1, -(2**63), 2**62])
def test_a_size_that_cannot_be_had_is_an_error(fresh, num_bytes):
    with pytest.raises(DeviceError, match=str(num_bytes)):
        fresh.create(num_bytes)
    assert fresh.info()["allocated_bytes"] == 0


def test_create_from_copies_any_array(fresh):
    array = np.arange(12, dtype=np.int16).reshape(3, 4)[:, ::2]
    buffer = fresh.create_from(array)
    array[:] = 0
    assert buffer.array(np.int16, (3, 2)).tolist() == [[0, 2], [4, 6], [8, 10]]


@pytest.mark.parametrize("shape, offset", [((5,), 0), ((4,), 4), ((1,), 16), ((1,), -4)])
def test_a_view_that_leaves_its_buffer_is_an_error(fresh, shape, offset):
    buffer = fresh.create(16)
    with pytest.raises(DeviceError, match="leaves a buffer of 16"):
        buffer.array(np.float32, shape, offset)


def test_a_released_buffer_has_no_array(fresh):
    buffer = fresh.create(16)
    buffer.release()
    with pytest.raises(DeviceError):
        buffer.array(np.uint8)


def test_a_second_release_takes_no_other_buffer_away(fresh):
    buffer = fresh.create(16)
    buffer.release()
    other = fresh.create(16)
    with pytest.raises(DeviceError):
        buffer.release()
    assert fresh.info()["allocated_bytes"] == 16
    other.release()


# --- files ---


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a file with spaces é"
    path.write_bytes(bytes(i % 251 for i in range(20_000)))
    return path


@pytest.mark.parametrize("offset, num_bytes", [(0, 20_000), (1, 7), (4096, 4096), (12_345, 7_655)])
def test_a_mapped_range_is_what_the_file_holds_there(fresh, file, offset, num_bytes):
    buffer = fresh.map(file, offset, num_bytes)
    assert buffer.array(np.uint8).tobytes() == file.read_bytes()[offset : offset + num_bytes]
    info = fresh.info()
    assert (info["mapped_bytes"], info["allocated_bytes"]) == (num_bytes, 0)
    buffer.release()
    assert fresh.info()["mapped_bytes"] == 0


def test_a_mapped_file_may_be_deleted(fresh, file):
    buffer = fresh.map(file, 0, 20_000)
    file.unlink()
    assert buffer.array(np.uint8)[250] == 250


@pytest.mark.parametrize(
    "offset, num_bytes",
    [(0, 20_001), (20_000, 1), (19_999, 2), (2**62, 1), (1, 2**63 - 1), (2**63 - 1, 2**63 - 1)],
)
def test_a_range_past_the_files_end_is_an_error(fresh, file, offset, num_bytes):
    with pytest.raises(DeviceError, match=f"does not hold {num_bytes} bytes at {offset}"):
        fresh.map(file, offset, num_bytes)


@pytest.mark.parametrize("offset, num_bytes", [(0, 0), (0, -1), (-1, 10), (-(2**63), 1)])
def test_a_range_that_is_none_is_an_error(fresh, file, offset, num_bytes):
    with pytest.raises(DeviceError, match="cannot map"):
        fresh.map(file, offset, num_bytes)


def test_a_missing_file_is_named(fresh, tmp_path):
    with pytest.raises(DeviceError, match="no-such-file: No such file"):
        fresh.map(tmp_path / "no-such-file", 0, 16)


def test_a_folder_is_no_file(fresh, tmp_path):
    with pytest.raises(DeviceError, match="does not hold 16 bytes"):
        fresh.map(tmp_path, 0, 16)


def test_an_empty_file_cannot_be_mapped(fresh, tmp_path):
    path = tmp_path / "empty"
    path.touch()
    with pytest.raises(DeviceError, match="does not hold 1 bytes at 0"):
        fresh.map(path, 0, 1)


# --- the device itself ---


def test_a_device_says_what_it_is(isa, devices):
    info = devices.get(isa, 2).info()
    assert (info["isa"], info["num_threads"]) == (isa, 2)
    assert info["page_bytes"] >= 4096 and info["memory_bytes"] > 1 << 28 and info["name"]


@pytest.mark.parametrize("num_threads", [-1, 257, 2**31 - 1])
def test_a_number_of_threads_out_of_range_is_an_error(num_threads):
    with pytest.raises(DeviceError, match=f"{num_threads} threads"):
        Device(num_threads=num_threads, kind="cpu")


@pytest.mark.parametrize("name", ["sse2", "AVX2", "scalar ", "x" * 16])
def test_an_unknown_instruction_set_is_named(name):
    with pytest.raises(DeviceError, match=f"does not have the instruction set {name}"):
        Device(num_threads=1, isa=name, kind="cpu")


def test_a_missing_library_says_how_to_build_it(tmp_path):
    with pytest.raises(DeviceError, match="build.py"):
        Device(library_path=tmp_path / "libmarlin_cpu.so")


def test_a_file_that_is_no_library_is_an_error(tmp_path):
    path = tmp_path / "libmarlin_cpu.so"
    path.write_bytes(b"not a library")
    with pytest.raises(DeviceError, match="cannot be loaded"):
        Device(library_path=path)


def test_two_devices_share_nothing():
    first, second = Device(num_threads=1, kind="cpu"), Device(num_threads=2, kind="cpu")
    first.create(64)
    assert second.info()["allocated_bytes"] == 0
    first.close()
    second.create(64).array(np.uint8)[:] = 1
    second.close()
