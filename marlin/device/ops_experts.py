"""Recording the kernels of a mixture of experts, as ops.py does the others'."""

from typing import NamedTuple

from marlin.device import abi
from marlin.device.ops import BOTH, READ, VAR_TOKENS, WRITE, maybe, read_weight
from marlin.device.program import View, make_params


class Router(NamedTuple):
    """How a token's experts are chosen of their logits, and weighted.

    Attributes:
        num_slots: experts that a token takes.
        gating: "softmax" of all, "sigmoid" of each, "chosen": softmax of the chosen alone.
        normalizes: whether the weights are divided by their sum, plus `epsilon`.
        scale: what they are multiplied by then.
        num_groups, kept_groups: experts are chosen of the groups whose two best add up to most.
        bias: what a bias is for: "ranks", to which it is added, and not to the weights; "factors",
            which the weights are multiplied by at last.
    """

    num_experts: int
    num_slots: int
    gating: str = "softmax"
    normalizes: bool = True
    scale: float = 1.0
    epsilon: float = 0.0
    num_groups: int = 1
    kept_groups: int = 1
    bias: str = "ranks"


class Choices(NamedTuple):
    """What a step's tokens chose: int32 [tokens, num_slots], float weights of the same shape, and
    what sort_experts makes of them."""

    ids: View
    weights: View
    order: View
    groups: View


def choose(recorder, logits, bias, router, ids, weights):
    """Choose the experts of each token.

    Args:
        logits: float [tokens, num_experts].
        bias: float [num_experts], for what router.bias says, or None.
        ids, weights: int32 and float [tokens, num_slots].
    """
    params = make_params(
        "RouteParams",
        rows_var=VAR_TOKENS,
        num_experts=router.num_experts,
        num_slots=router.num_slots,
        gating=abi.GATES[router.gating],
        normalizes=int(router.normalizes),
        bias=0 if bias is None else abi.ROUTE_BIASES[router.bias],
        num_groups=router.num_groups,
        kept_groups=router.kept_groups,
        scale=router.scale,
        epsilon=router.epsilon,
    )
    outputs = [(ids, WRITE), (weights, WRITE)]
    recorder.dispatch("route", params, [(logits, READ), maybe(bias, READ), *outputs])


def route(recorder, logits, bias, router, choices):
    """choose(), and sort the choices by expert."""
    choose(recorder, logits, bias, router, choices.ids, choices.weights)
    sort(recorder, choices, router.num_experts, router.num_slots)


def sort(recorder, choices, num_experts, num_slots):
    """Fill a step's order and groups by its ids."""
    counts = {"num_experts": num_experts, "num_slots": num_slots}
    params = make_params("SortParams", rows_var=VAR_TOKENS, **counts)
    outputs = [(choices.order, WRITE), (choices.groups, WRITE)]
    recorder.dispatch("sort_experts", params, [(choices.ids, READ), *outputs])


def experts(
    recorder, x, weight, y, x_slots, choices, num_slots, bias=None, many_rows=False, label=""
):
    """y[t, s] = W x + bias of the expert that token t chose as its s-th.

    Args:
        x: float [tokens, x_slots, k]; x_slots is 1, or num_slots: a row a choice.
        weight: of all experts, [num_experts, n, k].
        y: float [tokens, num_slots, n].
        bias: float [num_experts, n] or None.
        many_rows: chooses the kernel made for a prefill.
    """
    params = make_params(
        "ExpertParams",
        rows_var=VAR_TOKENS,
        n=weight.n,
        k=weight.k,
        group_size=weight.group_size,
        flags=weight.flags | (abi.OUTPUT_BIAS if bias is not None else 0),
        num_experts=weight.num_experts,
        num_slots=num_slots,
        x_slots=x_slots,
    )
    chosen = [(choices.order, READ), (choices.groups, READ)]
    bindings = [(x, READ), *read_weight(weight), maybe(bias, READ), (y, WRITE), *chosen]
    kernel = "matmul" if many_rows else "matvec"
    recorder.dispatch(f"{kernel}_experts_{weight.kind}", params, bindings, label=label)


def combine_experts(recorder, values, weights, y, dim, num_slots, adds=False):
    """y[t] = the sum of weights[t, s] * values[t, s] over the slots (+ y[t], where it adds)."""
    params = make_params(
        "CombineParams", rows_var=VAR_TOKENS, dim=dim, num_slots=num_slots, adds=int(adds)
    )
    accesses = (READ, READ, BOTH if adds else WRITE)
    bindings = list(zip((values, weights, y), accesses, strict=True))
    recorder.dispatch("combine_experts", params, bindings)
