"""Every instruction set of a machine gives the same bits, kernel by kernel, on any threads."""

import launch
import numpy as np
import pytest
from kv_case import make_case
from matrices import packed_weight

from marlin.commands import selftest
from marlin.device import ops
from marlin.weights.kinds import PACKED_KINDS

CASES = {case.name: case for case in selftest.read_cases()}
# 100 is no multiple of sixteen lanes, and more than some of them.
ROWS, DIM = 5, 100


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X, OTHER, WEIGHT, BIAS = floats(ROWS, DIM), floats(ROWS, DIM, seed=1), floats(DIM), floats(DIM)
DENSE = {"f32": floats(33, DIM), "f16": floats(33, DIM).astype(np.float16)}
DENSE["bf16"] = (DENSE["f32"].view(np.uint32) >> 16).astype(np.uint16)
# A third of the groups have an outlier, and steps of others all but tie.
ACTIVATIONS = floats(7, 256) ** 3
PACKED = {kind: packed_weight(kind, 33, 256, 64) for kind in PACKED_KINDS}
CONTEXT = [(300, 3), (17, 17)]

CALLS = {
    **{f"dense-{kind}": (launch.linear, X, (kind, DENSE[kind])) for kind in DENSE},
    **{kind: (launch.linear, ACTIVATIONS, PACKED[kind]) for kind in PACKED_KINDS},
    "rms_norm": (launch.rms_norm, X, WEIGHT, 1e-5, OTHER),
    "layer_norm": (launch.layer_norm, X, WEIGHT, BIAS, 1e-5, OTHER),
    "silu_mul": (launch.gated_mul, ops.silu_mul, 9 * X, OTHER),
    "gelu_mul": (launch.gated_mul, ops.gelu_mul, 9 * X, OTHER),
    "sigmoid_mul": (launch.gated_mul, ops.sigmoid_mul, 9 * X, OTHER),
    "gelu": (launch.gelu, 3 * X),
    "scale_rows": (launch.scale_rows, X, 0.7, 2.0, False),
    "rope_table": (launch.rope_table, np.arange(0, 9999, 99, np.int32), np.abs(WEIGHT), 1.1),
    "attention": (launch.attention, make_case(CONTEXT, 6, 2, 48)),
    "attention-softcap": (launch.attention, make_case(CONTEXT, 6, 2, 48, softcap=2.0), True),
}  # fmt: skip


def bits(result):
    arrays = result if isinstance(result, tuple) else (result,)
    return [array.tobytes() for array in arrays]


@pytest.mark.parametrize("name", CALLS)
def test_sums_of_any_length_have_the_bits_of_every_set(isa, devices, name):
    kernel, *arguments = CALLS[name]
    actual = kernel(devices.get(isa, 3), *arguments)
    assert bits(actual) == bits(kernel(devices.get("scalar"), *arguments))


@pytest.mark.parametrize("name", CASES)
def test_what_selftest_computes_has_the_bits_of_every_set(isa, devices, name):
    expected, _ = selftest.run_case(devices.get("scalar"), CASES[name])
    actual, problem = selftest.run_case(devices.get(isa, 3), CASES[name])
    assert problem is None
    for buffer, array in expected.items():
        np.testing.assert_array_equal(actual[buffer].view(np.uint8), array.view(np.uint8))
