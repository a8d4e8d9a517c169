"""A device and its buffers. Knows nothing of kernels (program.py) or models."""

import ctypes
import os
import weakref

import numpy as np

from marlin.device import abi
from marlin.errors import DeviceError

# Where Linux says how much processor time a container may use (cgroup v2: "quota period" in µs).
CPU_QUOTA_FILE = "/sys/fs/cgroup/cpu.max"


def usable_cores(quota_file=CPU_QUOTA_FILE):
    """Cores that this process may keep busy: its affinity, and its container's quota, rounded up.

    More workers than that would spin while another of them is kept off its core.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        with open(quota_file, encoding="ascii") as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        return count
    if quota == "max":
        return count
    return max(1, min(count, -(-int(quota) // int(period))))


class Buffer:
    """Device memory by id. `array()` is the host's view of it.

    Attributes:
        id: what dispatches name it by; None once released, since the device uses ids again.
        num_bytes: its length.
    """

    def __init__(self, device, buffer_id, num_bytes):
        self.device = device
        self.id = buffer_id
        self.num_bytes = num_bytes
        self.address = device.library.marlin_buffer_contents(device.handle, buffer_id)

    def array(self, dtype, shape=None, offset=0):
        """numpy view of the buffer; valid until release().

        Args:
            dtype: element type.
            shape: dims; None is all that fits, flat.
            offset: bytes from the buffer's start.
        """
        dtype = np.dtype(dtype)
        if shape is None:
            shape = ((self.num_bytes - offset) // dtype.itemsize,)
        count = int(np.prod(shape, dtype=np.int64))
        if offset < 0 or offset + count * dtype.itemsize > self.num_bytes:
            raise DeviceError(
                f"a view of {count * dtype.itemsize} bytes at {offset} leaves a buffer of "
                f"{self.num_bytes}"
            )
        self.check_held()
        raw = (ctypes.c_char * (count * dtype.itemsize)).from_address(self.address + offset)
        return np.frombuffer(raw, dtype).reshape(shape)

    def release(self):
        """Give up the buffer, once; programs that use it keep its memory alive."""
        self.check_held()
        self.device.check(self.device.library.marlin_buffer_release(self.device.handle, self.id))
        self.id = None

    def check_held(self):
        """Raise DeviceError once the buffer has been released, or its device closed."""
        if self.device.handle is None:
            raise DeviceError("the device was closed")
        if self.id is None:
            raise DeviceError(f"a buffer of {self.num_bytes} bytes was released already")


class Device:
    """One opened native device.

    Args:
        num_threads: workers; None is usable_cores().
        isa: instruction set to use ("avx512", "avx2", "i8mm", "neon", "scalar"); None is the best
            here.
        library_path: the native library; None is the one that was built with the package.

    Raises:
        DeviceError: the library is missing or of another version, or refuses the options.
    """

    def __init__(self, num_threads=None, isa=None, library_path=None):
        path = library_path or abi.library_path()
        try:
            self.library = abi.load_library(path)
        except (OSError, AttributeError) as error:
            raise DeviceError(
                f"native library {path} cannot be loaded ({error}); "
                "build it with `python3 metal_shim/build.py` or reinstall the package"
            ) from error
        version = self.library.marlin_abi_version()
        if version != abi.ABI_VERSION:
            raise DeviceError(
                f"{path} has ABI version {version}, not {abi.ABI_VERSION}: rebuild it"
            )
        options = abi.DeviceOptions(num_threads or usable_cores(), (isa or "").encode())
        handle = ctypes.c_void_p()
        self.handle = None
        self.check(self.library.marlin_device_open(ctypes.byref(options), ctypes.byref(handle)))
        self.handle = handle
        self.programs = weakref.WeakSet()
        self._wrapped = []

    def check(self, code):
        """Pass on a result >= 0; raise DeviceError with the library's text for a negative one."""
        if code < 0:
            raise DeviceError(self.library.marlin_last_error().decode("utf-8", "replace"))
        return code

    def info(self):
        """Name, instruction set, threads and memory figures (marlin_device_info) as a dict."""
        info = abi.DeviceInfo()
        self.check(self.library.marlin_device_describe(self.handle, ctypes.byref(info)))
        values = {name: getattr(info, name) for name, _ in info._fields_}
        return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}

    def create(self, num_bytes):
        """New zeroed Buffer."""
        return Buffer(
            self, self.check(self.library.marlin_buffer_create(self.handle, num_bytes)), num_bytes
        )

    def create_from(self, array):
        """New Buffer with a copy of a numpy array."""
        array = np.ascontiguousarray(array)
        buffer = self.create(max(array.nbytes, 1))
        buffer.array(array.dtype, array.shape)[...] = array
        return buffer

    def map(self, path, offset, num_bytes):
        """Read-only Buffer over a part of a file, not read until it is used."""
        code = self.library.marlin_buffer_map(self.handle, str(path).encode(), offset, num_bytes)
        return Buffer(self, self.check(code), num_bytes)

    def wrap(self, memory):
        """Buffer over a writable mmap or bytearray, which is held until the device closes."""
        raw = (ctypes.c_char * len(memory)).from_buffer(memory)
        address = ctypes.addressof(raw)
        code = self.library.marlin_buffer_wrap(self.handle, address, len(memory))
        buffer = Buffer(self, self.check(code), len(memory))
        self._wrapped.append(raw)
        return buffer

    def close(self):
        """Destroy the device's programs, then free it and its buffers. Idempotent."""
        if self.handle is not None:
            for program in list(self.programs):
                program.close()
            self.library.marlin_device_close(self.handle)
            self.handle = None
            self._wrapped.clear()
