"""Devices for the kernel tests: every instruction set of this kind of machine, on one thread and on
more.

A set that this processor or build lacks is skipped with what the device says about it.
"""

import platform

import pytest

from marlin.device.device import Device
from marlin.errors import DeviceError

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


class DevicePool:
    """Devices opened once for the whole run, by instruction set and number of threads."""

    def __init__(self):
        self._devices = {}

    def get(self, isa, num_threads=1):
        """The Device, or a skip that says why there is none."""
        if (isa, num_threads) not in self._devices:
            try:
                self._devices[isa, num_threads] = Device(num_threads=num_threads, isa=isa)
            except DeviceError as error:
                if "does not have the instruction set" not in str(error):
                    raise
                pytest.skip(f"{isa}: {error}")
        return self._devices[isa, num_threads]

    def close(self):
        for device in self._devices.values():
            device.close()


@pytest.fixture(scope="session")
def devices():
    pool = DevicePool()
    yield pool
    pool.close()


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request):
    """Each instruction set, for tests that choose their own number of threads."""
    return request.param


@pytest.fixture(params=DEVICES, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def device(request, devices):
    """Each instruction set on one thread and on several."""
    return devices.get(*request.param)


@pytest.fixture
def any_device(devices):
    """The best set on two threads, for what does not depend on either."""
    return devices.get(None, 2)
