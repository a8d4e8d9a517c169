"""A model on a device: the weights of its spec, and how its forward step is recorded.

Knows what every family has: an embedding, layers, a norm, an output matrix. What is in a layer is
the family's.
"""

import numpy as np

from marlin.device import ops
from marlin.device.device import Device
from marlin.device.ops import Weight
from marlin.device.program import Recorder, View
from marlin.errors import ModelFileError
from marlin.models.layers import LOOKED_UP, Rope, Step, StepInputs, StepSizes
from marlin.models.layers_encoder import layer_norm
from marlin.models.layers_latent import HEAD_IDS
from marlin.models.rope import rope_inv_freq
from marlin.models.spec import ModelSpec, Tensor, constants_of, tensors_of
from marlin.weights import ggml_types
from marlin.weights.block_types import DENSE_KINDS
from marlin.weights.kinds import ROW_TILE

# Prompt tokens whose logits are computed at once: one reading of the output matrix, and 10 MB for
# 150,000 tokens of vocabulary.
SCORED_ROWS = 16


def activation_shapes(spec: ModelSpec, sizes: StepSizes) -> dict[str, tuple[int, int]]:
    """{name: (rows, float32 values a row)} of a step's activations."""
    config, max_tokens = spec.config, sizes.max_tokens
    shapes = dict.fromkeys(("hidden", "normed", "delta"), (max_tokens, config.hidden_dim))
    if spec.is_encoder:
        del shapes["hidden"]
        shapes["positions"] = config.max_context_tokens, config.hidden_dim
    else:
        num_rows = min(max_tokens, sizes.max_logits)
        shapes["squares"] = num_rows, -(-config.hidden_dim // ROW_TILE)
        shapes["last"] = sizes.max_logits, config.hidden_dim
        shapes["logits"] = sizes.max_logits, config.vocab_size
        shapes["scored"] = SCORED_ROWS, config.hidden_dim
        shapes["scores"] = SCORED_ROWS, config.vocab_size
    for index, rope in enumerate(ropes_of(spec)):
        shapes[f"rope {index}"] = max_tokens, rope.dim
    for part in (*spec.layers, *([spec.token_rows] if spec.token_rows else [])):
        for name, shape in part.activations(sizes).items():
            shapes[name] = max(shape, shapes.get(name, shape), key=np.prod)
    return shapes


def create_activations(device: Device, shapes: dict[str, tuple[int, int]]) -> dict[str, View]:
    """Views of activation_shapes(), filled where they hold the same in every step."""
    sizes = {name: max(4, 4 * rows * columns) for name, (rows, columns) in shapes.items()}
    acts = {name: View.of(device.create(size)) for name, size in sizes.items()}
    if HEAD_IDS in acts:
        shape = shapes[HEAD_IDS]
        acts[HEAD_IDS].buffer.array(np.int32, shape)[...] = np.arange(shape[1])
    return acts


def read_share(tensor: Tensor) -> float:
    """The share of a matrix that one token reads."""
    return tensor.stack.num_chosen / tensor.shape[0] if tensor.stack else 1.0


def ropes_of(spec: ModelSpec) -> tuple[Rope, ...]:
    """Each RoPE of a model once, in the order of its layers."""
    found = dict.fromkeys(layer.attention.rope for layer in spec.layers)
    return tuple(rope for rope in found if rope is not None)


class Model:
    """Weights of one model on a device, and how to record its forward step.

    Args:
        context_tokens: the longest context that will be asked for; None is the model's own.

    Attributes:
        weights: {tensor name: Weight of a matrix, View of float32 otherwise}.

    Raises:
        ModelFileError: a tensor cannot be read, or a size is one that the kernels cannot run.
    """

    def __init__(self, checkpoint, context_tokens=None):
        self.spec: ModelSpec = checkpoint.spec
        self._path = checkpoint.path
        self.config = self.spec.config
        for layer in self.spec.layers:
            head_dim = getattr(layer.attention.cache, "head_dim", 0)
            if head_dim % 16:
                message = f"head_dim is {head_dim}, expected a multiple of 16"
                raise ModelFileError(checkpoint.path, message)
        self.weights = checkpoint.load()
        self._table = checkpoint.row_table()
        for constant in constants_of(self.spec):
            values = np.full(constant.shape, constant.value, np.float32)
            self.weights[constant.name] = View.of(checkpoint.device.create_from(values))
        device = checkpoint.device
        self._context_tokens = context_tokens or self.config.max_context_tokens
        self._ropes = {rope: self._frequencies(rope, device) for rope in ropes_of(self.spec)}

    def _frequencies(self, rope, device):
        """(View of float32 [dim / 2], what cos and sin are multiplied by)."""
        factors = rope.factors and self.weights.get(rope.factors.name)
        if factors is not None:
            factors = factors.buffer.array(np.float32, (rope.dim // 2,), factors.offset)
        sizes = factors, self._context_tokens
        inv_freq, scale = rope_inv_freq(rope.dim, rope.theta, rope.scaling, *sizes)
        return View.of(device.create_from(inv_freq)), scale

    def _layer_weights(self) -> list[tuple[Weight, float]]:
        """The layers' matrices, and the share of each that a token reads: its own experts."""
        tensors = [tensor for tensor in tensors_of(self.spec.layers) if tensor.is_matrix]
        return [(self.weights[tensor.name], read_share(tensor)) for tensor in tensors]

    @property
    def _lm_head(self) -> Weight:
        assert self.spec.lm_head is not None, "an encoder has no logits"
        return self.weights[self.spec.lm_head.name]

    @property
    def num_layer_weights(self) -> int:
        """Weights in the layers' matrices: each takes a multiplication a prompt token."""
        return round(sum(share * w.num_rows * w.k for w, share in self._layer_weights()))

    @property
    def decode_bytes(self) -> int:
        """Weight bytes that one decoded token reads: every matrix but an untied embedding."""
        return self._lm_head.num_bytes + round(
            sum(share * weight.num_bytes for weight, share in self._layer_weights())
        )

    def allocate(self, device: Device, sizes: StepSizes) -> dict[str, View]:
        """The activations of a step."""
        shapes = activation_shapes(self.spec, sizes)
        acts = create_activations(device, shapes)
        if self.spec.learned is not None:
            table = acts["positions"].buffer.array(np.float32, shapes["positions"])
            learned = self.spec.learned
            table[...] = self._values(learned.positions)[learned.first :]
            if learned.types is not None:
                table += self._values(learned.types)[0]
        return acts

    def look_up(self, token_ids: np.ndarray, acts: dict[str, View]) -> None:
        """Fill what a step that computes these tokens is given of a table's rows."""
        if self._table is not None:
            rows, view = self._table.rows(token_ids), acts[LOOKED_UP]
            view.buffer.array(np.float32, rows.shape, view.offset)[...] = rows

    def _values(self, tensor):
        """float32 [rows, columns] of a matrix that is stored as it is."""
        weight: Weight = self.weights[tensor.name]
        if weight.kind.upper() not in DENSE_KINDS:
            raise ModelFileError(self._path, f"is {weight.kind}; F32, F16 or BF16 is read here")
        stored = weight.data.buffer.array(np.uint8, (weight.data.num_bytes,), weight.data.offset)
        return ggml_types.dequantize(weight.kind.upper(), stored, (weight.n, weight.k))

    def record(
        self, recorder: Recorder, inputs: StepInputs, acts: dict[str, View], prefill: bool
    ) -> None:
        """Record one forward step, from token ids to logits, or to an encoder's last states.

        Args:
            prefill: True for steps with many tokens a sequence, False for one token a sequence.
        """
        spec = self.spec
        if spec.learned is not None:
            return self._record_encoder(recorder, inputs, acts, spec.learned)
        assert spec.norm is not None
        ropes = {rope: acts[f"rope {index}"] for index, rope in enumerate(self._ropes)}
        embedding = self.weights[spec.embedding.name]
        ops.embed(recorder, inputs.token_ids, embedding, acts["hidden"], scale=spec.embed_scale)
        if spec.embed_norm is not None:
            norm, hidden = self.weights[spec.embed_norm.name], acts["hidden"]
            sizes = self.config.hidden_dim, self.config.rms_norm_eps
            ops.rms_norm(recorder, hidden, norm, hidden, *sizes)
        for rope, (inv_freq, scale) in self._ropes.items():
            table = ropes[rope]
            ops.rope_table(recorder, inputs.positions, inv_freq, table, rope.dim // 2, scale)
        scale = spec.residual_scale
        rest = ropes, prefill, scale, spec.layers
        step = Step(recorder, self.config, inputs, self.weights, acts, *rest)
        if spec.token_rows is not None:
            spec.token_rows.record(step)
        for index, layer in enumerate(spec.layers):
            layer.record(step, index)
        step.norm(spec.norm, delta=acts["delta"] if spec.layers[-1].leaves_delta else None)
        self._record_head(recorder, inputs.logit_rows, acts["normed"], acts["last"], acts["logits"])

    def _record_encoder(self, recorder, inputs, acts, learned):
        """The states of the last layer are left in "normed"."""
        spec = self.spec
        config, positions = self.config, acts["positions"]
        shape = config.max_context_tokens, config.hidden_dim
        ops.embed(recorder, inputs.token_ids, self.weights[spec.embedding.name], acts["normed"])
        ops.embed(recorder, inputs.positions, Weight("f32", *shape, positions), acts["delta"])
        step = Step(recorder, config, inputs, self.weights, acts, {}, prefill=True)
        layer_norm(step, learned.norm)
        for index, layer in enumerate(spec.layers):
            layer.record(step, index)

    def record_scores(self, recorder: Recorder, rows: View, acts: dict[str, View]) -> None:
        """Record the logits of more rows of the step that was last run, up to SCORED_ROWS."""
        self._record_head(recorder, rows, acts["normed"], acts["scored"], acts["scores"])

    def _record_head(self, recorder, rows, normed, last, logits):
        ops.gather_rows(recorder, rows, normed, last, self.config.hidden_dim)
        lm_head = self._lm_head
        ops.linear(recorder, last, lm_head, logits, ops.VAR_LOGITS, label="lm_head")
        if self.spec.logit_scale != 1.0 or self.spec.logit_cap:
            sizes = self.config.vocab_size, self.spec.logit_scale, self.spec.logit_cap
            ops.scale_rows(recorder, logits, logits, *sizes)
