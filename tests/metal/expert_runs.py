"""One small run of each kernel of a mixture of experts, compared with the oracle."""

import numpy as np
import reference
import reference_experts
from test_attention_shaders import normal
from test_linear_shaders import weight_of

from marlin.device import abi
from marlin.weights.kinds import ROW_TILE


def any_weight(kind, n, k):
    """weight_of(), of every kind."""
    if kind not in ("f16", "bf16"):
        return weight_of(kind, n, k)
    [data, *_], flags, *_ = weight_of("f32", n, k)
    values, stored = reference.bfloat16(data)
    if kind == "f16":
        values = stored = data.astype(np.float16)
    return [stored, None, None], flags, values, np.abs(values)


def choices_of(rows, num_experts, slots):
    """(ids [rows, slots], order, groups): each row chooses neighbours."""
    ids = (np.arange(rows)[:, None] + np.arange(slots)) % num_experts
    order = np.argsort(ids.reshape(-1), kind="stable").astype(np.int32)
    counts = np.bincount(ids.reshape(-1), minlength=num_experts)
    ends = np.cumsum(counts)
    groups = np.stack([np.arange(num_experts), ends - counts, ends], axis=1).astype(np.int32)
    return ids, order, groups


def experts(shader, kind, op, rows, form, n, k):
    """Three experts, each chosen by more rows than a block has."""
    count, slots = 3, 2
    arrays, flags, values, magnitude = any_weight(kind, count * n, k)
    ids, order, groups = choices_of(rows, count, slots)
    x, y = normal(rows, k), np.full((rows, slots, n), np.nan, np.float32)
    sizes = {"n": n, "k": k, "group_size": 32, "flags": flags}
    sizes |= {"num_experts": count, "num_slots": slots, "x_slots": 1}
    constants = {"ROWS": form, "GROUP_SIZE": 32, "FLAGS": flags}
    units, bindings = (-(-n // ROW_TILE), rows, count), [x, *arrays, None, y, order, groups]
    params = ("ExpertParams", {"rows_var": 0, **sizes})
    assert shader(op).run(f"{op}_experts_{kind}", units, bindings, params, [rows], constants)
    for slot in range(slots):
        for row in range(rows):
            own = slice(ids[row, slot] * n, (ids[row, slot] + 1) * n)
            expected = reference.linear(
                x[row : row + 1], values[own], weight_magnitude=magnitude[own]
            )
            reference.assert_close(y[row : row + 1, slot], expected)


def matvec_experts(shader, kind):
    """One row a threadgroup and sixteen, of which an expert has nine."""
    experts(shader, kind, "matvec", 2, 1, 32, 1088)
    experts(shader, kind, "matvec", 13, 16, 32, 1088)


def matmul_experts(shader, kind):
    experts(shader, kind, "matmul", 35, 0, 80, 96)


def route(shader):
    """Ranks of groups, which are put below all others, shares of the chosen, and factors."""
    for gating, groups, factors in (
        ("sigmoid", (8, 3), False),
        ("softmax", (1, 1), True),
        ("chosen", (1, 1), False),
    ):
        logits, bias = normal(2, 72), normal(72, seed=1)
        ids, weights = np.zeros((2, 4), np.int32), np.zeros((2, 4), np.float32)
        fields = {"num_experts": 72, "num_slots": 4, "gating": abi.GATES[gating], "normalizes": 1}
        fields |= {"bias": 1 + factors, "num_groups": groups[0], "kept_groups": groups[1]}
        fields |= {"rows_var": 0, "scale": 2.5, "epsilon": 0.0}
        bindings = [logits, bias, ids, weights]
        assert shader("experts").run("route", (2, 1, 1), bindings, ("RouteParams", fields), [2])
        expected, shares = reference_experts.route(logits, gating, 4, True, 2.5, 0,
            None if factors else bias, groups, bias if factors else None)  # fmt: skip
        np.testing.assert_array_equal(ids, expected)
        reference.assert_close(weights, reference.Expected(shares, 4 * np.abs(shares)))


def sort_experts(shader):
    """More experts than threads."""
    ids, order, groups = choices_of(40, 300, 3)
    found = np.zeros_like(order), np.ones((300, 3), np.int32)
    fields = {"rows_var": 0, "num_experts": 300, "num_slots": 3}
    bindings = [ids.astype(np.int32), *found]
    assert shader("experts").run("sort_experts", (1, 1, 1), bindings, ("SortParams", fields), [40])
    np.testing.assert_array_equal(found[0], order)
    chosen = groups[groups[:, 1] < groups[:, 2]]
    np.testing.assert_array_equal(found[1][: len(chosen)], chosen)


def combine_experts(shader):
    values, weights = normal(2, 3, 1030), normal(2, 3, seed=1)
    y = np.zeros((2, 1030), np.float32)
    fields = {"rows_var": 0, "dim": 1030, "num_slots": 3, "adds": 1}
    params, bindings = ("CombineParams", fields), [values, weights, y]
    assert shader("experts").run("combine_experts", (2, 2, 1), bindings, params, [2])
    products = values.astype(np.float64) * weights[:, :, None]
    reference.assert_close(y, reference.Expected(products.sum(1), np.abs(products).sum(1)))
