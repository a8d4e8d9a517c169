"""The parts that families compose, and how each is recorded: attention, feed-forward.

Every part is a dataclass of Tensors and numbers, known before any weight is loaded. Activations
are float32: "hidden" is the residual stream, "normed" what most parts read, "delta" what they add.
How parts are put together is layers_residual.py's. Knows nothing of files and requests.
"""

from dataclasses import dataclass
from typing import Any

from marlin.device import ops, ops_fused
from marlin.device.ops import AttentionInputs, KvLayout, Weight
from marlin.device.program import Recorder, View
from marlin.models.config import ModelConfig
from marlin.models.rope import RopeScaling
from marlin.models.spec import Constant, FullKV, Fused, KvSpec, Linear, Names, Tensor, WindowKV

# Activations that are filled before a step is run: rows of ModelSpec.token_rows.table.
LOOKED_UP = "looked up"
# y = activation(gate) * up, by the activation's name; GELU as tanh approximates it.
ACTIVATIONS = {"silu": ops.silu_mul, "gelu": ops.gelu_mul}

# Of activations: "normed" as they are before each row is divided by its size, which "squares" has.
SCALED = "scaled"


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's keys and values, in the shapes that KvLayout says, and where a step's are.

    Attributes:
        v: None where the keys hold the values, too.
        slots: int32 [num_tokens].
        tables: int32 [num_sequences, table_stride], the block table of each sequence.
        beyond: int32 [num_tokens], of ops.rope_kv_write().
    """

    k: View
    v: View | None
    layout: KvLayout
    slots: View
    tables: View
    beyond: View

    @property
    def num_bytes(self) -> int:
        return self.k.num_bytes + (self.v.num_bytes if self.v is not None else 0)


@dataclass(frozen=True, slots=True)
class StepInputs:
    """A step's inputs on the device, all filled by the engine.

    Attributes:
        token_ids, positions: int32 [num_tokens].
        tiles: int32 [num_tiles, 4], the queries of each unit of attention.
        logit_rows: int32 [num_logits], tokens whose logits are wanted.
        caches: a LayerCache a layer, or a layers_state.StateCache.
    """

    token_ids: View
    positions: View
    tiles: View
    logit_rows: View
    caches: list[Any]


@dataclass(frozen=True, slots=True)
class StepSizes:
    """The largest step that activations must hold: its tokens, its rows of logits, and the KV
    splits of a context."""

    max_tokens: int
    max_logits: int
    max_splits: int


@dataclass(frozen=True, slots=True)
class Rope:
    """A rotation of queries and keys by their position; layers of the same one share its table.

    Attributes:
        dim: the first dimensions of a head, which it rotates.
        theta, scaling: see rope.py.
        factors: float [dim / 2] that divide the frequencies, where a checkpoint has them.
        interleaved: pairs are neighbours (2i, 2i + 1), and not halves of dim.
    """

    dim: int
    theta: float
    scaling: RopeScaling
    factors: Tensor | None = None
    interleaved: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One forward step while it is recorded.

    Attributes:
        weights: {tensor name: Weight of a matrix, View of float32 otherwise}.
        acts: {name: View} of the activations that the parts have asked for.
        ropes: {Rope: View of float32 [num_tokens, 2, dim / 2], cos and sin}.
        prefill: many tokens a sequence, not one.
        residual_scale: what a delta is multiplied by when hidden grows by it.
        layers: of the model, in their order; none where one runs alone.
    """

    recorder: Recorder
    config: ModelConfig
    inputs: StepInputs
    weights: dict[str, Weight | View]
    acts: dict[str, View]
    ropes: dict[Rope, View]
    prefill: bool
    residual_scale: float = 1.0
    layers: tuple[Any, ...] = ()

    @property
    def fuses(self) -> bool:
        """Whether norms and gates are folded into the matrices around them: where a dispatch less
        is worth another rounding. A CPU goes through two matrices faster one after the other, and
        has the same bits in a prefill."""
        return not self.prefill and self.recorder.device.kind == "metal"

    def packed(self, *layers: Linear) -> bool:
        """Whether norms can be folded into all of these."""
        weights = (self.weights[layer.weight.name] for layer in layers)
        return all(isinstance(w, Weight) and ops_fused.can_fuse(w) for w in weights)

    def norm(self, weight: Tensor, delta: View | None = None) -> None:
        """hidden += delta * residual_scale; normed = rms_norm(hidden)."""
        self.norm_into("hidden", weight, "normed", delta=delta, delta_scale=self.residual_scale)

    def norm_delta(self, weight: Tensor, eps: float | None) -> None:
        """delta = rms_norm(delta); eps None is the model's."""
        self.norm_into("delta", weight, "delta", **({} if eps is None else {"eps": eps}))

    def add_norm(self, weight: Tensor) -> None:
        """hidden += rms_norm(delta)."""
        self.norm_into("delta", weight, "hidden", adds=True)

    def norm_into(self, x: str, weight: Tensor, y: str, **options: Any) -> None:
        """The activations y = rms_norm(the activations x); options are those of ops.rms_norm."""
        values, dim = self.weights[weight.name], self.config.hidden_dim
        options = {"eps": self.config.rms_norm_eps} | options
        ops.rms_norm(self.recorder, self.acts[x], values, self.acts[y], dim, **options)

    def floats(self, tensor: Tensor) -> View:
        """A tensor that is no matrix, float32."""
        found = self.weights[tensor.name]
        assert isinstance(found, View), tensor
        return found

    def linear(self, x: str, layer: Linear, y: str, label: str, then: Tensor | None = None) -> None:
        """The activations y = layer(the activations x), which are SCALED or as they are. Where a
        norm comes `then`, hidden grows by y, and y becomes SCALED."""
        weight, bias = self._parts(layer)
        normed, source = self._normed(x), self.acts["normed" if x == SCALED else x]
        if normed is None and then is None:
            more = {"bias": bias, "many_rows": self.prefill, "label": label}
            ops.linear(self.recorder, source, weight, self.acts[y], **more)
            return
        residual, target = None, self.acts["normed" if then else y]
        if then is not None:
            rest = self.acts["squares"], self.residual_scale
            residual = ops_fused.Residual(self.acts["hidden"], self.floats(then), *rest)
        ops_fused.linear(self.recorder, source, weight, target, bias, label, normed, residual)

    def gated(self, x: str, gate: Linear, up: Linear, activation: str, label: str) -> bool:
        """The activations "gate" = activation(gate(x)) * up(x), if one kernel can do that."""
        weights, biases = zip(self._parts(gate), self._parts(up), strict=True)
        alike = [bias is None for bias in biases]
        if not self.fuses or alike[0] != alike[1] or not ops_fused.can_gate(*weights):
            return False
        source = self.acts["normed" if x == SCALED else x]
        rest = self.acts["gate"], biases, activation, label, self._normed(x)
        ops_fused.gated(self.recorder, source, weights, *rest)
        return True

    def _parts(self, layer):
        return self.weights[layer.weight.name], layer.bias and self.weights[layer.bias.name]

    def _normed(self, x):
        if x != SCALED:
            return None
        return ops_fused.Normed(self.acts["squares"], self.config.rms_norm_eps)


