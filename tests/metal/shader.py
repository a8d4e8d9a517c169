"""Calls the kernels of one .metal file on the CPU runtime as the device calls them.

Owns the arguments that every kernel gets after its bindings (shaders/common.h) and the threadgroups
that a kernel's units of work become (shaders/kernel_list.h). Knows no kernel.
"""

import re

import numpy as np
from kernel_list import SHADERS, read_kernels
from msl import simt

from marlin.device.program import make_params

# MARLIN_SIMDGROUPS of kernel_list.h: rows of a matrix, simdgroups for fewer, for as many or more
SIMDGROUPS_RULE = re.compile(r"MARLIN_SIMDGROUPS\(n\) \(\(n\) < (\d+) \? (\d+) : (\d+)\)")
SIMD_THREADS = 32
MAX_BINDINGS = 12
MAX_VARS = 8
NOTHING_FAILED = 0xFFFFFFFF


class Launches:
    """What kernel_list.h says.

    Args:
        folder: where it lies.
    """

    def __init__(self, folder):
        self._kernels = read_kernels(folder)
        rule = SIMDGROUPS_RULE.search((folder / "kernel_list.h").read_text())
        self._rule = [int(number) for number in rule.groups()]

    def simdgroups(self, kernel, params):
        """SIMDGROUPS of a dispatch; 0 where its kernel has none."""
        if self._kernels[kernel].threads:
            return 0
        limit, below, above = self._rule
        return below if params["n"] < limit else above

    def threads(self, kernel, simdgroups):
        """Threads of a threadgroup; simdgroups: the function constant SIMDGROUPS."""
        return self._kernels[kernel].threads or SIMD_THREADS * simdgroups

    def groups(self, kernel, units, rows):
        """Threadgroups on each axis for units of work; rows: the function constant ROWS."""
        row = self._kernels[kernel]
        sizes = row.x, row.y or rows, 1
        return [-(-count // size) for count, size in zip(units, sizes, strict=True)]


class Shader:
    """One .metal file.

    Args:
        folder: where it lies, with the headers that it includes.
        options: how it is built; see build.library.

    Attributes:
        library: its kernels, for a kernel that no kernel_list.h names.
        constants: function constants by name that every dispatch gets.
    """

    def __init__(self, name, cache, folder=SHADERS, **options):
        self.library = simt.load(folder / f"{name}.metal", cache, **options)
        self.constants = {}
        self._launches = Launches(folder)

    def run(self, kernel, units, bindings, params, variables, constants=None):
        """Dispatch.

        Args:
            units: of work on three axes (kernel_units.c), or more.
            bindings: numpy arrays in the order of ops.py; None where nothing is bound.
            params: (name of the struct, its fields).
            variables: the step's vars.
            constants: function constants by name.

        Returns:
            Whether no kernel called fail().
        """
        words = np.zeros(1 + MAX_BINDINGS, np.uint32)
        bound = [np.zeros(4, np.uint32) if array is None else array for array in bindings]
        words[1 : 1 + len(bindings)] = [0 if a is None else a.nbytes // 4 for a in bindings]
        bound += [None] * (MAX_BINDINGS - len(bound))
        step = np.zeros(MAX_VARS, np.int32)
        step[: len(variables)] = variables
        status = np.array([NOTHING_FAILED], np.uint32)
        name, fields = params
        packed = np.frombuffer(bytes(make_params(name, **fields)), np.uint32).copy()
        values = self.constants | (constants or {})
        values.setdefault("SIMDGROUPS", self._launches.simdgroups(kernel, fields))
        self.library.set_constants(**{key: np.uint32(value) for key, value in values.items()})
        groups = self._launches.groups(kernel, units, values.get("ROWS"))
        threads = self._launches.threads(kernel, values["SIMDGROUPS"])
        self.library.run(kernel, groups, (threads,), *bound, packed, step, words, status)
        return status[0] == NOTHING_FAILED
