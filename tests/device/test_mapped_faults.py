"""A mapped file that is truncated: one sentence and the process's end, and never SIGBUS."""

import signal
import subprocess
import sys

import pytest

READ = """
import os, sys, signal
import numpy as np
from marlin.device.device import Device
path, how = sys.argv[1:]
pages = 64
with open(path, "wb") as file:
    file.write(bytes(range(256)) * 16 * pages)
device = Device(2, kind="cpu")
mapped = device.map(path, 100, 4096 * pages - 100)
assert mapped.array(np.uint8)[-1] == 255
if how == "released":
    mapped.release()
    mapped = device.map(path, 0, 4096)
if how != "elsewhere":
    os.truncate(path, 4096)
if how in ("elsewhere", "released"):
    import mmap
    other = path + ".other"
    with open(other, "wb") as file:
        file.write(bytes(8192))
    with open(other, "rb") as file:
        own = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    os.truncate(other, 0)
    print(own[4096])
print(mapped.array(np.uint8)[:3996].sum())
sys.stdout.flush()
print(mapped.array(np.uint8).sum())
"""


def run(path, how):
    return subprocess.run(
        [sys.executable, "-c", READ, str(path), how], capture_output=True, text=True, check=False
    )


def test_a_page_that_is_gone_ends_the_process_with_a_sentence(tmp_path):
    done = run(tmp_path / "model.safetensors", "truncated")
    assert done.returncode == 1
    # What is still there can be read.
    assert done.stdout == f"{sum(range(256)) * 16 - sum(range(100))}\n"
    assert done.stderr == (
        "metal-marlin: model.safetensors cannot be read any more:"
        " it was truncated while it was in use\n"
    )


@pytest.mark.parametrize("how", ["elsewhere", "released"])
def test_a_fault_that_is_not_of_a_mapped_file_stays_a_fault(how, tmp_path):
    done = run(tmp_path / "model.safetensors", how)
    assert (done.returncode, done.stderr) == (-signal.SIGBUS, "")
