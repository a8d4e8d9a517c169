"""Mixtures of experts: what a token chooses, the matrices of the chosen, and their weighted sum,
against the oracle, and the same bits in any company."""

import launch
import numpy as np
import pytest
import reference
import reference_experts
from matrices import activations, bias_of, dense_weight, packed_weight
from test_linear import seen_by

from marlin.device import ops, ops_experts
from marlin.errors import DeviceError
from marlin.weights import formats
from marlin.weights.kinds import PACKED_KINDS

ROUTERS = {
    "softmax": ops_experts.Router(8, 2, "softmax", False),
    "softmax, normalized": ops_experts.Router(128, 8, "softmax", True),
    "softmax, scaled": ops_experts.Router(33, 3, "softmax", True, 2.5),
    "softmax, with factors": ops_experts.Router(40, 4, bias="factors"),
    "sigmoid": ops_experts.Router(40, 4, "sigmoid", True, 1.8, 1e-20),
    "sigmoid in groups": ops_experts.Router(64, 6, "sigmoid", True, 2.5, 1e-20, 8, 3),
    "groups of one": ops_experts.Router(40, 5, "sigmoid", False, 1.0, 0.0, 40, 7),
    "chosen": ops_experts.Router(32, 4, "chosen", False),
    "all of them": ops_experts.Router(5, 5, "chosen", False),
    "one of many": ops_experts.Router(1024, 1, "softmax", True),
}


def logits_of(rows, count, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, count)).astype(np.float32) * 2


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("rows", [1, 5, 37])
def test_tokens_choose_their_best_experts_and_weigh_them(device, name, rows):
    router = ROUTERS[name]
    logits = logits_of(rows, router.num_experts)
    bias = None
    if router.gating == "sigmoid" or router.bias == "factors":
        bias = np.random.default_rng(1).standard_normal(router.num_experts).astype(np.float32)
    ids, weights, order, groups = launch.route(device, logits, router, bias)
    biases = (bias, None) if router.bias == "ranks" else (None, bias)
    expected, shares = reference_experts.route(
        logits, router.gating, router.num_slots, router.normalizes, router.scale, router.epsilon,
        biases[0], (router.num_groups, router.kept_groups), biases[1],
    )  # fmt: skip
    np.testing.assert_array_equal(ids, expected)
    # An exponential's argument is rounded once, and sums have up to 1024 terms.
    reference.assert_close(weights, reference.Expected(shares, 4 * np.abs(shares)))
    np.testing.assert_array_equal(order, np.argsort(ids.reshape(-1), kind="stable"))
    chosen, counts = np.unique(ids, return_counts=True)
    ends = np.cumsum(counts)
    found = np.stack([chosen, ends - counts, ends], axis=1)
    np.testing.assert_array_equal(groups[: len(found)], found)
    assert not groups[len(found) :].any()


def test_of_equal_experts_the_first_are_chosen(device):
    logits = np.zeros((2, 40), np.float32)
    logits[1, [7, 39]] = 1
    ids, weights, *_ = launch.route(device, logits, ops_experts.Router(40, 3, "softmax", True))
    np.testing.assert_array_equal(ids, [[0, 1, 2], [7, 39, 0]])
    np.testing.assert_allclose(weights[0], 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("gating", ["softmax", "sigmoid", "chosen"])
def test_logits_without_a_number_still_choose_experts_that_there_are(device, gating):
    logits = logits_of(3, 8)
    logits[1] = np.nan
    logits[2, 3] = np.nan
    ids, weights, *_ = launch.route(device, logits, ops_experts.Router(8, 4, gating, True))
    assert all(len(set(row)) == 4 and 0 <= min(row) and max(row) < 8 for row in ids.tolist())
    assert np.isnan(weights[1]).all() and np.isfinite(weights[0]).all()


def sorted_choices(ids):
    """(order, groups) of int [rows, num_slots]."""
    order = np.argsort(ids.reshape(-1), kind="stable").astype(np.int32)
    chosen, counts = np.unique(ids, return_counts=True)
    ends = np.cumsum(counts)
    return order, np.stack([chosen, ends - counts, ends], axis=1).astype(np.int32)


def chosen_ids(rows, num_experts, slots, seed=2):
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(num_experts)[:slots] for _ in range(rows)])


def expected_experts(device, x, kind, values, magnitudes, ids, bias=None):
    """x [rows, x_slots, k] with the matrices [num_experts, n, k] of each choice."""
    rows, slots = ids.shape
    flat = x.reshape(-1, x.shape[2])
    seen = flat if magnitudes is None else seen_by(device, flat, kind)
    seen = seen.reshape(x.shape)
    found, size = np.zeros((2, rows, slots, values.shape[1]))
    for row in range(rows):
        for slot in range(slots):
            expert = ids[row, slot]
            one = seen[row, slot % x.shape[1]][None]
            own = None if bias is None else bias[expert]
            weight = np.abs(values[expert]) if magnitudes is None else magnitudes[expert]
            value = reference.linear(one, values[expert], own, weight)
            found[row, slot], size[row, slot] = value.value[0], value.magnitude[0]
    return reference.Expected(found, size)


def stack_of(kind, count, n, k, group_size=32, dtype=np.float16):
    """(weight of all experts, its values [count, n, k], what cancels in them or None)."""
    if kind not in PACKED_KINDS:
        stored, values = dense_weight(kind, count * n, k)
        return stored, values.reshape(count, n, k), None
    packed = packed_weight(kind, count * n, k, group_size, dtype)
    values = formats.dequantize(packed)
    magnitude = np.abs(values)
    if packed.biases is not None:
        biases = np.repeat(formats.unpack(packed)[2].astype(np.float64), group_size, axis=1)
        magnitude = np.abs(values - biases) + np.abs(biases)
    return packed, values.reshape(count, n, k), magnitude.reshape(count, n, k)


