"""Devices: which there are here, opening one, and making its buffers. Native code checks what it is
asked for. Knows nothing of kernels (program.py) or models.
"""

import ctypes
import logging
import os
import platform
import sys
import weakref
from pathlib import Path

import numpy as np

from marlin.config import MAX_THREADS
from marlin.device import abi
from marlin.device.buffer import Buffer
from marlin.errors import ConfigError, DeviceError, NoDeviceError, NoMemoryError

# Where Linux says how much processor time a container may use (cgroup v2: "quota period" in µs).
CPU_QUOTA_FILE = "/sys/fs/cgroup/cpu.max"

logger = logging.getLogger(__name__)

# The first macOS whose compiler knows MSL 3.1 (metal_shim/build/build_metal.py).
METAL_MACOS = 14


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


def why_not(kind):
    """Why no device of a kind can be opened here, as far as that shows without trying; None: it can
    be tried."""
    if kind == "metal" and sys.platform != "darwin":
        return "Metal is a Mac's, and this is none"
    if kind == "metal":
        version = _macos_version()
        if 0 < int(version.partition(".")[0] or 0) < METAL_MACOS:
            return f"the shaders need macOS {METAL_MACOS}, and this is {version}"
        if _sysctl("sysctl.proc_translated")[:1] == b"\1":
            return "Rosetta translates this Python; one for arm64 sees the GPU as it is"
    path = abi.library_path(kind)
    if not path.exists():
        return f"{path.name} was not built; run `python3 metal_shim/build/build.py` or reinstall"
    return None


def _macos_version():
    """Such as "14.1"; "" where it is not told. An old interpreter takes every macOS for 10.16."""
    told = platform.mac_ver()[0]
    if told != "10.16":
        return told
    return _sysctl("kern.osproductversion").rstrip(b"\0").decode("ascii", "replace")


def _sysctl(name):
    """The bytes of one of macOS' settings; none where there is no such."""
    read = getattr(ctypes.CDLL(None), "sysctlbyname", None)
    value, size = ctypes.create_string_buffer(64), ctypes.c_size_t(64)
    if read is None or read(name.encode(), value, ctypes.byref(size), None, ctypes.c_size_t(0)):
        return b""
    return value.raw[: size.value]


def expected_kind():
    """What Device() opens: "metal" on a Mac whose library was built (and that has a GPU, which only
    opening it shows), else "cpu"."""
    return "cpu" if why_not("metal") else "metal"


class Device:
    """One opened native device.

    Args:
        num_threads: a CPU's workers, up to MAX_THREADS; None is usable_cores() over num_processes.
        isa: a CPU's instruction set, one of abi.INSTRUCTION_SETS; None is the best here.
        library_path: the native library; None is the one that was built with the package.
        kind: "cpu" or "metal"; None is "metal" on a Mac where that opens, else "cpu", and then the
            log says why ("cpu" for a library that is given).
        num_processes: processes that divide this machine's cores.

    Attributes:
        kind: "cpu" or "metal".

    Raises:
        NoDeviceError: there is no device of that kind here.
        ConfigError: threads or an instruction set for a kind that has none.
        DeviceError: the library is missing or of another version, or refuses the options.
    """

    def __init__(self, num_threads=None, isa=None, library_path=None, kind=None, num_processes=1):
        self.handle = None
        self.programs = weakref.WeakSet()
        self._wrapped = []
        self.kind = kind or ("cpu" if library_path else expected_kind())
        try:
            self._open(library_path, num_threads, isa, num_processes)
        except DeviceError as error:
            if kind or library_path or self.kind == "cpu":
                raise
            logger.warning("the CPU computes, many times slower than the GPU: %s", error.message)
            self.kind = "cpu"
            self._open(None, num_threads, isa, num_processes)
        if self.kind == "metal" and (note := self.info().get("note")):
            logger.warning("%s", note)

    def _open(self, path, num_threads, isa, num_processes):
        if self.kind == "cpu":
            num_threads = num_threads or max(1, min(MAX_THREADS, usable_cores() // num_processes))
        elif self.kind not in abi.DEVICE_KINDS:
            raise DeviceError(f"no device is a {self.kind!r}; there are cpu and metal")
        else:
            _refuse_cpu_options(num_threads, isa)
            if path is None and (reason := why_not(self.kind)):
                raise NoDeviceError(f"there is no {self.kind} device: {reason}")
        self.library = _load(path or abi.library_path(self.kind))
        options = abi.DeviceOptions(num_threads or 0, (isa or "").encode())
        handle = ctypes.c_void_p()
        code = self.library.marlin_device_open(ctypes.byref(options), ctypes.byref(handle))
        if code == abi.ENODEV:
            reason = self.library.marlin_last_error().decode("utf-8", "replace")
            raise NoDeviceError(f"there is no {self.kind} device: {reason}")
        self.check(code)
        self.handle = handle

    def check(self, code):
        """Pass on a result >= 0; raise DeviceError with the library's text for a negative one."""
        if code < 0:
            kind = NoMemoryError if code == abi.ENOMEM else DeviceError
            raise kind(self.library.marlin_last_error().decode("utf-8", "replace"))
        return code

    def info(self):
        """Kind, name, instruction set, threads and memory figures (marlin_device_info), a dict;
        a text that is empty is left out."""
        info = abi.DeviceInfo()
        self.check(self.library.marlin_device_describe(self.handle, ctypes.byref(info)))
        values = {name: getattr(info, name) for name, *_ in info._fields_}
        texts = {
            k: v.decode("utf-8", "replace") if isinstance(v, bytes) else v
            for k, v in values.items()
            if v != b""
        }
        return {"kind": self.kind, **texts}

    def keep_resident(self):
        """Ask the system not to take the buffers' memory from a GPU that idles; it forgets in about
        a second. Does nothing on a CPU."""
        self.check(self.library.marlin_device_keep_resident(self.handle))

    def create(self, num_bytes):
        """New zeroed Buffer."""
        code = self.library.marlin_buffer_create(self.handle, num_bytes)
        return Buffer(self, self.check(code), num_bytes)

    def create_from(self, array):
        """New Buffer with a copy of a numpy array."""
        array = np.ascontiguousarray(array)
        buffer = self.create(max(array.nbytes, 1))
        buffer.array(array.dtype, array.shape)[...] = array
        return buffer

    def map(self, path, offset, num_bytes):
        """Read-only Buffer over a part of a file, not read until it is used."""
        code = self.library.marlin_buffer_map(self.handle, os.fsencode(path), offset, num_bytes)
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


def _refuse_cpu_options(num_threads, isa):
    for option, value in (("--threads", num_threads), ("--isa", isa)):
        if value:
            raise ConfigError(
                f"{option} is the CPU device's, and this is the metal device: leave it out, or "
                "choose --device cpu"
            )


def _load(path):
    """Load a native library; messages have its name alone, since reports are made to be shown."""
    path = Path(path)
    try:
        library = abi.load_library(path)
    except (OSError, AttributeError) as error:
        # The loader's words begin with the path; a Mac's also have it behind symbolic links.
        reason = str(error).replace(str(path.resolve()), path.name).replace(str(path), path.name)
        raise DeviceError(
            f"native library {path.name} cannot be loaded ({reason}); "
            "build it with `python3 metal_shim/build/build.py` or reinstall the package"
        ) from error
    version = library.marlin_abi_version()
    if version != abi.ABI_VERSION:
        versions = f"ABI version {version}, not {abi.ABI_VERSION}"
        raise DeviceError(f"{path.name} has {versions}: rebuild it")
    return library
