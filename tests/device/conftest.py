"""Devices for the kernel tests: every instruction set of this kind of machine, on one thread and on
more, and Metal: a Mac's GPU, elsewhere the simulated one (tests/metal).

A set that this processor or build lacks is skipped with what the device says about it, and so is
Metal.
"""

import platform
import sys

import pytest

from marlin.device.device import Device
from marlin.errors import DeviceError, NoDeviceError

INSTRUCTION_SETS = {
    "x86_64": ("avx512", "avx2", "scalar"),
    "amd64": ("avx512", "avx2", "scalar"),
    "aarch64": ("i8mm", "neon", "scalar"),
    "arm64": ("i8mm", "neon", "scalar"),
}.get(platform.machine().lower(), ("scalar",))
# Two and three threads: units that divide evenly among workers, and units that do not.
DEVICES = [
    (isa, num_threads)
    for index, isa in enumerate(INSTRUCTION_SETS)
    for num_threads in (1, 2 + index % 2)
]
METAL = ("metal", 0)


class DevicePool:
    """Devices opened once for the whole run, by instruction set and number of threads.

    Args:
        open_metal: opens a Metal device, or skips.
    """

    def __init__(self, open_metal):
        self.open_metal = open_metal
        self._devices = {}

    def get(self, isa, num_threads=1):
        """The Device, or a skip that says why there is none; METAL's numbers give Metal's."""
        if (isa, num_threads) == METAL and METAL not in self._devices:
            self._devices[METAL] = self.open_metal()
        if (isa, num_threads) not in self._devices:
            try:
                self._devices[isa, num_threads] = Device(num_threads, isa, kind="cpu")
            except DeviceError as error:
                if "does not have the instruction set" not in str(error):
                    raise
                pytest.skip(f"{isa}: {error}")
        return self._devices[isa, num_threads]

    def close(self):
        for device in self._devices.values():
            device.close()


@pytest.fixture(scope="session")
def open_metal(request):
    """Opens a Metal device: the GPU's on a Mac, elsewhere the simulated one. Skips if it cannot."""

    def open_gpu():
        try:
            return Device(kind="metal")
        except NoDeviceError as error:
            pytest.skip(str(error))

    if sys.platform == "darwin":
        return open_gpu
    return lambda: request.getfixturevalue("simulated_metal").open()


@pytest.fixture(scope="session")
def devices(open_metal):
    pool = DevicePool(open_metal)
    yield pool
    pool.close()


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request):
    """Each instruction set, for tests that choose their own number of threads."""
    return request.param


@pytest.fixture(params=[*DEVICES, METAL], ids=lambda pair: f"{pair[0]}-{pair[1]}")
def device(request, devices):
    """Each instruction set on one thread and on several, and Metal."""
    return devices.get(*request.param)


@pytest.fixture(params=DEVICES, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def cpu_device(request, devices):
    """Each instruction set on one thread and on several, for what only the CPU does."""
    return devices.get(*request.param)


@pytest.fixture(params=["cpu", "metal"])
def kind(request):
    """Each kind of device."""
    return request.param


@pytest.fixture
def each_kind(kind, devices):
    """A device of each kind, for what does not depend on instruction sets or threads."""
    return devices.get(*METAL) if kind == "metal" else devices.get(None, 2)


@pytest.fixture
def open_fresh(kind, open_metal):
    """Opens a device of each kind that no other test has used; the caller closes it."""
    return open_metal if kind == "metal" else lambda: Device(num_threads=1, kind="cpu")


@pytest.fixture
def any_device(devices):
    """The best set on two threads, for what does not depend on either."""
    return devices.get(None, 2)