@dataclass(frozen=True, slots=True)
class Attention:
    """Queries, keys and values of x, the cache, and the output into "delta".

    Attributes:
        q_norm, k_norm: before RoPE, over each head, or over all of them where they are as long;
            None where the family has none.
        rope: None where positions turn nothing.
        scale, softcap, position_scale, scale_tokens: of ops.AttentionInputs.
        gate: its sigmoid multiplies what is attended, before o; None where the family has none.
        sinks: [num_heads], of ops.AttentionInputs; None where the family has none.
    """

    q_norm: Tensor | Constant | None
    k_norm: Tensor | Constant | None
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    rope: Rope | None
    cache: KvSpec
    num_heads: int
    scale: float
    softcap: float = 0.0
    position_scale: float = 0.0
    scale_tokens: int = 1
    gate: Linear | None = None
    sinks: Tensor | None = None

    @property
    def fused(self) -> tuple[Fused, ...]:
        """The matrix that some files hold in place of q, k and v."""
        return Fused.of((self.q, self.k, self.v), "q_proj", "qkv_proj", "attn_q", "attn_qkv")

    def activations(self, sizes: StepSizes) -> dict[str, tuple[int, int]]:
        """{name: (rows, float32 values a row)} of what record() reads and writes."""
        head_dim = self.cache.head_dim
        q_dim, kv_dim = (n * head_dim for n in (self.num_heads, self.cache.num_kv_heads))
        num_rows = min(sizes.max_tokens, sizes.max_logits)
        gate = {"gate": (sizes.max_tokens, q_dim)} if self.gate else {}
        return gate | {
            "q": (sizes.max_tokens, q_dim),
            "k": (sizes.max_tokens, kv_dim),
            "v": (sizes.max_tokens, kv_dim),
            "attended": (sizes.max_tokens, q_dim),
            # Of each decode row, a softmax's two sums and its values for each split.
            "partials": (num_rows * self.num_heads * sizes.max_splits, head_dim + 2),
        }

    def record(self, step: Step, index: int, x: str = "normed", then: Tensor | None = None) -> None:
        label = f"layer {index}"
        for name, layer in (("q", self.q), ("k", self.k), ("v", self.v), ("gate", self.gate)):
            if layer is not None:
                step.linear(x, layer, name, f"{label} {name}")
        self._write(step, index)
        self._attend(step, index)
        if self.gate is not None:
            attended, dim = step.acts["attended"], self.gate.weight.shape[0]
            ops.sigmoid_mul(step.recorder, step.acts["gate"], attended, attended, dim)
        step.linear("attended", self.o, "delta", f"{label} o", then)

    @property
    def readers(self) -> tuple[Linear, ...]:
        """The layers that multiply x."""
        return tuple(layer for layer in (self.q, self.k, self.v, self.gate) if layer is not None)

    def _head_norms(self, step):
        """Of ops.rope_kv_write, which norms q and k where they turn; None: no norm of each head."""
        norms = [norm for norm in (self.q_norm, self.k_norm) if norm is not None]
        if [norm.shape for norm in norms] != [(self.cache.head_dim,)] * 2:
            return None
        return *(step.weights[norm.name] for norm in norms), step.config.rms_norm_eps

    def _row_norm(self, step, name, weight, num_heads):
        if weight is not None:
            x, values, dim = step.acts[name], step.weights[weight.name], weight.shape[0]
            num_rows, eps = num_heads * self.cache.head_dim // dim, step.config.rms_norm_eps
            ops.rms_norm(step.recorder, x, values, x, dim, eps, rows_per_var=num_rows)

    def _turns(self, step):
        """Of ops.rope_kv_write(): the table, and which dimensions turn."""
        if self.rope is None:
            return None, (0, False)
        return step.ropes[self.rope], (self.rope.dim, self.rope.interleaved)

    def _write(self, step, index):
        """Norm and turn q and k, and put k and v into the cache."""
        acts, cache = step.acts, step.inputs.caches[index]
        caches, qkv = (cache.k, cache.v), (acts["q"], acts["k"], acts["v"])
        table, turns = self._turns(step)
        rows, heads = (table, cache.slots, cache.beyond), self.num_heads
        norms = self._head_norms(step)
        if norms is None:
            self._row_norm(step, "q", self.q_norm, heads)
            self._row_norm(step, "k", self.k_norm, cache.layout.num_kv_heads)
        ops.rope_kv_write(step.recorder, qkv, rows, caches, cache.layout, heads, turns, norms)

    def _attend(self, step, index):
        """What q, turned, sees in the cache becomes "attended"."""
        acts, inputs, cache = step.acts, step.inputs, step.inputs.caches[index]
        caches, heads = (cache.k, cache.v), self.num_heads
        window = self.cache.window if isinstance(self.cache, WindowKV) else None
        sinks = None if self.sinks is None else step.floats(self.sinks)
        scores = self.scale, self.softcap, self.position_scale, self.scale_tokens, sinks
        seen = AttentionInputs(cache.tables, inputs.tiles, cache.layout, heads, window, *scores)
        if step.prefill:
            ops.attention(step.recorder, acts["q"], caches, seen, acts["attended"])
            return
        # The partials hold a row for each sequence, fewer than the rows of q.
        partials, q, head_dim = acts["partials"], acts["q"], self.cache.head_dim
        row_floats = cache.layout.max_splits * (head_dim + 2)
        num_rows = partials.num_bytes // (4 * self.num_heads * row_floats)
        q = View(q.buffer, 0, num_rows * self.num_heads * head_dim * 4)
        ops.split_attention(step.recorder, q, caches, seen, partials, acts["attended"])


