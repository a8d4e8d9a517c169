"""Calls the kernels of one .metal file on the CPU runtime as the device calls them.

Owns the arguments that every kernel gets after its bindings (shaders/common.h) and the threadgroups
of a recorded grid (shaders/launch.h). Knows no kernel.
"""

import re
from pathlib import Path

import numpy as np
from msl import simt

from marlin.device.program import make_params

SHADERS = Path(__file__).resolve().parents[2] / "shaders"
LAUNCH_LINE = re.compile(r"X\((\w+), (\d+), (\d+), (\d+), (\d+)\)")
MAX_BINDINGS = 12
MAX_VARS = 8
NOTHING_FAILED = 0xFFFFFFFF


class Shader:
    """One .metal file."""

    def __init__(self, name, cache):
        self._library = simt.load(SHADERS / f"{name}.metal", cache)
        lines = LAUNCH_LINE.findall((SHADERS / "launch.h").read_text())
        self._launches = {line[0]: [int(number) for number in line[1:]] for line in lines}

    def run(self, kernel, grid, bindings, params, variables, constants=None):
        """Dispatch over a recorded grid.

        Args:
            bindings: numpy arrays in the order of ops.py; None where nothing is bound.
            params: (name of the struct, its fields).
            variables: the step's vars.
            constants: function constants by name.

        Returns:
            Whether no kernel called fail().
        """
        threads, *units = self._launches[kernel]
        words = np.zeros(1 + MAX_BINDINGS, np.uint32)
        bound = [np.zeros(4, np.uint32) if array is None else array for array in bindings]
        words[1 : 1 + len(bindings)] = [0 if a is None else a.nbytes // 4 for a in bindings]
        bound += [None] * (MAX_BINDINGS - len(bound))
        step = np.zeros(MAX_VARS, np.int32)
        step[: len(variables)] = variables
        status = np.array([NOTHING_FAILED], np.uint32)
        name, fields = params
        packed = np.frombuffer(bytes(make_params(name, **fields)), np.uint32).copy()
        values = {key: np.uint32(value) for key, value in (constants or {}).items()}
        self._library.set_constants(**values)
        groups = [-(-size // unit) for size, unit in zip(grid, units, strict=True)]
        self._library.run(kernel, groups, (threads,), *bound, packed, step, words, status)
        return status[0] == NOTHING_FAILED
