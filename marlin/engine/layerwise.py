"""Runs texts through a checkpoint one layer at a time, in float32, so that a model is seen at work
whose weights never lie in memory together.

Owns the hidden states between layers, and one layer's weights. Who asks may read what a matrix is
given, and put other values in its place before the layer's result is passed on. Knows no requests
and no sampling; refuses encoders.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import numpy as np

from marlin.device import ops
from marlin.device.device import Device
from marlin.device.ops import Weight
from marlin.device.program import Recorder, View
from marlin.engine.batch import Batch
from marlin.engine.kv_cache import Paging, groups_of, layer_cache, state_bytes
from marlin.engine.request import Chunk, Request
from marlin.engine.sampling import SamplingParams
from marlin.errors import ConfigError
from marlin.models.layers import Step, StepInputs, StepSizes
from marlin.models.model import create_activations, ropes_of
from marlin.models.rope import rope_inv_freq
from marlin.models.spec import ModelSpec, Tensor, constants_of, tensors_of
from marlin.weights.convert import SourceTensor


@dataclass(frozen=True, slots=True)
class Stage:
    """Matrices that are given the same inputs.

    Attributes:
        x: the activations that they are given.
        num_before: dispatches of the layer that make them.
        tensors: the matrices.
    """

    x: str
    num_before: int
    tensors: list[Tensor]


@dataclass(frozen=True, slots=True)
class _WatchedStep(Step):
    """A Step that notes which matrix is given what."""

    stages: list[Stage] = field(default_factory=list)

    def linear(self, x, layer, y, label, then=None):
        last = self.stages[-1] if self.stages else None
        if last is None or last.x != x:
            self.stages.append(last := Stage(x, len(self.recorder), []))
        last.tensors.append(layer.weight)
        Step.linear(self, x, layer, y, label, then)


class LayerRunner:
    """Texts on their way through a model.

    Args:
        sources: {name: SourceTensor} of the model's tensors.
        token_ids: int32 [num_texts, num_tokens].

    Attributes:
        hidden, delta: float32 [num_texts, num_tokens, hidden_dim], the residual stream before the
            next layer, and what that layer has yet to add to it.
        stages: of the layer that is loaded, in the order in which it needs their inputs.

    Raises:
        ConfigError: the model is an encoder or has states, rows of tokens or layers that read what
            others cache, or a layer of it cannot be watched.
    """

    def __init__(
        self,
        device: Device,
        spec: ModelSpec,
        sources: dict[str, SourceTensor],
        token_ids: np.ndarray,
    ):
        if spec.is_encoder:
            raise ConfigError(f"{spec.config.architecture} is an encoder; it cannot be calibrated")
        if state_bytes(spec):
            message = f"{spec.config.architecture} has layers with a state; it cannot be calibrated"
            raise ConfigError(message)
        if spec.token_rows or len(spec.layers) > sum(map(len, groups_of(spec).values())):
            message = "has rows of tokens or layers that read what others cache"
            raise ConfigError(f"{spec.config.architecture} {message}; it cannot be calibrated")
        self.spec = spec
        self.stages: list[Stage] = []
        self._device, self._sources = device, sources
        num_tokens = token_ids.shape[1]
        block = -(-num_tokens // 16) * 16
        paging = Paging.contiguous(block)
        self._sizes = StepSizes(num_tokens, 0, paging.max_splits)
        self._batch = Batch(device, paging, 1, num_tokens, 1, 1, 1)
        # One token more than is computed, so that none is sampled.
        request = Request("", [0] * (num_tokens + 1), SamplingParams(), 0, block_ids=[0])
        self._vars = self._batch.fill([Chunk(request, 0, num_tokens)]).vars
        self._caches = self._make_caches(paging)
        self._acts = self._make_activations()
        self._ropes = self._make_ropes()
        self.hidden = self._embed(token_ids)
        self.delta = np.zeros_like(self.hidden)
        self._weights: dict[str, Weight | View] = {}
        self._program = None

    def _make_caches(self, paging):
        found = {}
        for cache, indices in groups_of(self.spec).items():
            where = self._batch.places[None]
            made = layer_cache(self._device, paging.layout(cache), where)
            found |= dict.fromkeys(indices, made)
        return [found[index] for index in range(len(self.spec.layers))]

    def _make_activations(self):
        width = self._sizes.max_tokens, self.spec.config.hidden_dim
        shapes = dict.fromkeys(("hidden", "normed", "delta"), width)
        for layer in self.spec.layers:
            for name, shape in layer.activations(self._sizes).items():
                shapes[name] = max(shape, shapes.get(name, shape), key=np.prod)
        return create_activations(self._device, shapes)

    def _make_ropes(self):
        tables, recorder = {}, Recorder(self._device)
        for rope in ropes_of(self.spec):
            factors = None
            if rope.factors is not None and rope.factors.name in self._sources:
                factors = self._values(rope.factors).ravel()
            context = self.spec.config.max_context_tokens
            frequencies, scale = rope_inv_freq(rope.dim, rope.theta, rope.scaling, factors, context)
            table = View.of(self._device.create(self._sizes.max_tokens * rope.dim * 4))
            inv_freq = View.of(self._device.create_from(frequencies))
            positions, half = self._batch.views["positions"], rope.dim // 2
            ops.rope_table(recorder, positions, inv_freq, table, half, scale)
            tables[rope] = table
        if tables:
            program = recorder.finish()
            program.run(*self._vars)
            program.close()
        return tables

    def _values(self, tensor):
        source = self._sources[tensor.name]
        values = source.rows(0, source.shape[0]).astype(np.float32, copy=False)
        return values + np.float32(tensor.plus) if tensor.plus else values

    def _embed(self, token_ids):
        source = self._sources[self.spec.embedding.name]
        found = np.empty((*token_ids.shape, self.spec.config.hidden_dim), np.float32)
        for start, stop in source.chunks():
            here = (token_ids >= start) & (token_ids < stop)
            if here.any():
                found[here] = source.rows(start, stop)[token_ids[here] - start]
        found *= np.float32(self.spec.embed_scale)
        if self.spec.embed_norm is not None:
            power = np.square(found).mean(axis=-1, keepdims=True)
            norm = self.spec.embed_norm.value / np.sqrt(power + self.spec.config.rms_norm_eps)
            found *= norm.astype(np.float32)
        return found

    def load(self, index: int) -> None:
        """Load a layer in place of the last one."""
        layer = self.spec.layers[index]
        self._load(tensors_of(layer), lambda step: layer.record(step, index))

    def _load(self, tensors, record):
        """Load tensors, and record a program that reads them."""
        self.unload()
        for tensor in dict.fromkeys(tensors):
            if tensor.name in self._sources:
                view = View.of(self._device.create_from(self._values(tensor)))
                experts = tensor.shape[0] if tensor.is_matrix and tensor.stack else 0
                n, k = tensor.shape[-2:] if tensor.is_matrix else (0, 0)
                weight = Weight("f32", n, k, view, num_experts=experts)
                self._weights[tensor.name] = weight if tensor.is_matrix else view
        for constant in constants_of(self.spec):
            values = np.full(constant.shape, constant.value, np.float32)
            self._weights[constant.name] = View.of(self._device.create_from(values))
        views = self._batch.views
        names = (row.name for row in fields(StepInputs) if row.name in views)
        inputs = StepInputs(**{name: views[name] for name in names}, caches=self._caches)
        recorder = Recorder(self._device)
        given = self.spec.config, inputs, self._weights, self._acts, self._ropes
        step = _WatchedStep(recorder, *given, True, self.spec.residual_scale)
        record(step)
        self.stages, self._program = step.stages, recorder.finish()

    def inputs(self, stage: Stage) -> Iterator[np.ndarray]:
        """What a stage's matrices are given: float32 [num_tokens, columns] of each text, valid
        until the next one is asked for."""
        rows, columns = self._sizes.max_tokens, stage.tensors[0].shape[-1]
        for text in range(len(self.hidden)):
            self._run(text, stage.num_before)
            yield self._array(stage.x, (rows, columns))

    def replace(self, tensor: Tensor, start: int, values: np.ndarray) -> None:
        """Put values, float32 [rows, columns], in the place of a matrix's rows from `start`."""
        weight = self._weights[tensor.name]
        assert isinstance(weight, Weight)
        whole = weight.data.buffer.array(np.float32, (weight.num_rows, weight.k))
        whole[start : start + len(values)] = values

    def advance(self) -> None:
        """Pass every text through the layer that is loaded."""
        for text in range(len(self.hidden)):
            self._run(text, None)
            for name, state in (("hidden", self.hidden), ("delta", self.delta)):
                state[text] = self._array(name, state[text].shape)

    def finish(self) -> np.ndarray:
        """float32 [num_texts, num_tokens, hidden_dim], what the output matrix is given."""
        norm, leaves_delta = self.spec.norm, self.spec.layers[-1].leaves_delta
        assert norm is not None

        def record(step):
            step.norm(norm, delta=step.acts["delta"] if leaves_delta else None)

        self._load([norm], record)
        found = np.empty_like(self.hidden)
        for text in range(len(found)):
            self._run(text, None)
            found[text] = self._array("normed", found[text].shape)
        self.unload()
        return found

    def _run(self, text, count):
        for name, state in (("hidden", self.hidden), ("delta", self.delta)):
            self._array(name, state[text].shape)[...] = state[text]
        assert self._program is not None
        if count != 0:
            self._program.run(*self._vars, count=count)

    def _array(self, name, shape):
        return self._acts[name].buffer.array(np.float32, shape)

    def unload(self) -> None:
        """Free the layer's weights."""
        if self._program is not None:
            self._program.close()
            self._program = None
        for weight in self._weights.values():
            view = weight.data if isinstance(weight, Weight) else weight
            view.buffer.release()
        self._weights.clear()