def attention(
    names: Names,
    config: ModelConfig,
    rope: Rope | None,
    window: int | None,
    rows_interleaved: bool = False,
    scale: float | None = None,
    *,
    norms_all_heads: bool = False,
    norms: tuple[Constant, Constant] | None = None,
    **features,
) -> Attention:
    """The attention of a layer under its usual names.

    Args:
        window: tokens that a query sees, or None for all.
        scale: what scores are multiplied by; None is head_dim^-1/2.
        rows_interleaved: whether GGUF files store the rows of q and k in pairs that RoPE rotates.
        norms_all_heads: a norm of q or k is over the whole row, and not over each head.
        norms: those of q and k, where no file holds them.
        features: other fields of Attention.
    """
    dim, head_dim = config.hidden_dim, config.head_dim
    heads, kv_heads = config.num_heads, config.num_kv_heads

    def linear(letter, gguf, shape, has_bias, rope_heads=0):
        name = f"self_attn.{letter}_proj"
        return names.linear(name, gguf, shape, "attention", has_bias, rope_heads)

    def norm(letter, num_heads):
        if not config.qk_norm:
            return None
        size = head_dim * num_heads if norms_all_heads else head_dim
        return names.norm(f"self_attn.{letter}_norm", f"attn_{letter}_norm", size)

    q_shape, kv_shape = (heads * head_dim, dim), (kv_heads * head_dim, dim)
    q_norm, k_norm = norms or (norm("q", heads), norm("k", kv_heads))
    return Attention(
        q_norm=q_norm,
        k_norm=k_norm,
        q=linear("q", "attn_q", q_shape, config.qkv_bias, heads * rows_interleaved),
        k=linear("k", "attn_k", kv_shape, config.qkv_bias, kv_heads * rows_interleaved),
        v=linear("v", "attn_v", kv_shape, config.qkv_bias),
        o=linear("o", "attn_output", q_shape[::-1], config.o_bias),
        rope=rope,
        cache=FullKV(kv_heads, head_dim) if not window else WindowKV(kv_heads, head_dim, window),
        num_heads=heads,
        scale=head_dim**-0.5 if scale is None else scale,
        **features,
    )


