"""Shared slabs by a device of the test's own: where they lie, what digests see, who is refused."""

import hashlib
import mmap
import os
import tempfile

import numpy as np
import pytest

from marlin.device.slabs import PrivateSlabs, SharedSlabs
from marlin.errors import DeviceError, SharedWeightsError

MIB = 1 << 20


class Memory:
    """A Buffer over bytes."""

    def __init__(self, data):
        self.data = data

    def array(self, dtype):
        return np.frombuffer(self.data, dtype)


class Device:
    """Maps files for real and wraps memory; notes what it was asked."""

    def __init__(self, num_threads=2):
        self.num_threads, self.asked = num_threads, []

    def info(self):
        return {"num_threads": self.num_threads}

    def create(self, num_bytes):
        self.asked.append(("create", num_bytes))
        return Memory(bytearray(num_bytes))

    def map(self, path, offset, num_bytes):
        self.asked.append(("map", offset, num_bytes))
        with open(path, "rb") as file:
            file.seek(offset)
            return Memory(file.read(num_bytes))

    def wrap(self, memory):
        self.asked.append(("wrap", len(memory)))
        return Memory(memory)


@pytest.fixture
def fd():
    with tempfile.TemporaryFile() as file:
        yield file.fileno()


def filled(fd, sizes, device=None, files=b"files", byte=7):
    slabs = SharedSlabs(device or Device(), fd, filled=False)
    for index, size in enumerate(sizes):
        made = slabs.new(size)
        made.data[:] = bytes([byte + index]) * size
    slabs.settle(files)
    return slabs


def reader(fd, sizes, device=None):
    slabs = SharedSlabs(device or Device(), fd, filled=True)
    return slabs, [slabs.new(size) for size in sizes]


def test_slabs_of_a_file_begin_at_multiples_of_two_mebibytes(fd):
    device = Device()
    filled(fd, [1, 2 * MIB, 2 * MIB + 1], device)
    assert device.asked == [("wrap", 1), ("wrap", 2 * MIB), ("wrap", 2 * MIB + 1)]
    assert os.fstat(fd).st_size == 8 * MIB + 4 * 32  # the digests stand behind
    device = Device()
    slabs, found = reader(fd, [1, 2 * MIB, 2 * MIB + 1], device)
    assert device.asked == [
        ("map", 0, 1), ("map", 2 * MIB, 2 * MIB), ("map", 4 * MIB, 2 * MIB + 1),
    ]  # fmt: skip
    assert [bytes(slab.data[:1]) for slab in found] == [b"\7", b"\10", b"\11"]
    assert bytes(found[2].data[-1:]) == b"\11"
    slabs.settle(b"files")
    assert slabs.filled and not SharedSlabs(device, fd, False).filled


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("changed", [0, 1, 2])
def test_a_slab_that_changed_is_named(fd, num_threads, changed):
    sizes = [10, 20, 30]
    filled(fd, sizes, Device(num_threads))
    os.pwrite(fd, b"\0", 2 * MIB * changed + sizes[changed] - 1)
    slabs, _ = reader(fd, sizes, Device(num_threads))
    with pytest.raises(SharedWeightsError) as caught:
        slabs.settle(b"files")
    said = f"the weights that workers share have changed: part {changed + 1} of 3"
    assert caught.value.message == said


def test_other_files_are_told_from_those_that_the_writer_read(fd):
    filled(fd, [10])
    slabs, _ = reader(fd, [10])
    with pytest.raises(SharedWeightsError) as caught:
        slabs.settle(b"others")
    said = "the weights that workers share have changed: the model's files"
    assert caught.value.message == said


@pytest.mark.parametrize(
    ("size", "place", "is_seen"),
    [
        (100, 0, True),
        (100, 99, True),
        (4096, 4095, True),
        (2 * MIB, 4095, True),
        (2 * MIB, 4096, False),
        (2 * MIB, MIB, True),
        (2 * MIB, MIB + 4095, True),
        (2 * MIB, MIB + 4096, False),
        (2 * MIB, 2 * MIB - 4096, True),
        (2 * MIB, 2 * MIB - 4097, False),
        (2 * MIB, 2 * MIB - 1, True),
    ],
)
def test_of_mapped_files_a_page_of_each_mebibyte_and_the_last_is_seen(
    fd, tmp_path, size, place, is_seen
):
    path = tmp_path / "model"
    path.write_bytes(bytes(size))
    writer = SharedSlabs(Device(), fd, filled=False)
    assert len(writer.map(path, 0, size).data) == size
    writer.settle(b"")
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(b"\1")
    slabs = SharedSlabs(Device(), fd, filled=True)
    slabs.map(path, 0, size)
    if is_seen:
        with pytest.raises(SharedWeightsError, match="the model's files"):
            slabs.settle(b"")
    else:
        slabs.settle(b"")


def test_of_a_large_file_256_pages_are_seen():
    size = 600 * MIB
    data = mmap.mmap(-1, size)  # never touched but where it is read
    slabs = SharedSlabs(Device(), -1, filled=False)
    slabs._mapped.append(Memory(data))
    expected = hashlib.sha256(b"x" + bytes(4096) * (256 + 1))
    assert slabs._digest_of_files(b"x") == expected.digest()


def test_a_file_without_room_is_said_with_its_size(fd, monkeypatch):
    slabs = SharedSlabs(Device(), fd, filled=False)

    def fail(_fd, _size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("marlin.device.slabs.os.ftruncate", fail)
    with pytest.raises(DeviceError) as caught:
        slabs.new(3 * MIB)
    said = "no room for 4 MiB of weights that workers share: No space left on device"
    assert caught.value.message == said


def test_a_process_of_its_own_has_slabs_in_its_memory(tmp_path):
    device = Device()
    slabs = PrivateSlabs(device)
    path = tmp_path / "model"
    path.write_bytes(b"abcdef")
    slabs.new(5)
    assert slabs.map(path, 2, 3).data == b"cde"
    slabs.settle(b"")
    assert device.asked == [("create", 5), ("map", 2, 3)] and not slabs.filled
