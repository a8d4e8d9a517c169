"""Chooses the kind of each matrix of a model's layers, so that a budget of bits is spent where it
keeps what the model says.

Each layer in turn is quantized alone, and a text goes on through the layers behind it: how much
that changes the next token's probabilities is what its errors cost. Each matrix has a share of that
as large as what it alone changes of its layer's result. Owns that measurement and the choice; how
matrices are quantized then is calibration.py's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from marlin.device.device import Device
from marlin.engine.layerwise import LayerRunner
from marlin.errors import ConfigError
from marlin.models.registry import spec_of
from marlin.models.source import Source
from marlin.models.spec import tensors_of
from marlin.weights.feedback import DAMPING
from marlin.weights.formats import dequantize, quantize
from marlin.weights.kinds import ROW_TILE, native_form

# What a matrix may become, the first that fits it being what its errors are measured with.
CHOICES = (
    *(("iq4", 32), ("iq4", 64), ("iq4", 128), ("int4", 32)),
    *(("int5", 128), ("int5", 64), ("int5", 32), ("int6", 128), ("int6", 64), ("int6", 32)),
    *(("int8", 128), ("int8", 64), ("int8", 32)),
)
# Tokens that go through the model once for each layer.
MIX_TOKENS = 256
# Likeliest tokens by which a change of probabilities is measured, and positions whose logits lie in
# memory together.
TOP_TOKENS, LOGIT_ROWS = 64, 64
# Tiles of a matrix's first rows whose error stands for all of it.
SAMPLE_TILES = 8


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What a matrix's errors cost.

    Attributes:
        num_values: of the matrix; num_columns: of these a row.
        costs: {choice: the KL divergence that is expected of it}.
    """

    num_values: int
    num_columns: int
    costs: dict[tuple[str, int], float]

    def bits_of(self, choice: tuple[str, int]) -> float:
        return bits_of(*choice, self.num_columns)


def bits_of(format: str, group_size: int, num_columns: int) -> float:
    """Bits a weight of a packed kind in a native folder, padding aside."""
    form = native_form(format, group_size)
    return 8 * sum(form.part_bytes(ROW_TILE, num_columns)) / (ROW_TILE * num_columns)


def choose(matrices: dict[str, Sensitivity], bits: float) -> dict[str, tuple[str, int]]:
    """The choice of each matrix, by name, of no more than so many bits a weight together.

    Raises:
        ConfigError: no choice is of so few bits.
    """
    budget = bits * sum(matrix.num_values for matrix in matrices.values())
    chosen, steps, used = {}, [], 0.0
    for name, matrix in matrices.items():
        hull = _hull(matrix)
        chosen[name] = hull[0]
        used += matrix.bits_of(hull[0]) * matrix.num_values
        for low, high in pairwise(hull):
            extra = (matrix.bits_of(high) - matrix.bits_of(low)) * matrix.num_values
            saved = matrix.costs[low] - matrix.costs[high]
            steps.append((saved / extra, extra, name, high))
    if used > budget:
        least = used / budget * bits
        raise ConfigError(f"--mixed {bits:g} is too few bits: these matrices take {least:.3f}")
    # On a convex hull each matrix's steps come in their order; one that no longer fits ends it for
    # its matrix.
    full = set()
    for _, extra, name, choice in sorted(steps, key=lambda step: -step[0]):
        if used + extra > budget:
            full.add(name)
        if name not in full:
            chosen[name], used = choice, used + extra
    return chosen


