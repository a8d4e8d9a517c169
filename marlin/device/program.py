"""Recording dispatches and replaying them. Knows the records of marlin.h, not what kernels compute
(ops.py)."""

import ctypes
from typing import NamedTuple

import numpy as np

from marlin.device import abi
from marlin.device.buffer import Buffer
from marlin.errors import DeviceError


class View(NamedTuple):
    """A byte range of a buffer, as a dispatch binds it."""

    buffer: Buffer
    offset: int
    num_bytes: int

    @classmethod
    def of(cls, buffer, offset=0, num_bytes=None):
        return cls(buffer, offset, buffer.num_bytes - offset if num_bytes is None else num_bytes)


class Recorder:
    """Collects dispatches and computes where a barrier is needed from what each reads and
    writes."""

    def __init__(self, device):
        self.device = device
        self._records = []
        self._labels = []
        self._kernel_ids = {}
        self._reads = []
        self._writes = []
        self._buffers = set()

    def dispatch(self, kernel, params, bindings, label=""):
        """Append one dispatch.

        Args:
            kernel: name, as in marlin.h's list.
            params: 0-d structured array of an abi.PARAMS dtype.
            bindings: sequence of None or (View, access), access of abi.READ | abi.WRITE.
            label: what dump() prints beside the kernel.
        """
        for view, _ in (bound for bound in bindings if bound is not None):
            view.buffer.check_held()
            self._buffers.add(view.buffer)
        record = np.zeros((), abi.DISPATCH)
        record["kernel"] = self._kernel_id(kernel)
        record["barrier"] = self._needs_barrier(bindings)
        record["num_bindings"] = len(bindings)
        raw = np.frombuffer(params.tobytes(), np.uint8)
        record["param_bytes"] = len(raw)
        record["params"][: len(raw)] = raw
        for i, bound in enumerate(bindings):
            if bound is not None:
                view, access = bound
                record["bindings"][i] = (view.buffer.id, access, view.offset, view.num_bytes)
        self._records.append(record)
        self._labels.append(f"{kernel} {label}".rstrip())

    def _kernel_id(self, kernel):
        if kernel not in self._kernel_ids:
            code = self.device.library.marlin_kernel_find(kernel.encode())
            self._kernel_ids[kernel] = self.device.check(code)
        return self._kernel_ids[kernel]

    def _needs_barrier(self, bindings):
        """Whether a dispatch touches what one since the last barrier wrote, or writes what one
        read."""
        reads, writes = [], []
        for view, access in (bound for bound in bindings if bound is not None):
            span = (view.buffer.id, view.offset, view.offset + view.num_bytes)
            if access & abi.READ:
                reads.append(span)
            if access & abi.WRITE:
                writes.append(span)
        conflict = _overlap(reads + writes, self._writes) or _overlap(writes, self._reads)
        if conflict:
            self._reads, self._writes = [], []
        self._reads += reads
        self._writes += writes
        return conflict

    def __len__(self):
        return len(self._records)

    def finish(self, barriers="computed"):
        """The Program of everything recorded.

        Args:
            barriers: "computed", or "all" to set one at every dispatch (to test that none is
                missing).

        Raises:
            DeviceError: a buffer was released meanwhile, or native code found a record that it
                cannot run; the text says which and why.
        """
        for buffer in self._buffers:  # an id that was released may be another buffer's by now
            buffer.check_held()
        records = np.array(self._records, abi.DISPATCH)
        if barriers == "all":
            records["barrier"] = 1
        return Program(self.device, records, list(self._labels))


def _overlap(spans, others):
    return any(a[0] == b[0] and a[1] < b[2] and b[1] < a[2] for a in spans for b in others)


class Program:
    """A checked list of dispatches that replays with one call."""

    def __init__(self, device, records, labels):
        self.device = device
        self.records = np.ascontiguousarray(records)
        self.labels = labels
        self._handle = ctypes.c_void_p()
        self._vars = (ctypes.c_int32 * abi.MAX_VARS)()
        device.check(
            device.library.marlin_program_create(
                device.handle, self.records.ctypes.data, len(records), ctypes.byref(self._handle)
            )
        )
        device.programs.add(self)

    def __len__(self):
        return len(self.records)

    def submit(self, *variables, first=0, count=None):
        """Start a replay of dispatches [first, first + count); returns at once, or on a GPU when
        little of it is left.

        Raises:
            DeviceError: a bad range, a var that the buffers cannot hold, or a replay in flight.
        """
        if len(variables) > abi.MAX_VARS:
            raise DeviceError(f"{len(variables)} vars, at most {abi.MAX_VARS}")
        self._vars[: len(variables)] = list(variables)
        count = len(self.records) - first if count is None else count
        self.device.check(
            self.device.library.marlin_program_submit(
                self._handle, first, count, self._vars, len(variables)
            )
        )

    def wait(self):
        """Wait for the replay to end; raises DeviceError naming the kernel that failed."""
        self.device.check(self.device.library.marlin_program_wait(self._handle))

    def run(self, *variables, first=0, count=None):
        """submit() and wait()."""
        self.submit(*variables, first=first, count=count)
        self.wait()

    def dump(self):
        """One line a dispatch: index, barrier, kernel, bindings."""
        lines = []
        for index, (record, label) in enumerate(zip(self.records, self.labels, strict=True)):
            bound = record["bindings"][: record["num_bindings"]]
            views = " ".join(
                f"{'-rwx'[b['access']]}{b['buffer']}+{b['offset']}:{b['bytes']}"
                for b in bound
                if b["buffer"]
            )
            barrier = "|" if record["barrier"] else " "
            lines.append(f"{index:4d} {barrier} {label} {views}")
        return "\n".join(lines)

    def close(self):
        """Destroy the program; idempotent."""
        if self._handle:
            self.device.library.marlin_program_destroy(self._handle)
            self._handle = ctypes.c_void_p()


def make_params(name, **values):
    """0-d structured array of abi.PARAMS[name]; every field must be given."""
    dtype = abi.PARAMS[name]
    if set(values) != set(dtype.names):
        raise DeviceError(f"{name} has fields {dtype.names}, not {tuple(values)}")
    params = np.zeros((), dtype)
    for field, value in values.items():
        params[field] = value
    return params