@dataclass(frozen=True, slots=True)
class GatedFeedForward:
    """delta = down(activation(gate(x)) * up(x)); activation is one of ACTIVATIONS."""

    gate: Linear
    up: Linear
    down: Linear
    activation: str

    @property
    def fused(self) -> tuple[Fused, ...]:
        """The matrix that some files hold in place of gate and up, under up's name in GGUF."""
        return Fused.of((self.gate, self.up), "gate_proj", "gate_up_proj", "ffn_gate", "ffn_up")

    def activations(self, sizes: StepSizes) -> dict[str, tuple[int, int]]:
        """{name: (rows, float32 values a row)} of what record() reads and writes."""
        shape = sizes.max_tokens, self.gate.weight.shape[0]
        return {"gate": shape, "up": shape}

    def record(self, step: Step, index: int, x: str = "normed", then: Tensor | None = None) -> None:
        label, acts = f"layer {index}", step.acts
        if not step.gated(x, self.gate, self.up, self.activation, f"{label} gate and up"):
            step.linear(x, self.gate, "gate", f"{label} gate")
            step.linear(x, self.up, "up", f"{label} up")
            dim = self.gate.weight.shape[0]
            multiply = ACTIVATIONS[self.activation]
            multiply(step.recorder, acts["gate"], acts["up"], acts["gate"], dim)
        step.linear("gate", self.down, "delta", f"{label} down", then)


def gated_feed_forward(
    names: Names, config: ModelConfig, activation: str = "silu"
) -> GatedFeedForward:
    """The feed-forward of a layer under its usual names."""
    shape = config.intermediate_dim, config.hidden_dim

    def linear(word, shape):
        return names.linear(f"mlp.{word}_proj", f"ffn_{word}", shape, "mlp", config.mlp_bias)

    gate, up, down = linear("gate", shape), linear("up", shape), linear("down", shape[::-1])
    return GatedFeedForward(gate, up, down, activation)
