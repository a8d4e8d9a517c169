"""Weight files that are longer than the largest buffer of a GPU."""

import os

import numpy as np
import pytest
from tiny_models import logits_by_chunks, random_tensors, random_tokens, running, tiny_config
from tiny_models import write_folder as write_plain

from marlin.commands.quantize import quantize
from marlin.device.device import Device
from marlin.errors import DeviceError
from marlin.models.checkpoint import open_checkpoint
from marlin.models.model import Model
from marlin.weights.native import NativeEntry, NativeWriter
from marlin.weights.safetensors_file import SafetensorsFolder

GIB = 1 << 30
PAGE_BYTES = os.sysconf("SC_PAGESIZE")
PROMPT = random_tokens(20, 97, seed=1)


def plain_folder(path):
    config = tiny_config(vocab_size=2000)
    return write_plain(path / "plain", config, random_tensors(config, seed=0))


def native_folder(path):
    quantize(plain_folder(path), path / "native", "int4", 32, progress=lambda done, total: None)
    return str(path / "native")


@pytest.fixture
def mapped(monkeypatch):
    """mapped(limit): devices refuse buffers over so many bytes; returns the list of what is
    mapped, (offset, bytes)."""

    def limit_buffers(limit):
        info, really_map, ranges = Device.info, Device.map, []

        def map_within_limit(device, path, offset, num_bytes):
            if num_bytes > limit:
                raise DeviceError(f"a buffer of {num_bytes} bytes: the largest has {limit}")
            ranges.append((offset, num_bytes))
            return really_map(device, path, offset, num_bytes)

        monkeypatch.setattr(Device, "info", lambda dev: info(dev) | {"max_buffer_bytes": limit})
        monkeypatch.setattr(Device, "map", map_within_limit)
        return ranges

    return limit_buffers


def logits(folder):
    with running(folder) as runner:
        return logits_by_chunks(runner, PROMPT, [len(PROMPT)])[len(PROMPT) - 1]


def sizes_of(folder):
    """(bytes of the weight file, of its largest tensor)."""
    tensors = SafetensorsFolder(folder).tensors.values()
    return os.path.getsize(f"{folder}/model.safetensors"), max(t.num_bytes for t in tensors)


@pytest.mark.parametrize("write", [plain_folder, native_folder])
def test_a_file_longer_than_the_largest_buffer_is_mapped_tensor_by_tensor(tmp_path, mapped, write):
    folder = write(tmp_path)
    expected = logits(folder)
    file_bytes, largest = sizes_of(folder)
    assert largest < file_bytes // 2
    ranges = mapped(largest)
    np.testing.assert_array_equal(logits(folder), expected)
    assert len(ranges) == len(set(ranges)) > 1


@pytest.mark.parametrize(("room", "num_ranges"), [(0, 1), (-1, 16)])
def test_a_file_as_long_as_the_largest_buffer_is_mapped_whole(tmp_path, mapped, room, num_ranges):
    folder = plain_folder(tmp_path)
    ranges = mapped(sizes_of(folder)[0] + room)
    logits(folder)
    assert len(ranges) == num_ranges


def test_pages_that_two_tensors_share_are_counted_for_both(tmp_path, mapped):
    folder = plain_folder(tmp_path)
    ranges = mapped(sizes_of(folder)[1])
    device = Device(num_threads=1, kind="cpu")
    checkpoint = open_checkpoint(folder, device)
    counted = checkpoint.weight_bytes
    Model(checkpoint)
    info = device.info()
    device.close()
    first_pages = [offset // PAGE_BYTES for offset, _ in ranges]
    last_pages = [(offset + num_bytes - 1) // PAGE_BYTES for offset, num_bytes in ranges]
    num_pages = sum(last_pages) - sum(first_pages) + len(ranges)
    held = info["allocated_bytes"] + num_pages * PAGE_BYTES
    # The RoPE frequencies are the device's, too.
    assert held - 4096 <= counted <= held + 20 * PAGE_BYTES


def test_a_shard_with_header_and_padding_fits_the_largest_buffer_of_a_mac_with_8_gb(tmp_path):
    entries = [NativeEntry(f"w{i}", (1 << 28,), "F32") for i in range(8)]  # 1 GiB each, and empty
    NativeWriter(tmp_path, entries).close()
    sizes = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    assert sum(sizes) > 8 * GIB and max(sizes) < 4 * GIB