def _hull(matrix):
    """The choices on the lower convex hull of bits and costs, from the fewest bits on."""
    costs = matrix.costs
    hull: list[tuple[str, int]] = []
    for choice in sorted(costs, key=lambda choice: (matrix.bits_of(choice), costs[choice])):
        if hull and costs[choice] >= costs[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(matrix, *hull[-2:]) <= _slope(matrix, hull[-2], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _slope(matrix, low, high):
    saved = matrix.costs[low] - matrix.costs[high]
    return saved / (matrix.bits_of(high) - matrix.bits_of(low))


def sensitivities(
    device: Device,
    source: Source,
    packed: set[str],
    text: np.ndarray,
    progress: Callable[[int, int], None],
) -> dict[str, Sensitivity]:
    """Measure the matrices of a model's layers.

    Args:
        packed: names of the matrices that are to be quantized.
        text: int32 [1, tokens].
        progress: called as progress(layers done, layers in all).

    Raises:
        ConfigError: the model is one that cannot be calibrated.
        ModelFileError: a tensor cannot be read.
        ValueError: a weight cannot be quantized.
    """
    sources = {tensor.name: tensor for tensor in source.tensors}
    runner = LayerRunner(device, spec_of(source.config), sources, text)
    layers, head = runner.spec.layers, runner.spec.lm_head
    assert head is not None  # decoders have one
    # The text as it is comes first, and then as each layer in turn has left it.
    states, measured = [(runner.hidden, runner.delta)], []
    done: set[str] = set()
    for index in range(len(layers)):
        runner.load(index)
        before, matrices = states[0], _matrices(runner, layers[index], states[0], packed - done)
        states = [_passed(runner, state) for state in states]
        seen = {}
        for tensor, power in matrices:
            given = runner, sources[tensor.name], tensor, power
            seen[tensor.name] = _measure(*given, before, states[0])
        for tensor, power in matrices:
            _quantize(runner, sources[tensor.name], tensor, power)
        states.append(_passed(runner, before))
        measured.append(seen)
        done |= set(seen)
        progress(index + 1, len(layers))
    runner.hidden, runner.delta = (np.concatenate(part) for part in zip(*states, strict=True))
    costs = _divergences(runner.spec, sources[head.name], runner.finish())
    found = {}
    for layer, cost in zip(measured, costs, strict=True):
        total = sum(share for share, _ in layer.values()) or 1.0
        for name, (share, errors) in layer.items():
            scale = cost * share / total / (next(iter(errors.values())) or 1.0)
            scaled = {choice: scale * error for choice, error in errors.items()}
            found[name] = Sensitivity(sources[name].num_values, sources[name].shape[1], scaled)
    return found


def _matrices(runner, layer, state, wanted):
    """(tensor, mean squares of its inputs) of the loaded layer's matrices in `wanted`; experts'
    inputs are not seen."""
    runner.hidden, runner.delta = (part.copy() for part in state)
    found = []
    for stage in runner.stages:
        power = np.mean([np.square(x).mean(axis=0) for x in runner.inputs(stage)], axis=0)
        found += [(tensor, power) for tensor in stage.tensors if tensor.name in wanted]
    seen = {tensor.name for tensor, _ in found}
    rest = dict.fromkeys(tensor for tensor in tensors_of(layer) if tensor.name in wanted - seen)
    return found + [(tensor, None) for tensor in rest]


def _measure(runner, source, tensor, power, before, after):
    """(what of the layer's result changes with this matrix quantized, {choice: squared error})."""
    _quantize(runner, source, tensor, power)
    (changed, exact) = (sum(state) for state in (_passed(runner, before), after))
    for start, stop in source.chunks():
        runner.replace(tensor, start, source.rows(start, stop))
    # Of each position as a share of its own size: a first token's can be a thousand others'.
    change = np.square(changed - exact).sum(axis=2) / np.square(exact).sum(axis=2)
    sample, importance = _sample(source), _importance(power)
    weights = np.float32(1) if importance is None else importance
    errors = {}
    for format, size in _choices(source):
        error = dequantize(quantize(format, sample, size, importance, True)) - sample
        errors[format, size] = float((np.square(error).mean(axis=0) * weights).sum())
    return float(change.mean()), errors


def _quantize(runner, source, tensor, power):
    (format, size), *_ = _choices(source)
    for start, stop in source.chunks():
        packed = quantize(format, source.rows(start, stop), size, _importance(power), True)
        runner.replace(tensor, start, dequantize(packed))


def _choices(source):
    return [choice for choice in CHOICES if source.shape[1] % choice[1] == 0]


def _importance(power):
    if power is None:
        return None
    return power + np.float32(DAMPING * float(power.mean()) or 1.0)


def _sample(source):
    """Rows spread over a matrix's first piece."""
    rows = source.rows(*source.chunks()[0])
    step = max(1, len(rows) // (SAMPLE_TILES * ROW_TILE))
    return np.ascontiguousarray(rows[::step][: SAMPLE_TILES * ROW_TILE])


def _passed(runner, state):
    runner.hidden, runner.delta = (part.copy() for part in state)
    runner.advance()
    return runner.hidden, runner.delta


def _divergences(spec, head, states):
    """The KL divergence of each of the later states to the first, over its likeliest tokens."""
    exact, width = states[0], min(TOP_TOKENS, head.shape[0])
    tokens = np.concatenate(
        [_likeliest(head, exact[start : start + LOGIT_ROWS], width)
         for start in range(0, len(exact), LOGIT_ROWS)]
    )  # fmt: skip
    rows = np.empty((*tokens.shape, exact.shape[1]), np.float32)
    for start, stop in head.chunks():
        here = (tokens >= start) & (tokens < stop)
        rows[here] = head.rows(start, stop)[tokens[here] - start]
    first = _log_probabilities(spec, rows, exact)
    found = []
    for state in states[1:]:
        other = _log_probabilities(spec, rows, state)
        found.append(float((np.exp(first) * (first - other)).sum(axis=1).mean()))
    return found


def _likeliest(head, states, count):
    """int [rows, count], the tokens of the largest logits."""
    best: np.ndarray = np.full((len(states), 0), -np.inf, np.float32)
    tokens: np.ndarray = np.zeros((len(states), 0), np.int64)
    for start, stop in head.chunks():
        logits = states @ head.rows(start, stop).T
        best = np.concatenate([best, logits], axis=1)
        ids = np.broadcast_to(np.arange(start, stop), logits.shape)
        tokens = np.concatenate([tokens, ids], axis=1)
        keep = np.argsort(-best, axis=1)[:, :count]
        best, tokens = (np.take_along_axis(part, keep, axis=1) for part in (best, tokens))
    return tokens


def _log_probabilities(spec, rows, states):
    logits = np.matmul(rows, states[:, :, None])[:, :, 0] * np.float32(spec.logit_scale)
    if cap := spec.logit_cap:
        logits = cap * np.tanh(logits / cap)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
