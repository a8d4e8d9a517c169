"""A model whose kernels a GPU cannot make is served by the CPU, unless the GPU was asked for."""

import pytest
from tiny_models import random_tensors, tiny_config, write_folder

from marlin.device import abi
from marlin.device.device import Device
from marlin.engine import load
from marlin.errors import DeviceError, ModelFileError, NoMemoryError

FAILS = "kernel rms_norm cannot be made: Compiler encountered an internal error"


@pytest.fixture
def opened(monkeypatch):
    """The devices that are opened; those called metal make no program."""
    devices = []

    def open_device(num_threads, isa, kind, num_processes):
        device = Device(1, library_path=abi.library_path("cpu"), kind="cpu")
        device.kind = kind or "metal"
        devices.append(device)
        return device

    def refuse(runner, prefill):
        if runner.device.kind == "metal":
            raise DeviceError(FAILS)
        return record(runner, prefill)

    record = load.Runner._record
    monkeypatch.setattr(load, "Device", open_device)
    monkeypatch.setattr(load.Runner, "_record", refuse)
    yield devices
    assert all(device.handle is None for device in devices), "a device was left open"


@pytest.fixture
def folder(tmp_path):
    config = tiny_config(vocab_size=5000, qk_norm=True, architecture="qwen3")
    return write_folder(tmp_path / "model", config, random_tensors(config, 0))


def test_the_default_falls_back_to_the_cpu_and_says_so(opened, folder, caplog):
    with pytest.raises(ModelFileError, match="tokenizer"):  # which this folder has none of
        load.load_model(folder)
    assert [device.kind for device in opened] == ["metal", "cpu"]
    assert f"the CPU computes, many times slower than the GPU: {FAILS}" in caplog.messages


def test_metal_that_was_asked_for_is_refused(opened, folder):
    with pytest.raises(DeviceError, match="cannot be made"):
        load.load_model(folder, device_kind="metal")
    assert [device.kind for device in opened] == ["metal"]


def test_a_gpu_whose_memory_does_not_suffice_is_not_replaced_by_the_cpu(
    opened, folder, monkeypatch
):
    def refuse(_, prefill):
        raise NoMemoryError("no memory for 8 GB")

    monkeypatch.setattr(load.Runner, "_record", refuse)
    with pytest.raises(NoMemoryError, match="8 GB"):
        load.load_model(folder)
    assert [device.kind for device in opened] == ["metal"]


def test_a_cpu_that_fails_is_not_tried_again(opened, folder, monkeypatch):
    def refuse(_, prefill):
        raise DeviceError(FAILS)

    monkeypatch.setattr(load.Runner, "_record", refuse)
    with pytest.raises(DeviceError, match="cannot be made"):
        load.load_model(folder)
    assert [device.kind for device in opened] == ["metal", "cpu"]
