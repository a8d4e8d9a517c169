"""Where weights live that several processes use: repacked ones in slabs, memory of a process alone
or a file that all map, others in the model's own files.

Hands out whole slabs and knows nothing of what is in them. The same calls give the same places in
the file, so a process that only reads finds what another wrote, and behind the last slab digests,
by which it knows that it is still that, and that both read the same files.
"""

import hashlib
import mmap
import os
import threading

import numpy as np

from marlin.errors import DeviceError, SharedWeightsError

# Slabs of a shared file begin at multiples of this: a page on every system, and a huge page.
_ALIGNMENT = 2 << 20
# Of files that are mapped a digest has a page of each so many bytes, at most so many, and the last:
# all of 8 GB would take ten seconds, for which nobody maps files.
_SAMPLE_BYTES, _SAMPLE_STEP, _NUM_SAMPLES = 4096, 1 << 20, 256


class PrivateSlabs:
    """Slabs in this process's own memory, zeroed."""

    filled = False

    def __init__(self, device):
        self._device = device

    def new(self, num_bytes):
        """A Buffer of num_bytes."""
        return self._device.create(num_bytes)

    def map(self, path, offset, num_bytes):
        """As Device.map()."""
        return self._device.map(path, offset, num_bytes)

    def settle(self, files):
        """All slabs are there and filled."""


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
        self._slabs = []
        self._mapped = []

    def map(self, path, offset, num_bytes):
        """As Device.map(), of weights that all processes use where they lie."""
        self._mapped.append(self._device.map(path, offset, num_bytes))
        return self._mapped[-1]

    def new(self, num_bytes):
        """A Buffer of num_bytes: zeroed, or with what the writer put there.

        Raises:
            DeviceError: the file ends before it, so it was filled from another model; or the
                system has no room for it.
        """
        start = self._end
        self._end += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        if self.filled:
            slab = self._device.map(f"/dev/fd/{self._fd}", start, num_bytes)
        else:
            slab = self._device.wrap(self._grow(start, num_bytes))
        self._slabs.append(slab)
        return slab

    def _grow(self, start, num_bytes):
        try:
            os.ftruncate(self._fd, self._end)
            return mmap.mmap(self._fd, num_bytes, offset=start)
        except OSError as error:
            sizes = f"{self._end >> 20} MiB of weights that workers share"
            raise DeviceError(f"no room for {sizes}: {error.strerror}") from error

    def settle(self, files):
        """All weights are there: leave digests behind the slabs, or compare with those.

        Args:
            files: bytes that are others when the model's files are.

        Raises:
            SharedWeightsError: a slab is not what the writer made, or a file not what it read.
        """
        digests = [self._digest_of_files(files), *self._digests()]
        if not self.filled:
            os.pwrite(self._fd, b"".join(digests), self._end)
            return
        for index, digest in enumerate(digests):
            if os.pread(self._fd, len(digest), self._end + index * len(digest)) != digest:
                part = f"part {index} of {len(digests) - 1}" if index else "the model's files"
                raise SharedWeightsError(f"the weights that workers share have changed: {part}")

    def _digest_of_files(self, files):
        digest = hashlib.sha256(files)
        for buffer in self._mapped:
            data = buffer.array(np.uint8)
            step = max(_SAMPLE_STEP, len(data) // _NUM_SAMPLES)
            for start in (*range(0, len(data), step), max(0, len(data) - _SAMPLE_BYTES)):
                digest.update(data[start : start + _SAMPLE_BYTES])
        return digest.digest()

    def _digests(self):
        """SHA-256 of each slab, on as many threads as the device has."""
        digests = [b""] * len(self._slabs)
        num_threads = max(1, self._device.info()["num_threads"])

        def work(first):
            for index in range(first, len(digests), num_threads):
                digests[index] = hashlib.sha256(self._slabs[index].array(np.uint8)).digest()

        threads = [threading.Thread(target=work, args=(n,)) for n in range(1, num_threads)]
        for thread in threads:
            thread.start()
        work(0)
        for thread in threads:
            thread.join()
        return digests
