"""Runs raw dispatch records in a process of its own, so that a crash fails a test instead of ending the run.

As a program: reads requests from stdin, answers one line each: "ok", or "error: " and the native text.
A request is a little-endian int32 header (number of records, number of vars), the vars, the records.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from marlin.device import abi
from marlin.device.device import Device
from marlin.device.program import Program
from marlin.errors import DeviceError

# Buffers that records may name: 1 to 4 are memory, 5 is a mapped file.
BUFFER_BYTES = (64, 1024, 16 * 1024, 64 * 1024)
FILE_BYTES = 4096
ROOT = Path(__file__).resolve().parents[2]


class RecordRunner:
    """The process, seen from the test; a new one starts after a crash."""

    def __init__(self):
        self._process = None

    def run(self, records, variables=()):
        """Create a program of records abi.DISPATCH [n], replay it, destroy it.

        Returns:
            "ok" or "error: " and the text.

        Raises:
            AssertionError: the process died.
        """
        if self._process is None:
            command = [sys.executable, "-X", "faulthandler", __file__]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            self._process = subprocess.Popen(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, **pipes)
        header = np.array([len(records), len(variables), *variables], np.int32)
        try:
            self._process.stdin.write(header.tobytes() + records.tobytes())
            self._process.stdin.flush()
            answer = self._process.stdout.readline().decode().strip()
        except BrokenPipeError:
            answer = ""
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


def answer(device, buffers, records, variables):
    for buffer in buffers:
        # Small numbers: as int32 often valid ids and positions, as float32 tiny.
        values = buffer.array(np.int32)
        values[:] = np.arange(len(values)) % 5
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
    buffers = [device.create(num_bytes) for num_bytes in BUFFER_BYTES]
    device.map(mapped_path, 0, FILE_BYTES)
    while header := read(8):
        num_records, num_variables = np.frombuffer(header, np.int32)
        variables = np.frombuffer(read(4 * int(num_variables)), np.int32).tolist()
        raw = read(int(num_records) * abi.DISPATCH.itemsize)
        records = np.frombuffer(raw, abi.DISPATCH).copy()
        write(answer(device, buffers, records, variables))


def main():
    def write(line):
        sys.stdout.write(line.replace("\n", " ") + "\n")
        sys.stdout.flush()

    device = Device(num_threads=1)
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(FILE_BYTES))
        file.flush()
        serve(device, file.name, sys.stdin.buffer.read, write)
    device.close()


if __name__ == "__main__":
    main()
