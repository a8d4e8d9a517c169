"""The smallest program that a device can run, for tests of the device itself: chained silu_mul."""

from itertools import pairwise

import numpy as np

from marlin.device import ops
from marlin.device.program import Recorder, View

DIM = 64


def silu_program(device, count=1):
    """(program, its views): each dispatch reads the one before."""
    views = [View.of(device.create(4 * DIM)) for _ in range(count + 1)]
    recorder = Recorder(device)
    for source, target in pairwise(views):
        ops.silu_mul(recorder, source, source, target, DIM)
    return recorder.finish(), views


def run_silu(device):
    """Runs silu_mul of ones, releases everything."""
    program, views = silu_program(device)
    views[0].buffer.array(np.float32)[:] = 1
    program.run(1)
    result = views[1].buffer.array(np.float32).copy()
    np.testing.assert_allclose(result, 1 / (1 + np.exp(-1)), rtol=1e-6)
    program.close()
    for view in views:
        view.buffer.release()
