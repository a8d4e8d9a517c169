"""An NVIDIA GPU through its driver, libcuda: memory, kernels, timing.

Owns the ctypes calls. Knows nothing of Metal, of how kernels are compiled or of what they do.
"""

import ctypes
import time
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p

import numpy as np

# CUdevice_attribute of cuda.h
ATTRIBUTE_MULTIPROCESSORS = 16
ATTRIBUTE_MAJOR, ATTRIBUTE_MINOR = 75, 76
PAUSE_S = 0.3
# CU_STREAM_NON_BLOCKING, CU_EVENT_DISABLE_TIMING
NON_BLOCKING, DISABLE_TIMING = 1, 2
# CU_STREAM_CAPTURE_MODE_RELAXED
CAPTURE_RELAXED = 2


class CudaError(Exception):
    """The driver is missing, or refused."""


class Gpu:
    """The first GPU, a context and a stream on it. Memory lives until release() or process end."""

    def __init__(self):
        try:
            self._cuda = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise CudaError("no NVIDIA driver: libcuda.so.1 cannot be loaded") from error
        self._call("cuInit", 0)
        device, context = c_int(), c_void_p()
        self._stream, self._side, self._fork, self._join = (c_void_p() for _ in range(4))
        self._call("cuDeviceGet", byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", byref(context), device)
        self._call("cuCtxSetCurrent", context)
        for stream in (self._stream, self._side):
            self._call("cuStreamCreate", byref(stream), NON_BLOCKING)
        for event in (self._fork, self._join):
            self._call("cuEventCreate", byref(event), DISABLE_TIMING)
        name = ctypes.create_string_buffer(100)
        self._call("cuDeviceGetName", name, 100, device)
        self.name = name.value.decode()
        numbers = [ATTRIBUTE_MULTIPROCESSORS, ATTRIBUTE_MAJOR, ATTRIBUTE_MINOR]
        values = [self._attribute(device, number) for number in numbers]
        self.multiprocessors, self.architecture = values[0], f"sm_{values[1]}{values[2]}"

    def _call(self, function, *arguments):
        status = getattr(self._cuda, function)(*arguments)
        if status != 0:
            text = c_char_p()
            self._cuda.cuGetErrorString(status, byref(text))
            raise CudaError(f"{function}: {(text.value or b'?').decode()} ({status})")

    def _attribute(self, device, number):
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), number, device)
        return value.value

    def allocate(self, num_bytes):
        """Address of new memory, aligned to 256 bytes, whatever was in it."""
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), c_size_t(max(num_bytes, 1)))
        return address.value

    def release(self, address):
        self._call("cuMemFree_v2", c_uint64(address))

    def upload(self, array, address=None):
        """Copy an array to an address, or to new memory: the address."""
        array = np.ascontiguousarray(array)
        address = self.allocate(array.nbytes) if address is None else address
        source = c_void_p(array.ctypes.data)
        self._call("cuMemcpyHtoD_v2", c_uint64(address), source, c_size_t(array.nbytes))
        return address

    def download(self, address, dtype, shape):
        """A copy of device memory once the GPU is idle."""
        self.synchronize()
        array = np.empty(shape, dtype)
        target = c_void_p(array.ctypes.data)
        self._call("cuMemcpyDtoH_v2", target, c_uint64(address), c_size_t(array.nbytes))
        return array

    def copy(self, target, source, num_bytes):
        """Device to device, in the stream's order."""
        addresses = c_uint64(target), c_uint64(source)
        self._call("cuMemcpyDtoDAsync_v2", *addresses, c_size_t(num_bytes), self._stream)

    def load(self, cubin):
        """A module of compiled kernels."""
        module = c_void_p()
        self._call("cuModuleLoadData", byref(module), cubin)
        return module

    def function(self, module, name):
        function = c_void_p()
        self._call("cuModuleGetFunction", byref(function), module, name.encode())
        return function

    def launch(self, function, blocks, threads, argument):
        """Queue one kernel whose only parameter is `argument`, a ctypes value passed by value;
        threads: of a block, in a row or on three axes."""
        shape = threads if isinstance(threads, tuple) else (threads, 1, 1)
        grid = [c_uint(count) for count in (*blocks, *shape)]
        parameters = (c_void_p * 1)(ctypes.addressof(argument))
        self._call("cuLaunchKernel", function, *grid, c_uint(0), self._stream, parameters, None)

    def both(self, first, second):
        """Queue what two functions queue, in no order between them."""
        self._call("cuEventRecord", self._fork, self._stream)
        self._call("cuStreamWaitEvent", self._side, self._fork, c_uint(0))
        first()
        self._stream, self._side = self._side, self._stream
        second()
        self._stream, self._side = self._side, self._stream
        self._call("cuEventRecord", self._join, self._side)
        self._call("cuStreamWaitEvent", self._stream, self._join, c_uint(0))

    def synchronize(self):
        self._call("cuStreamSynchronize", self._stream)

    def seconds(self, queue, repeats=15):
        """Median time of what queue() queues, captured once as a CUDA graph, after 3 warm-ups.

        A pause comes first: a kernel that draws the GPU's full power lowers its clock, and the next
        one would be measured at that.
        """
        time.sleep(PAUSE_S)
        queue()
        self.synchronize()
        graph, ready = c_void_p(), c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream, CAPTURE_RELAXED)
        queue()
        self._call("cuStreamEndCapture", self._stream, byref(graph))
        self._call("cuGraphInstantiateWithFlags", byref(ready), graph, c_uint64(0))
        events = [c_void_p(), c_void_p()]
        for event in events:
            self._call("cuEventCreate", byref(event), 0)
        times = [self._replay(ready, *events) for _ in range(3 + repeats)][3:]
        for event in events:
            self._call("cuEventDestroy_v2", event)
        self._call("cuGraphExecDestroy", ready)
        self._call("cuGraphDestroy", graph)
        return float(np.median(times))

    def _replay(self, ready, start, end):
        self._call("cuEventRecord", start, self._stream)
        self._call("cuGraphLaunch", ready, self._stream)
        self._call("cuEventRecord", end, self._stream)
        self._call("cuEventSynchronize", end)
        milliseconds = c_float()
        self._call("cuEventElapsedTime", byref(milliseconds), start, end)
        return milliseconds.value * 1e-3
