"""The CPU runtime from Python: one kernel of a .metal file on numpy arrays.

Mirrors runtime/msl_rt.h. Arrays are the buffers themselves: a kernel writes into them.
"""

import ctypes
import os
from contextlib import contextmanager

import numpy as np

from msl import build

MAX_BINDINGS = 31
TEXT_BYTES = 1000


class KernelError(Exception):
    """A dispatch that the runtime refused or stopped; the message names the kernel."""


class _Binding(ctypes.Structure):
    _fields_ = [("pointer", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class _Dispatch(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_uint32 * 3),
        ("threads_mode", ctypes.c_int),
        ("buffers", _Binding * MAX_BINDINGS),
        ("threadgroup_lengths", ctypes.c_uint32 * MAX_BINDINGS),
    ]


class _Stats(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in ("switches", "threads", "barriers", "simd_ops", "tg_bytes")
    ]


class Runtime:
    """The runtime library; one for a process, because kernel libraries share its threads."""

    def __init__(self, path):
        pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
        signatures = {
            "msl_library_open": (pointer, [text, text, size]),
            "msl_library_count": (ctypes.c_int, [pointer]),
            "msl_library_name": (text, [pointer, ctypes.c_int]),
            "msl_library_find": (ctypes.c_int, [pointer, text]),
            "msl_kernel_max_threads": (ctypes.c_int, [pointer, ctypes.c_int]),
            "msl_library_set_constant": (
                ctypes.c_int,
                [pointer, ctypes.c_int, text, pointer, size],
            ),
            "msl_library_clear_constants": (None, [pointer]),
            "msl_dispatch": (
                ctypes.c_int,
                [pointer, ctypes.c_int, ctypes.POINTER(_Dispatch), text, size],
            ),
            "msl_last_stats": (None, [ctypes.POINTER(_Stats)]),
        }
        self.library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        for name, (result, arguments) in signatures.items():
            function = getattr(self.library, name)
            function.restype, function.argtypes = result, arguments


class Library:
    """The kernels of one built .metal file (build.library)."""

    def __init__(self, runtime, path):
        self._functions = runtime.library
        message = ctypes.create_string_buffer(TEXT_BYTES)
        opened = self._functions.msl_library_open(str(path).encode(), message, TEXT_BYTES)
        if not opened:
            raise KernelError(message.value.decode())
        self._handle = opened

    @property
    def kernels(self):
        count = self._functions.msl_library_count(self._handle)
        names = (self._functions.msl_library_name(self._handle, i) for i in range(count))
        return [name.decode() for name in names]

    def max_threads(self, name):
        """The most threads that a threadgroup of the kernel may have."""
        return self._functions.msl_kernel_max_threads(self._handle, self._find(name))

    def set_constants(self, **values):
        """Give function constants numpy scalars of their types; all others become undefined."""
        self._functions.msl_library_clear_constants(self._handle)
        for name, value in values.items():
            array = np.asarray(value)
            failed = self._functions.msl_library_set_constant(
                self._handle, -1, name.encode(), array.ctypes.data, array.nbytes
            )
            if failed:
                raise KernelError(f"{name}: no such function constant of {array.nbytes} bytes")

    def run(self, name, grid, threads, *buffers, threadgroup=(), whole_groups=True):
        """Run a kernel and wait.

        Args:
            grid: up to three sizes; threadgroups, or threads unless `whole_groups`.
            threads: up to three sizes, threads a threadgroup.
            buffers: contiguous numpy arrays by [[buffer(n)]]; None is not bound.
            threadgroup: bytes by [[threadgroup(n)]].

        Raises:
            KernelError: what the runtime found wrong.
        """
        dispatch = _Dispatch(threads_mode=int(not whole_groups))
        dispatch.grid[:] = (*grid, 1, 1, 1)[:3]
        dispatch.threads[:] = (*threads, 1, 1, 1)[:3]
        for index, buffer in enumerate(buffers):
            if buffer is not None:
                assert buffer.flags.c_contiguous, f"buffer {index} is not contiguous"
                dispatch.buffers[index] = _Binding(buffer.ctypes.data, buffer.nbytes)
        for index, length in enumerate(threadgroup):
            dispatch.threadgroup_lengths[index] = length
        message = ctypes.create_string_buffer(TEXT_BYTES)
        failed = self._functions.msl_dispatch(
            self._handle, self._find(name), ctypes.byref(dispatch), message, TEXT_BYTES
        )
        if failed:
            raise KernelError(message.value.decode())

    def stats(self):
        """Counts of the last dispatch, by the names of msl_stats."""
        stats = _Stats()
        self._functions.msl_last_stats(ctypes.byref(stats))
        return {name: getattr(stats, name) for name, _ in _Stats._fields_}

    def _find(self, name):
        index = self._functions.msl_library_find(self._handle, name.encode())
        if index < 0:
            raise KernelError(f"no kernel {name!r}")
        return index


def load(path, cache, **options):
    """Build a .metal file under `cache` and load it: a Library. Options: build_library's."""
    runtime = Runtime(build.runtime(cache, options.get("sanitize")))
    return Library(runtime, build.library(path, cache, **options))


@contextmanager
def thread_order(order):
    """Run the dispatches inside with MSL_ORDER=`order`: asc, desc or random:SEED."""
    before = os.environ.get("MSL_ORDER")
    os.environ["MSL_ORDER"] = order
    try:
        yield
    finally:
        if before is None:
            del os.environ["MSL_ORDER"]
        else:
            os.environ["MSL_ORDER"] = before
