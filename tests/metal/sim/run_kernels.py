"""Runs some kernels of a library and compares them with the oracle: run_kernels.py LIBRARY.

Says how many sources were compiled, and whether the kernels' pipelines came from the archive.
"""

import sys

import launch
import numpy as np
import reference
from kv_case import make_case
from matrices import activations, packed_weight

from marlin.device.device import Device
from marlin.weights import formats

COMPILED, SAVED = 0, 6


def check_norm(device):
    x, delta, weight = (np.random.default_rng(i).standard_normal((5, 67)) for i in range(3))
    x, delta, weight = (array.astype(np.float32) for array in (x, delta, weight[0]))
    expected, _ = reference.rms_norm(x, weight, 1e-5, delta)
    reference.assert_close(launch.rms_norm(device, x, weight, 1e-5, delta)[0], expected)


def check_linear(device, kind, rows, many_rows):
    x, packed = activations(rows, 96), packed_weight(kind, 33, 96, 32)
    weight = formats.dequantize(packed)
    magnitude = np.abs(weight)
    if packed.biases is not None:
        biases = formats.unpack(packed)[2].astype(np.float64)
        magnitude = magnitude + 2 * np.abs(np.repeat(biases, 32, axis=1))
    expected = reference.linear(x, weight, weight_magnitude=magnitude)
    reference.assert_close(launch.linear(device, x, packed, many_rows=many_rows), expected)


def check_attention(device):
    case = make_case([(37, 20), (260, 1)], num_heads=4, num_kv_heads=2, head_dim=64)
    for split in (False, True):
        reference.assert_close(launch.attention(device, case, split), case.expected())


def main(path):
    device = Device(kind="metal", library_path=path)
    check_norm(device)
    for kind in ("int4", "fp4"):
        for rows, many_rows in ((1, False), (5, False), (17, True)):
            check_linear(device, kind, rows, many_rows)
    check_attention(device)
    device.close()
    kept = device.library.sim_counted(SAVED) == 0  # it lacked none
    print("compiled", device.library.sim_counted(COMPILED), "from the archive" if kept else "anew")


if __name__ == "__main__":
    main(sys.argv[1])
