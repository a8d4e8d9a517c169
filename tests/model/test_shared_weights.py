"""Weights that one process repacks into a file and others map: the same numbers, held once."""

import os
import shutil
import tempfile

import numpy as np
import pytest
from gguf_models import write_gguf
from reference_models import build
from tiny_models import open_device, weight_values

from marlin.device.ops import Weight
from marlin.device.slabs import PrivateSlabs, SharedSlabs
from marlin.errors import DeviceError, SharedWeightsError
from marlin.files.snapshot import Snapshot
from marlin.models.checkpoint import open_checkpoint
from marlin.models.model import Model

# Every way into a slab: repacked blocks, and dense rows put in another order.
KINDS = {".v_proj.": "Q4_0", ".q_proj.": "F16", ".k_proj.": "F32", ".down_proj.": "Q6_K"}
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "head_dim": 32}


@pytest.fixture
def path(tmp_path):
    def kind_of(name):
        return next((kind for part, kind in KINDS.items() if part in name), "Q4_1")

    write_gguf(tmp_path / "m.gguf", build("llama", **SIZES), kind_of)
    return tmp_path / "m.gguf"


@pytest.fixture
def fd():
    with tempfile.TemporaryFile() as file:
        yield file.fileno()


@pytest.fixture
def load():
    """load(path, fd, filled) -> (device, Model); private weights without an fd."""
    devices = []

    def run(path, fd=None, filled=False):
        device = open_device(None)
        devices.append(device)
        slabs = PrivateSlabs(device) if fd is None else SharedSlabs(device, fd, filled)
        model = Model(open_checkpoint(path, device, slabs))
        slabs.settle(Snapshot(path).encode())
        return device, model

    yield run
    for device in devices:
        device.close()


def weights(model):
    return [weight for weight in model.weights.values() if isinstance(weight, Weight)]


def test_a_reader_finds_what_the_writer_made_of_the_model(path, fd, load):
    _, private = load(path)
    writer, _ = load(path, fd)
    _, mapped = load(path, fd, filled=True)
    writer.close()
    for expected, found in zip(weights(private), weights(mapped), strict=True):
        np.testing.assert_array_equal(weight_values(found), weight_values(expected))


def test_a_reader_allocates_less_than_the_weights(path, fd, load):
    private, model = load(path)
    load(path, fd)
    reader, _ = load(path, fd, filled=True)
    sizes = [w.data.num_bytes for w in weights(model)]
    assert reader.info()["allocated_bytes"] < sum(sizes) / 10
    assert private.info()["allocated_bytes"] > sum(sizes)


def test_a_file_of_another_model_is_refused(path, fd, load):
    os.ftruncate(fd, 4096)
    with pytest.raises(DeviceError, match="does not hold"):
        load(path, fd, filled=True)


@pytest.mark.parametrize("place", [0, 4097, -1], ids=["first byte", "inside", "digest"])
def test_a_byte_that_changed_after_the_writer_is_noticed_by_the_reader(path, fd, load, place):
    load(path, fd)
    load(path, fd, filled=True)
    place %= os.fstat(fd).st_size
    (byte,) = os.pread(fd, 1, place)
    os.pwrite(fd, bytes([byte ^ 1]), place)
    with pytest.raises(SharedWeightsError, match="that workers share have changed: part 1 of 1"):
        load(path, fd, filled=True)
    os.pwrite(fd, bytes([byte]), place)
    load(path, fd, filled=True)


def test_every_slab_is_looked_at(fd):
    def run(filled):
        device = open_device(None)
        slabs = SharedSlabs(device, fd, filled)
        made = [slabs.new(num_bytes) for num_bytes in (4096, 3 << 20, 100, 4096, 4096)]
        slabs.settle(b"")
        device.close()
        return made

    assert len(run(filled=False)) == 5
    run(filled=True)
    os.pwrite(fd, b"!", 8 << 20)  # of 2, 4, 2, 2 and 2 MiB
    with pytest.raises(SharedWeightsError, match="part 4 of 5"):
        run(filled=True)


@pytest.fixture
def dense(tmp_path):
    """A model that is used where it lies."""
    write_gguf(tmp_path / "dense.gguf", build("llama", **SIZES), lambda name: "F32")
    return tmp_path / "dense.gguf"


@pytest.mark.parametrize("place", [0.5, 1.0], ids=["its middle", "its end"])
def test_a_file_that_is_mapped_is_compared_with_what_the_writer_mapped(fd, dense, load, place):
    load(dense, fd)
    load(dense, fd, filled=True)
    before = dense.stat()
    with open(dense, "r+b") as file:
        at = int((before.st_size - 1) * place)
        pages = range(0, before.st_size, 4096) if place < 1 else [at]
        for start in pages:  # a page of each 1 MiB is looked at
            file.seek(start if start else at)
            (byte,) = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
    os.utime(dense, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(SharedWeightsError, match="have changed: the model's files"):
        load(dense, fd, filled=True)


def test_a_file_that_was_replaced_by_its_copy_is_another_file(fd, path, load):
    load(path, fd)
    os.replace(shutil.copy(path, f"{path}.new"), path)
    with pytest.raises(SharedWeightsError, match="have changed: the model's files"):
        load(path, fd, filled=True)
