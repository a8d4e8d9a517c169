"""Quantizes a model's layers by what a text gives their matrices.

Layer after layer, each matrix's inputs are seen as the matrices before it left them once they were
quantized; then it is quantized for these inputs. Owns that order. How texts pass through a layer is
layerwise.py's, how codes are chosen for inputs weights/feedback.py's and weights/rounding.py's.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from marlin.device.device import Device
from marlin.engine.layerwise import LayerRunner
from marlin.errors import ConfigError
from marlin.models.registry import spec_of
from marlin.models.source import Source
from marlin.models.spec import ModelSpec, tensors_of
from marlin.weights.feedback import DAMPING, Moments, quantize_with_feedback, trust_of
from marlin.weights.formats import quantize
from marlin.weights.kinds import GROUP_SIZES

# Tokens of a text that is passed through the model as one: enough for attention to be as in use,
# and few enough for a cache and activations that are small beside a layer.
TEXT_TOKENS = 512
METHODS = ("weighted", "gptq")
# Columns of inputs by which it is judged how far their products can be trusted.
TRUST_COLUMNS = 512
# How many values the moments of a matrix's inputs may be, as a share of those of the largest layer,
# which lies in memory beside them. Columns are divided where they would be more.
MOMENTS_SHARE = 0.8
# Columns of inputs that are multiplied at a time.
MOMENT_COLUMNS = 256


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a model's inputs are learnt from.

    Attributes:
        method: "nearest", which needs none, or one of METHODS: "weighted" counts squared errors by
            how large a column's inputs are; "gptq" feeds errors forward.
        text: what the model reads.
        num_tokens: as many of its tokens as are read.
        mixed_bits: bits a weight to which kinds are mixed (mixing.py); None: all are of one.
    """

    method: str
    text: str
    num_tokens: int
    mixed_bits: float | None = None


def texts_of(token_ids: list[int], num_tokens: int) -> np.ndarray:
    """int32 [texts, tokens]: texts of TEXT_TOKENS, spread over all that there are, of num_tokens
    together; one text where there are fewer.

    Raises:
        ConfigError: there are no tokens.
    """
    length = min(TEXT_TOKENS, len(token_ids), num_tokens)
    if not length:
        raise ConfigError("the text to calibrate with has no tokens")
    whole = len(token_ids) // length
    count = min(whole, num_tokens // length)
    starts = [index * whole // count * length for index in range(count)]
    return np.array([token_ids[start : start + length] for start in starts], np.int32)


def convert_layers(
    device: Device,
    source: Source,
    packed: set[str],
    calibration: Calibration,
    convert_one: Callable,
    begin: tuple[int, Sequence[np.ndarray]],
    end_layer: Callable[[set[str], int, Sequence[np.ndarray]], None],
) -> None:
    """Convert the tensors of every layer.

    Args:
        packed: names of the matrices that are to be quantized.
        convert_one: (name, pack, see), the latter two as convert()'s; without, (name).
        begin: the first layer to do, and what end_layer was given of the one before it.
        end_layer: called after each layer with the names of its tensors, the next layer's number,
            and the states that texts are in before it.

    Raises:
        ConfigError: the text has no tokens, or the model is one that cannot be calibrated.
        ModelFileError: as convert(), or the tokenizer cannot be read.
    """
    token_ids = source.load_tokenizer().encode(calibration.text)
    texts = texts_of(token_ids, calibration.num_tokens)
    sources = {tensor.name: tensor for tensor in source.tensors}
    runner = LayerRunner(device, spec_of(source.config), sources, texts)
    first, states = begin
    for own, state in zip((runner.hidden, runner.delta), states, strict=False):
        own[...] = state
    for index, layer in enumerate(runner.spec.layers[first:], first):
        runner.load(index)
        done = _convert_layer(runner, packed, calibration.method, convert_one)
        for name in dict.fromkeys(tensor.name for tensor in tensors_of(layer)):
            if name in sources and name not in done:
                convert_one(name)
                done.add(name)
        runner.advance()
        end_layer(done, index + 1, (runner.hidden, runner.delta))
    runner.unload()


def _convert_layer(runner, packed, method, convert_one):
    """Convert what of the loaded layer is seen with its inputs; returns the names."""
    done = set()
    for stage in runner.stages:
        tensors = [tensor for tensor in stage.tensors if tensor.name in packed]
        if tensors:
            pack = pack_for(runner.inputs(stage), method, moments_room(runner.spec))
        for tensor in tensors:
            convert_one(tensor.name, pack, partial(runner.replace, tensor))
            done.add(tensor.name)
    return done


def moments_room(spec: ModelSpec) -> int:
    """The most values that the moments of a matrix's inputs may be, by MOMENTS_SHARE."""
    layers = [dict.fromkeys(tensors_of(layer)) for layer in spec.layers]
    return int(MOMENTS_SHARE * max(sum(math.prod(t.shape) for t in layer) for layer in layers))


def pack_for(inputs: Iterable[np.ndarray], method: str, room: int) -> Callable:
    """formats.quantize_native, for matrices that are given these inputs.

    Args:
        inputs: float32 [num_tokens, columns] of each text.
        method: one of METHODS.
        room: values that may be held of how columns go together.
    """
    if method == "gptq":
        return partial(quantize_with_feedback, moments=_moments(inputs, room), native=True)
    total, count = np.float32(0), 0
    for x in inputs:
        total = total + np.square(x).sum(axis=0)
        count += len(x)
    total /= count
    damped = total + np.float32(DAMPING * float(total.mean()) or 1.0)
    return partial(quantize, importance=damped, native=True)


def _moments(inputs, room):
    """Moments of as few parts of the columns as there is room for, trusted as far as each other
    text agrees with those between, or both halves of a single one."""
    parts, halves, count = [], [np.float32(0), np.float32(0)], 0
    for index, x in enumerate(inputs):
        if not parts:
            parts = _divide(x.shape[1], room)
            totals = [np.zeros((part.stop - part.start,) * 2, np.float32) for part in parts]
        for part, total in zip(parts, totals, strict=True):
            _add_products(x[:, part], total)
        count += len(x)
        some = x[:, :: -(-x.shape[1] // TRUST_COLUMNS)]
        halves[index % 2] = halves[index % 2] + some.T @ some
    if count == len(x):
        halves = [part.T @ part for part in np.array_split(some, 2)]
    trust = trust_of(*halves)
    del halves
    for total in totals:
        total /= count
    return [Moments(total, trust) for total in totals]


def _divide(num_columns, room):
    """Slices of columns, whole groups of any size, whose products are no more than room."""
    unit = math.gcd(num_columns, max(GROUP_SIZES))
    for count in range(1, num_columns // unit + 1):
        width = -(-num_columns // unit // count) * unit
        if num_columns * width <= room:
            break
    starts = range(0, num_columns, width)
    return [slice(start, min(start + width, num_columns)) for start in starts]


def _add_products(x, total):
    for start in range(0, len(total), MOMENT_COLUMNS):
        rows = slice(start, start + MOMENT_COLUMNS)
        total[rows] += x[:, rows].T @ x
