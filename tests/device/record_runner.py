"""Runs raw dispatch records in a process of its own, so that a crash fails a test instead of ending
the run.

As a program: reads requests from stdin, answers one line each: "ok", or "error: " and the native
text. A request is little-endian int32: number of records, number of vars, the seed of the buffers'
contents, the vars; then the records.
"""

import ctypes
import mmap
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from marlin.device import abi
from marlin.device.device import Device
from marlin.device.program import Program
from marlin.errors import DeviceError

# Buffers that records may name: 1 to NUM_BUFFERS are memory between pages that may not be touched,
# the next is a mapped file. Their size is a multiple of every page size in use.
NUM_BUFFERS = abi.MAX_BINDINGS
MAPPED_FILE = NUM_BUFFERS + 1
BUFFER_BYTES = 1 << 16
ALL_ONE = -2
ROOT = Path(__file__).resolve().parents[2]


class RecordRunner:
    """The process, seen from the test; a new one starts after a crash.

    Args:
        kind: of the device.
        library_path: the native library; None is the one that was built with the package.
        environment: what the process has besides this one's.
    """

    def __init__(self, kind="cpu", library_path=None, environment=None):
        self._process = None
        self._environment = environment or {}
        self._arguments = [kind, *([str(library_path)] if library_path else [])]

    def run(self, records, variables=(), seed=0):
        """Create a program of records abi.DISPATCH [n], replay it, destroy it.

        Args:
            seed: of the buffers' contents: 0 is zeros and ones, ALL_ONE int32 ones, -1 all bits
                set, others random bits.

        Returns:
            "ok" or "error: " and the text.

        Raises:
            AssertionError: the process died, or the GPU failed.
        """
        if self._process is None:
            environment = os.environ | {"PYTHONPATH": str(ROOT)} | self._environment
            command = [sys.executable, "-X", "faulthandler", __file__, *self._arguments]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
        header = np.array([len(records), len(variables), seed, *variables], np.int32)
        try:
            self._process.stdin.write(header.tobytes() + records.tobytes())
            self._process.stdin.flush()
            answer = self._process.stdout.readline().decode().strip()
        except BrokenPipeError:
            answer = ""
        assert "the GPU failed" not in answer, answer
        if not answer:
            code, stderr = self._end()
            raise AssertionError(f"the process ended with {code}: {stderr[-2000:]}")
        return answer

    def _end(self):
        process, self._process = self._process, None
        stderr = process.communicate()[1].decode("utf-8", "replace")
        return process.returncode, stderr

    def close(self):
        """End the process and check that it ended well."""
        if self._process is not None:
            code, stderr = self._end()
            assert code == 0, stderr


def contents(seed):
    """int32 of a buffer's size. Small numbers are often valid ids, and tiny floats; these four are
    also a sound attention tile."""
    count = BUFFER_BYTES // 4
    if seed == 0:
        return np.tile(np.array([0, 1, 0, 0], np.int32), count // 4)
    if seed < 0:
        return np.full(count, 1 if seed == ALL_ONE else -1, np.int32)
    return np.random.default_rng(seed).integers(-(2**31), 2**31, count).astype(np.int32)


def guarded_memory():
    """uint8 [BUFFER_BYTES] between two pages that may not be touched."""
    page = mmap.PAGESIZE
    mapping = mmap.mmap(-1, BUFFER_BYTES + 2 * page)
    whole = np.frombuffer(mapping, np.uint8)
    libc, no_access = ctypes.CDLL(None, use_errno=True), 0
    for address in (whole.ctypes.data, whole.ctypes.data + page + BUFFER_BYTES):
        assert libc.mprotect(ctypes.c_void_p(address), page, no_access) == 0, ctypes.get_errno()
    return whole[page : page + BUFFER_BYTES]


def answer(device, records, variables):
    try:
        program = Program(device, records, [""] * len(records))
        try:
            program.run(*variables)
        finally:
            program.close()
    except DeviceError as error:
        return f"error: {error}"
    return "ok"


def serve(device, mapped_path, read, write):
    memory = [guarded_memory() for _ in range(NUM_BUFFERS)]
    for array in memory:
        address = ctypes.c_void_p(array.ctypes.data)
        device.check(device.library.marlin_buffer_wrap(device.handle, address, BUFFER_BYTES))
    device.map(mapped_path, 0, BUFFER_BYTES)
    while header := read(12):
        num_records, num_variables, seed = np.frombuffer(header, np.int32)
        variables = np.frombuffer(read(4 * int(num_variables)), np.int32).tolist()
        raw = read(int(num_records) * abi.DISPATCH.itemsize)
        records = np.frombuffer(raw, abi.DISPATCH).copy()
        for array in memory:
            array.view(np.int32)[:] = contents(int(seed))
        write(answer(device, records, variables))


def main():
    def write(line):
        sys.stdout.write(line.replace("\n", " ") + "\n")
        sys.stdout.flush()

    kind, library_path = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    num_threads = 1 if kind == "cpu" else None
    device = Device(num_threads, library_path=library_path, kind=kind)
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(BUFFER_BYTES))
        file.flush()
        serve(device, file.name, sys.stdin.buffer.read, write)
    device.close()


if __name__ == "__main__":
    main()
