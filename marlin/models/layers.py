"""The parts that families compose, and how each is recorded: norms, attention, feed-forward.

Every part is a dataclass of Tensors and numbers, known before any weight is loaded. Activations
are float32: "hidden" is the residual stream, "normed" what a part reads, "delta" what it adds.
Knows nothing of files and requests.
"""

from dataclasses import dataclass

from marlin.device import ops
from marlin.device.ops import AttentionInputs, KvLayout, Weight
from marlin.device.program import Recorder, View
from marlin.models.config import ModelConfig
from marlin.models.rope import RopeScaling
from marlin.models.spec import FullKV, KvSpec, Linear, Names, Tensor, WindowKV

# y = activation(gate) * up, by the activation's name; GELU as tanh approximates it.
ACTIVATIONS = {"silu": ops.silu_mul, "gelu": ops.gelu_mul}


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's keys and values, in the shapes that KvLayout says."""

    k: View
    v: View
    layout: KvLayout


@dataclass(frozen=True, slots=True)
class StepInputs:
    """A step's inputs on the device, all filled by the engine.

    Attributes:
        token_ids, positions, slots: int32 [num_tokens].
        tables: int32 [num_sequences, table_stride], the block table of each sequence.
        tiles: int32 [num_tiles, 4], the queries of each unit of attention.
        logit_rows: int32 [num_logits], tokens whose logits are wanted.
        caches: a LayerCache a layer.
    """

    token_ids: View
    positions: View
    slots: View
    tables: View
    tiles: View
    logit_rows: View
    caches: list[LayerCache]


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
        dim: dimensions of a head that it rotates.
        theta, scaling: see rope.py.
        factors: float [dim / 2] that divide the frequencies, where a checkpoint has them.
    """

    dim: int
    theta: float
    scaling: RopeScaling
    factors: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One forward step while it is recorded.

    Attributes:
        weights: {tensor name: Weight of a matrix, View of float32 otherwise}.
        acts: {name: View} of the activations that the parts have asked for.
        ropes: {Rope: View of float32 [num_tokens, 2, dim / 2], cos and sin}.
        prefill: many tokens a sequence, not one.
    """

    recorder: Recorder
    config: ModelConfig
    inputs: StepInputs
    weights: dict[str, Weight | View]
    acts: dict[str, View]
    ropes: dict[Rope, View]
    prefill: bool

    def norm(self, weight: Tensor, delta: View | None = None) -> None:
        """hidden += delta; normed = rms_norm(hidden)."""
        self._norm("hidden", weight, "normed", delta)

    def norm_delta(self, weight: Tensor) -> None:
        """delta = rms_norm(delta)."""
        self._norm("delta", weight, "delta")

    def _norm(self, x, weight, y, delta=None):
        values, sizes = (
            self.weights[weight.name],
            (self.config.hidden_dim, self.config.rms_norm_eps),
        )
        ops.rms_norm(self.recorder, self.acts[x], values, self.acts[y], *sizes, delta=delta)

    def linear(self, x: str, layer: Linear, y: str, label: str) -> None:
        """The activations y = layer(the activations x)."""
        ops.linear(
            self.recorder,
            self.acts[x],
            self.weights[layer.weight.name],
            self.acts[y],
            bias=layer.bias and self.weights[layer.bias.name],
            many_rows=self.prefill,
            label=label,
        )


@dataclass(frozen=True, slots=True)
class Attention:
    """Queries, keys and values of "normed", the cache, and the output into "delta".

    Attributes:
        q_norm, k_norm: over each head, before RoPE; None where the family has none.
        scale: what scores are multiplied by.
    """

    q_norm: Tensor | None
    k_norm: Tensor | None
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    rope: Rope
    cache: KvSpec
    num_heads: int
    scale: float

    def activations(self, sizes: StepSizes) -> dict[str, tuple[int, int]]:
        """{name: (rows, float32 values a row)} of what record() reads and writes."""
        head_dim = self.cache.head_dim
        q_dim, kv_dim = (n * head_dim for n in (self.num_heads, self.cache.num_kv_heads))
        num_rows = min(sizes.max_tokens, sizes.max_logits)
        return {
            "q": (sizes.max_tokens, q_dim),
            "k": (sizes.max_tokens, kv_dim),
            "v": (sizes.max_tokens, kv_dim),
            "attended": (sizes.max_tokens, q_dim),
            # Of each decode row, a softmax's two sums and its values for each split.
            "partials": (num_rows * self.num_heads * sizes.max_splits, head_dim + 2),
        }

    def record(self, step: Step, index: int) -> None:
        label = f"layer {index}"
        for name, layer in (("q", self.q), ("k", self.k), ("v", self.v)):
            step.linear("normed", layer, name, f"{label} {name}")
        self._head_norm(step, "q", self.q_norm, self.num_heads)
        self._head_norm(step, "k", self.k_norm, self.cache.num_kv_heads)
        self._attend(step, index)
        step.linear("attended", self.o, "delta", f"{label} o")

    def _head_norm(self, step, name, weight, num_heads):
        if weight is None:
            return
        x, eps = step.acts[name], step.config.rms_norm_eps
        values = step.weights[weight.name]
        dim = self.cache.head_dim
        ops.rms_norm(step.recorder, x, values, x, dim, eps, rows_per_var=num_heads)

    def _attend(self, step, index):
        acts, inputs, cache = step.acts, step.inputs, step.inputs.caches[index]
        caches, qkv = (cache.k, cache.v), (acts["q"], acts["k"], acts["v"])
        rows = step.ropes[self.rope], inputs.slots
        ops.rope_kv_write(step.recorder, qkv, rows, caches, cache.layout, self.num_heads)
        window = self.cache.window if isinstance(self.cache, WindowKV) else None
        heads = cache.layout, self.num_heads
        seen = AttentionInputs(inputs.tables, inputs.tiles, *heads, window, self.scale)
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
    rope: Rope,
    window: int | None,
    rows_interleaved: bool = False,
    scale: float | None = None,
) -> Attention:
    """The attention of a layer under its usual names.

    Args:
        window: tokens that a query sees, or None for all.
        scale: what scores are multiplied by; None is head_dim^-1/2.
        rows_interleaved: whether GGUF files store the rows of q and k in pairs that RoPE rotates.
    """
    dim, head_dim = config.hidden_dim, config.head_dim
    heads, kv_heads = config.num_heads, config.num_kv_heads

    def linear(letter, gguf, shape, has_bias, rope_heads=0):
        name = f"self_attn.{letter}_proj"
        return names.linear(name, gguf, shape, "attention", has_bias, rope_heads)

    def norm(letter):
        if not config.qk_norm:
            return None
        return names.norm(f"self_attn.{letter}_norm", f"attn_{letter}_norm", head_dim)

    q_shape, kv_shape = (heads * head_dim, dim), (kv_heads * head_dim, dim)
    has_bias = config.qkv_bias
    return Attention(
        q_norm=norm("q"),
        k_norm=norm("k"),
        q=linear("q", "attn_q", q_shape, has_bias, heads * rows_interleaved),
        k=linear("k", "attn_k", kv_shape, has_bias, kv_heads * rows_interleaved),
        v=linear("v", "attn_v", kv_shape, has_bias),
        o=linear("o", "attn_output", q_shape[::-1], config.o_bias),
        rope=rope,
        cache=FullKV(kv_heads, head_dim) if not window else WindowKV(kv_heads, head_dim, window),
        num_heads=heads,
        scale=head_dim**-0.5 if scale is None else scale,
    )


