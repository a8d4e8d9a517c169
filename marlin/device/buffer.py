"""A buffer of a device, and the host's view of its memory, which cannot leave it."""

import ctypes

import numpy as np

from marlin.errors import DeviceError


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
            view = f"a view of {count * dtype.itemsize} bytes at {offset}"
            raise DeviceError(f"{view} leaves a buffer of {self.num_bytes}")
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
