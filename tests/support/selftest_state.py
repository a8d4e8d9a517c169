"""The part of make_selftest.py about layers that keep a state of a sequence, or latents."""

import numpy as np
import reference
import reference_latent
import reference_state
from selftest_writer import FLOAT16, CaseWriter, Tensor, normal, room

from marlin.device import ops, ops_latent, ops_state


def state_cases():
    """Sequences that begin, go on in their slot, and leave a state behind on the way."""
    sequences = [[(0, 2, -1, 3)], [(2, 1, 1, 1)], [(3, 1, 0, 2), (4, 5, 2, 0)]]
    runs = np.array([run for of_one in sequences for run in of_one], np.int32)
    starts = np.array([0, 1, 2, 4], np.int32)
    for name, row, options in (("gated", 3 * 40, {"gated": True}), ("silu", 40, {"silu": True})):
        x, weight, states = normal(9, row), normal(40, 4, seed=1), normal(4, 3, 40, seed=2)
        bias = normal(40, seed=3) if name == "silu" else None
        case = CaseWriter(f"causal_conv {name}", sequences=3)
        where = ops_state.StateRuns(Tensor("runs", runs), Tensor("starts", starts), 4)
        tensors = Tensor("x", x), Tensor("w", weight), None if bias is None else Tensor("b", bias)
        conv = ops_state.Conv(40, 4, row, **options)
        views = *tensors, Tensor("states", states), where, room("y", 9, 40)
        ops_state.causal_conv(case, *views, conv)
        expected, left = reference_state.causal_conv(x, weight, bias, states, sequences, **options)
        left = reference.Expected(left, np.abs(left))
        yield case.answer("y", expected).answer("states", left)


def delta_cases():
    """Heads that share keys: of a sequence that begins, and of one that goes on, run by run."""
    sequences = [[(0, 2, -1, 1)], [(2, 1, 0, 0), (3, 2, 0, 0)]]
    runs = np.array([run for of_one in sequences for run in of_one], np.int32)
    delta = ops_state.Delta(1, 2, 16, 16)
    x, states = normal(5, delta.row_floats), normal(2, 2, 16, 16, seed=2)
    a, b, decay, shift = (normal(*shape, seed=3) for shape in ((5, 2), (5, 2), (2,), (2,)))
    named = {"a": a, "b": b, "decay": decay, "shift": shift}
    case = CaseWriter("delta_rule", sequences=2)
    starts = Tensor("starts", np.array([0, 1, 3], np.int32))
    where = ops_state.StateRuns(Tensor("runs", runs), starts, 2)
    gates = ops_state.Gates(*(Tensor(*pair) for pair in named.items()))
    y, kept = room("y", 5, delta.value_floats), Tensor("states", states)
    ops_state.delta_rule(case, Tensor("x", x), gates, kept, where, y, delta)
    arrays = x, tuple(named.values()), states, sequences, delta
    yield case.answer("y", reference_state.delta_rule(*arrays)[0])

    columns, x = ops_state.Columns(70, 3, 20, 5, 16), normal(2, 70)
    case = CaseWriter("take_columns", tokens=2)
    ops_state.take_columns(case, Tensor("x", x), columns, room("y", 2, 48), 48)
    taken = reference_state.take_columns(x, columns, np.zeros((2, 48)), 0)
    yield case.answer("y", reference.Expected(taken, np.abs(taken)))


def latent_cases():
    """A row of 16, of which 10 are a latent and 4 turn."""
    latent, rank = ops_latent.Latent(2, 3, 4, True, 1e-3), 10
    inputs = normal(2, 2, rank), normal(2, 2, 7, seed=1), normal(2, 14, seed=2)
    table = reference.rope_table(np.arange(2) * 7, normal(2) ** 2, 1.0).value.astype(np.float32)
    slots, norm = np.array([5, 0], np.int32), normal(rank, seed=3)
    cache, layout = np.full((1, 1, 16, 16), 7, np.float16), ops.KvLayout(1, 16, 1, 1, 16)
    layout = layout._replace(value_dim=rank)
    case = CaseWriter("latent_write", tokens=2)
    tensors = [Tensor(f"x{i}", array) for i, array in enumerate(inputs)]
    places = [Tensor("table", table), Tensor("slots", slots)]
    places.append(Tensor("beyond", np.zeros(2, np.int32)))
    parts = Tensor("norm", norm), Tensor("cache", cache), layout, room("queries", 2, 2, 16)
    ops_latent.latent_write(case, tensors, places, *parts, latent)
    queries, stored = reference_latent.latent_write(inputs, (table, slots), norm, cache, latent)
    case.answer("queries", queries)
    yield case.answer("cache", stored.value.astype(np.float16), FLOAT16)
