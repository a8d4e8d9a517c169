"""The cases of `metal-marlin selftest` of linear layers fused with a norm, a gate or a residual."""

import numpy as np
import reference
import reference_fused
from matrices import bias_of
from selftest_writer import CaseWriter, Tensor, activations, matrices, normal, room, weight_of

from marlin.device import abi, ops_fused


def fused_cases():
    """Each packed kind once: gated, added to a residual, or only normed."""
    x = activations(1, 128, seed=1)
    norm, squares = Tensor("norm", bias_of(33)), np.square(normal(1, 8, seed=5))
    normed = ops_fused.Normed(Tensor("squares", squares), 1e-5)
    seen = set()
    for name, stored, values, sizes in matrices(33, 128):
        kind = name.partition("-")[0]
        if not name.endswith(("16", "32", "iq4-64")) or kind in seen or kind not in abi.FUSED_KINDS:
            continue
        seen.add(kind)
        weight, product = weight_of(stored), reference.linear(x, values, None, sizes)
        case, y = CaseWriter(f"fused {kind}", tokens=1), room("y", 1, 33)
        if kind in ("int8", "iq4"):
            hidden, sums = Tensor("hidden", bias_of(33)[::-1]), room("sums", 1, 3)
            residual = ops_fused.Residual(hidden, norm, sums, 0.5)
            ops_fused.linear(case, Tensor("x", x), weight, y, None, "", None, residual)
            expected = reference_fused.added(product, hidden.value[None], norm.value, 0.5)
            case.answer("y", expected[1])
            yield case.answer("sums", expected[2])
            continue
        activation = "gelu" if kind == "int4" else "silu"
        ops_fused.gated(
            case, Tensor("x", x), (weight, weight), y, (None, None), activation, "", normed
        )
        part = reference_fused.normed(product, squares, 128, 1e-5)
        yield case.answer("y", reference_fused.gated(part, part, activation))
