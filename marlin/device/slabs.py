"""Where repacked weights live: memory of this process alone, or a file that several processes map.

Hands out whole slabs and knows nothing of what is in them. The same calls give the same places in
the file, so a process that only reads finds what another wrote.
"""

import mmap
import os

# Slabs of a shared file begin at multiples of this: a page on every system, and a huge page.
_ALIGNMENT = 2 << 20


class PrivateSlabs:
    """Slabs in this process's own memory, zeroed."""

    filled = False

    def __init__(self, device):
        self._device = device

    def new(self, num_bytes):
        """A Buffer of num_bytes."""
        return self._device.create(num_bytes)


class SharedSlabs:
    """Slabs one after another in a file: written through, or mapped read-only.

    Args:
        device: an opened Device.
        fd: descriptor of the file, which is empty for the one process that fills it.
        filled: whether it is to be read only: another process has made the same calls before.
    """

    def __init__(self, device, fd, filled):
        self._device = device
        self._fd = fd
        self.filled = filled
        self._end = 0

    def new(self, num_bytes):
        """A Buffer of num_bytes: zeroed, or with what the writer put there.

        Raises:
            DeviceError: the file ends before it, so it was filled from another model.
        """
        start = self._end
        self._end += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        if self.filled:
            return self._device.map(f"/dev/fd/{self._fd}", start, num_bytes)
        os.ftruncate(self._fd, self._end)
        return self._device.wrap(mmap.mmap(self._fd, num_bytes, offset=start))