@dataclass(frozen=True, slots=True)
class GatedFeedForward:
    """delta = down(activation(gate(normed)) * up(normed)); activation is one of ACTIVATIONS."""

    gate: Linear
    up: Linear
    down: Linear
    activation: str

    def activations(self, sizes: StepSizes) -> dict[str, tuple[int, int]]:
        """{name: (rows, float32 values a row)} of what record() reads and writes."""
        shape = sizes.max_tokens, self.gate.weight.shape[0]
        return {"gate": shape, "up": shape}

    def record(self, step: Step, index: int) -> None:
        label, acts = f"layer {index}", step.acts
        step.linear("normed", self.gate, "gate", f"{label} gate")
        step.linear("normed", self.up, "up", f"{label} up")
        dim = self.gate.weight.shape[0]
        multiply = ACTIVATIONS[self.activation]
        multiply(step.recorder, acts["gate"], acts["up"], acts["gate"], dim)
        step.linear("gate", self.down, "delta", f"{label} down")


def gated_feed_forward(
    names: Names, config: ModelConfig, activation: str = "silu"
) -> GatedFeedForward:
    """The feed-forward of a layer under its usual names."""
    shape = config.intermediate_dim, config.hidden_dim

    def linear(word, shape):
        return names.linear(f"mlp.{word}_proj", f"ffn_{word}", shape, "mlp", config.mlp_bias)

    gate, up, down = linear("gate", shape), linear("up", shape), linear("down", shape[::-1])
    return GatedFeedForward(gate, up, down, activation)


@dataclass(frozen=True, slots=True)
class PreNormLayer:
    """hidden += attention(norm(hidden)); hidden += feed_forward(norm(hidden))."""

    attn_norm: Tensor
    attention: Attention
    ffn_norm: Tensor
    feed_forward: GatedFeedForward

    def activations(self, sizes: StepSizes) -> dict[str, tuple[int, int]]:
        """{name: (rows, float32 values a row)} of what record() reads and writes."""
        return self.attention.activations(sizes) | self.feed_forward.activations(sizes)

    def record(self, step: Step, index: int) -> None:
        """Add the layer before this one to hidden, and leave what this one adds in delta."""
        step.norm(self.attn_norm, delta=step.acts["delta"] if index else None)
        self.attention.record(step, index)
        step.norm(self.ffn_norm, delta=step.acts["delta"])
        self.feed_forward.record(step, index)


@dataclass(frozen=True, slots=True)
class SandwichLayer:
    """hidden += norm(attention(norm(hidden))); hidden += norm(feed_forward(norm(hidden)))."""

    attn_norm: Tensor
    attention: Attention
    post_attn_norm: Tensor
    ffn_norm: Tensor
    feed_forward: GatedFeedForward
    post_ffn_norm: Tensor

    def activations(self, sizes: StepSizes) -> dict[str, tuple[int, int]]:
        """{name: (rows, float32 values a row)} of what record() reads and writes."""
        return self.attention.activations(sizes) | self.feed_forward.activations(sizes)

    def record(self, step: Step, index: int) -> None:
        """As PreNormLayer's."""
        step.norm(self.attn_norm, delta=step.acts["delta"] if index else None)
        self.attention.record(step, index)
        step.norm_delta(self.post_attn_norm)
        step.norm(self.ffn_norm, delta=step.acts["delta"])
        self.feed_forward.record(step, index)
        step.norm_delta(self.post_ffn_norm)
