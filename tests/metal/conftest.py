"""The shaders one by one and the simulated Metal device, for this folder's tests."""

import ctypes
import functools

import pytest
from msl import simt
from shader import Shader


@pytest.fixture(scope="session")
def shader(request):
    """Open a .metal file by its name; built once for the machine, as long as it does not change."""
    cache = request.config.cache.mkdir("shaders")
    return functools.cache(lambda name: Shader(name, cache))


@pytest.fixture(params=["asc", "desc", "random:7"])
def any_order(request):
    """Each order in which the threads of a group may run."""
    with simt.thread_order(request.param):
        yield


@pytest.fixture(scope="session")
def metal_device(simulated_metal):
    """A Device of kind "metal" on the simulated Metal, for tests that leave it as it was."""
    device = simulated_metal.open()
    yield device
    device.close()


@pytest.fixture
def fresh(simulated_metal):
    """Open devices that are closed at the end."""
    opened = []

    def open_device(**options):
        opened.append(simulated_metal.open(**options))
        return opened[-1]

    yield open_device
    for device in opened:
        device.close()


@pytest.fixture
def sim(metal_device):
    """The simulation's own counters; see sim/sim.h."""
    return Counters(metal_device.library)


class Counters:
    """What the simulated Metal counts.

    Attributes:
        NAMES: of the events, in the order of sim.h.
    """

    NAMES = (
        "compiled",
        "from_archive",
        "set_buffer",
        "barrier",
        "resident",
        "requested",
        "saved",
        "committed",
        "blits",
        "dispatched",
    )

    def __init__(self, library):
        self._library = library
        for name, arguments in (
            ("sim_live_objects", []),
            ("sim_live_bytes", []),
            ("sim_counted", [ctypes.c_int]),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = ctypes.c_long, arguments

    @property
    def objects(self):
        """Objects alive."""
        return self._library.sim_live_objects()

    @property
    def bytes(self):
        """Bytes of the buffers alive."""
        return self._library.sim_live_bytes()

    def __getitem__(self, name):
        return self._library.sim_counted(self.NAMES.index(name))