# (rows, num_experts, num_slots, n, k, group size, a row of x a choice)
SHAPES = [
    (1, 8, 2, 32, 64, 32, False),
    (1, 4, 4, 16, 128, 64, True),
    (5, 6, 3, 48, 96, 32, False),
    (16, 3, 2, 32, 128, 128, True),
    (37, 4, 2, 16, 160, 32, False),
    (70, 2, 1, 80, 64, 32, True),
]


@pytest.mark.parametrize("many_rows", [False, True])
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", *PACKED_KINDS])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_choice_is_multiplied_by_its_own_expert(device, kind, shape, many_rows):
    rows, count, slots, n, k, group_size, own_rows = shape
    x = activations(rows * (slots if own_rows else 1), k).reshape(rows, -1, k)
    ids, bias = chosen_ids(rows, count, slots), bias_of(count * n).reshape(count, n)
    weight, values, magnitudes = stack_of(kind, count, n, k, group_size)
    choices = sorted_choices(ids)
    found = launch.experts(device, x, weight, count, choices, bias, many_rows)
    expected = expected_experts(device, x, kind, values, magnitudes, ids, bias)
    reference.assert_close(found, expected)


@pytest.mark.parametrize(
    "kind, group_size", [("int8", 16), ("fp4", 64), ("int4", 128), ("fp8", 128)]
)
def test_scales_of_all_experts_are_found_in_float32(device, kind, group_size):
    x, ids = activations(3, 128).reshape(3, 1, 128), chosen_ids(3, 5, 2)
    weight, values, magnitudes = stack_of(kind, 5, 32, 128, group_size, np.float32)
    found = launch.experts(device, x, weight, 5, sorted_choices(ids))
    reference.assert_close(found, expected_experts(device, x, kind, values, magnitudes, ids))


def test_dense_experts_need_no_whole_tiles(device):
    x = np.random.default_rng(0).standard_normal((4, 1, 37)).astype(np.float32)
    ids = chosen_ids(4, 3, 2)
    weight, values, _ = stack_of("f16", 3, 21, 37)
    for many_rows in (False, True):
        found = launch.experts(device, x, weight, 3, sorted_choices(ids), None, many_rows)
        reference.assert_close(found, expected_experts(device, x, "f16", values, None, ids))


@pytest.mark.parametrize("kind", ["f32", "bf16", *PACKED_KINDS])
@pytest.mark.parametrize("many_rows", [False, True])
def test_a_choice_gets_the_same_bits_whoever_chose_the_same_expert(device, kind, many_rows):
    x, ids = activations(33, 160).reshape(33, 1, 160), chosen_ids(33, 4, 2)
    weight, *_ = stack_of(kind, 4, 32, 160)
    every = launch.experts(device, x, weight, 4, sorted_choices(ids), None, many_rows)
    for part in (slice(0, 1), slice(3, 8), slice(14, 33)):
        choices = sorted_choices(ids[part])
        found = launch.experts(device, x[part], weight, 4, choices, None, many_rows)
        np.testing.assert_array_equal(found, every[part])


@pytest.mark.parametrize("kind", ["f16", "int8"])
@pytest.mark.parametrize(
    "change, value",
    [("expert", -1), ("expert", 99), ("begin", -1), ("end", 99), ("order", -1), ("order", 99)],
)
def test_choices_that_name_what_is_not_there_are_an_error(device, kind, change, value):
    x, ids = activations(2, 64).reshape(2, 1, 64), chosen_ids(2, 4, 2)
    weight, *_ = stack_of(kind, 4, 16, 64)
    order, groups = sorted_choices(ids)
    if change == "order":
        order[1] = value
    else:
        groups[-1, ["expert", "begin", "end"].index(change)] = value
    for many_rows in (False, True):
        with pytest.raises(DeviceError, match="experts"):
            launch.experts(device, x, weight, 4, (order, groups), None, many_rows)


@pytest.mark.parametrize("rows, slots, dim", [(1, 8, 2051), (5, 1, 16), (3, 4, 1024)])
@pytest.mark.parametrize("grows", [False, True])
def test_slots_are_added_up_by_their_weights(device, rows, slots, dim, grows):
    rng = np.random.default_rng(slots)
    values = rng.standard_normal((rows, slots, dim)).astype(np.float32)
    weights = rng.standard_normal((rows, slots)).astype(np.float32)
    y = rng.standard_normal((rows, dim)).astype(np.float32) if grows else None
    found = launch.combine_experts(device, values, weights, y)
    products = values.astype(np.float64) * weights[:, :, None]
    value, size = products.sum(axis=1), np.abs(products).sum(axis=1)
    if grows:
        value, size = value + y, size + np.abs(y)
    reference.assert_close(found, reference.Expected(value, size))


@pytest.mark.parametrize("dim", [1, 37, 1030])
def test_the_clamped_swiglu_is_gpt_oss_s(device, dim):
    rng = np.random.default_rng(dim)
    gate, up = (rng.standard_normal((2, 3, dim)) * 6).astype(np.float32)
    found = launch.gated_mul(device, ops.swiglu_mul, gate, up)
    reference.assert_close(found, reference_experts.swiglu_mul(gate, up))
