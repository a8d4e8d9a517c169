"""The Llama family (Llama, Mistral, SmolLM2, Qwen2, Qwen3): its weights and its forward step.

Owns layer order and tensor names; knows nothing of requests, sampling or files. Shapes are
[num_tokens, num_heads, head_dim] and [num_tokens, dim], float32.
"""

from dataclasses import dataclass

from marlin.device import ops
from marlin.device.ops import Weight
from marlin.device.program import Recorder, View
from marlin.errors import ModelFileError
from marlin.models.config import ModelConfig
from marlin.models.rope import rope_inv_freq


@dataclass(frozen=True, slots=True)
class Linear:
    weight: Weight
    bias: View | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    attn_norm: View
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    q_norm: View | None
    k_norm: View | None
    ffn_norm: View
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class StepInputs:
    """A step's inputs on the device, all filled by the engine.

    Attributes:
        token_ids, positions, slots: int32 [num_tokens].
        attention: block tables, tiles and the cache's layout.
        k_caches, v_caches: a View a layer.
        logit_rows: int32 [num_logits], tokens whose logits are wanted.
    """

    token_ids: View
    positions: View
    slots: View
    attention: ops.AttentionInputs
    k_caches: list[View]
    v_caches: list[View]
    logit_rows: View


@dataclass(frozen=True, slots=True)
class Activations:
    """Float buffers of a step; first dimension num_tokens unless said."""

    hidden: View
    normed: View
    delta: View
    q: View
    k: View
    v: View
    attended: View
    gate: View
    up: View
    rope: View  # [num_tokens, 2, head_dim / 2], cos and sin
    partials: View  # [decode rows, num_heads, max_splits, head_dim + 2]
    last: View  # [num_logits, hidden_dim]
    logits: View  # [num_logits, vocab_size]


def activation_shapes(config, max_tokens, max_logits, layout):
    """(rows, float32 values a row) of each field of Activations, for steps of up to max_tokens
    tokens and max_logits rows of logits."""
    q_dim, kv_dim = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))
    num_partials = min(max_tokens, max_logits) * config.num_heads * layout.max_splits
    return {
        "hidden": (max_tokens, config.hidden_dim),
        "normed": (max_tokens, config.hidden_dim),
        "delta": (max_tokens, config.hidden_dim),
        "q": (max_tokens, q_dim),
        "k": (max_tokens, kv_dim),
        "v": (max_tokens, kv_dim),
        "attended": (max_tokens, q_dim),
        "gate": (max_tokens, config.intermediate_dim),
        "up": (max_tokens, config.intermediate_dim),
        "rope": (max_tokens, config.head_dim),
        "partials": (num_partials, config.head_dim + 2),
        "last": (max_logits, config.hidden_dim),
        "logits": (max_logits, config.vocab_size),
    }


class LlamaModel:
    """Weights of one model on a device, and how to record its forward step.

    Raises:
        ModelFileError: a tensor is missing or of another shape than the config says.
    """

    def __init__(self, checkpoint):
        config = self.config = checkpoint.config
        if config.head_dim % 16:
            raise ModelFileError(
                checkpoint.path, f"head_dim is {config.head_dim}, expected a multiple of 16"
            )
        vocab, dim = config.vocab_size, config.hidden_dim
        self.embedding = checkpoint.matrix("model.embed_tokens.weight", vocab, dim)
        self.layers = [self._load_layer(checkpoint, i) for i in range(config.num_layers)]
        self.norm = checkpoint.vector("model.norm.weight", dim)
        self.lm_head = self.embedding
        if not config.tie_embeddings:
            self.lm_head = checkpoint.matrix("lm_head.weight", vocab, dim)
        inv_freq, self.rope_scale = rope_inv_freq(config, checkpoint.rope_factors())
        self.inv_freq = View.of(checkpoint.device.create_from(inv_freq))
        checkpoint.finish()

    def _load_layer(self, checkpoint, index):
        config = self.config
        prefix = f"model.layers.{index}"
        q_dim, kv_dim = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))

        def load(name, n, k, has_bias, num_heads=0):
            bias = None
            if has_bias:
                bias = checkpoint.vector(f"{prefix}.{name}.bias", n, num_heads)
            return Linear(checkpoint.matrix(f"{prefix}.{name}.weight", n, k, num_heads), bias)

        def norm(name, size):
            return checkpoint.vector(f"{prefix}.{name}.weight", size)

        dim, ffn_dim = config.hidden_dim, config.intermediate_dim
        return Layer(
            attn_norm=norm("input_layernorm", dim),
            q=load("self_attn.q_proj", q_dim, dim, config.qkv_bias, config.num_heads),
            k=load("self_attn.k_proj", kv_dim, dim, config.qkv_bias, config.num_kv_heads),
            v=load("self_attn.v_proj", kv_dim, dim, config.qkv_bias),
            o=load("self_attn.o_proj", dim, q_dim, config.o_bias),
            q_norm=norm("self_attn.q_norm", config.head_dim) if config.qk_norm else None,
            k_norm=norm("self_attn.k_norm", config.head_dim) if config.qk_norm else None,
            ffn_norm=norm("post_attention_layernorm", dim),
            gate=load("mlp.gate_proj", ffn_dim, dim, config.mlp_bias),
            up=load("mlp.up_proj", ffn_dim, dim, config.mlp_bias),
            down=load("mlp.down_proj", dim, ffn_dim, config.mlp_bias),
        )

    def _layer_weights(self):
        return [
            linear.weight
            for layer in self.layers
            for linear in (layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down)
        ]

    @property
    def num_layer_weights(self):
        """Weights in the layers' matrices: each takes a multiplication a prompt token."""
        return sum(weight.n * weight.k for weight in self._layer_weights())

    @property
    def decode_bytes(self):
        """Weight bytes that one decoded token reads: every matrix but an untied embedding."""
        return self.lm_head.num_bytes + sum(w.num_bytes for w in self._layer_weights())

    def allocate(self, device, max_tokens, max_logits, layout):
        """Activations for steps of up to max_tokens tokens and max_logits rows of logits."""
        shapes = activation_shapes(self.config, max_tokens, max_logits, layout)
        return Activations(
            **{name: View.of(device.create(rows * 4 * n)) for name, (rows, n) in shapes.items()}
        )

    def record(self, recorder, inputs, acts, prefill):
        """Record one forward step, from token ids to logits.

        Args:
            prefill: True for steps with many tokens a sequence, False for one token a sequence.
        """
        step = _StepRecorder(recorder, self.config, inputs, acts, prefill)
        half_dim = self.config.head_dim // 2
        ops.embed(recorder, inputs.token_ids, self.embedding, acts.hidden)
        ops.rope_table(
            recorder, inputs.positions, self.inv_freq, acts.rope, half_dim, self.rope_scale
        )
        for index, layer in enumerate(self.layers):
            step.attention(index, layer)
            step.feed_forward(index, layer)
        step.norm(self.norm, delta=acts.delta)
        ops.gather_rows(recorder, inputs.logit_rows, acts.normed, acts.last, self.config.hidden_dim)
        ops.linear(recorder, acts.last, self.lm_head, acts.logits, ops.VAR_LOGITS, label="lm_head")


@dataclass(frozen=True, slots=True)
class _StepRecorder:
    """The parts of a layer, recorded over one set of inputs and activations."""

    recorder: Recorder
    config: ModelConfig
    inputs: StepInputs
    acts: Activations
    prefill: bool

    def norm(self, weight, delta=None):
        """hidden += delta; normed = rms_norm(hidden)."""
        acts, eps = self.acts, self.config.rms_norm_eps
        dim = self.config.hidden_dim
        ops.rms_norm(self.recorder, acts.hidden, weight, acts.normed, dim, eps, delta=delta)

    def linear(self, x, part, y, label):
        ops.linear(
            self.recorder,
            x,
            part.weight,
            y,
            bias=part.bias,
            many_rows=self.prefill,
            label=label,
        )

    def attention(self, index, layer):
        """From hidden to delta, by way of the cache."""
        acts, label = self.acts, f"layer {index}"
        self.norm(layer.attn_norm, delta=acts.delta if index else None)
        self.linear(acts.normed, layer.q, acts.q, f"{label} q")
        self.linear(acts.normed, layer.k, acts.k, f"{label} k")
        self.linear(acts.normed, layer.v, acts.v, f"{label} v")
        self._head_norm(acts.q, layer.q_norm, self.config.num_heads)
        self._head_norm(acts.k, layer.k_norm, self.config.num_kv_heads)
        self._attend(self.inputs.k_caches[index], self.inputs.v_caches[index])
        self.linear(acts.attended, layer.o, acts.delta, f"{label} o")

    def _head_norm(self, x, weight, num_heads):
        if weight is None:
            return
        dim, eps = self.config.head_dim, self.config.rms_norm_eps
        ops.rms_norm(self.recorder, x, weight, x, dim, eps, rows_per_var=num_heads)

    def _attend(self, k_cache, v_cache):
        acts, config, inputs = self.acts, self.config, self.inputs.attention
        caches = (k_cache, v_cache)
        qkv = (acts.q, acts.k, acts.v)
        rows = (acts.rope, self.inputs.slots)
        ops.rope_kv_write(self.recorder, qkv, rows, caches, inputs.layout, config.num_heads)
        if self.prefill:
            ops.attention(self.recorder, acts.q, caches, inputs, acts.attended)
            return
        # The partials hold a row for each sequence, fewer than the rows of q.
        row_floats = inputs.layout.max_splits * (config.head_dim + 2)
        num_rows = acts.partials.num_bytes // (4 * config.num_heads * row_floats)
        q = View(acts.q.buffer, 0, num_rows * config.num_heads * config.head_dim * 4)
        ops.split_attention(self.recorder, q, caches, inputs, acts.partials, acts.attended)

    def feed_forward(self, index, layer):
        """hidden += delta, then from hidden to the next delta."""
        acts, label = self.acts, f"layer {index}"
        self.norm(layer.ffn_norm, delta=acts.delta)
        self.linear(acts.normed, layer.gate, acts.gate, f"{label} gate")
        self.linear(acts.normed, layer.up, acts.up, f"{label} up")
        ops.silu_mul(self.recorder, acts.gate, acts.up, acts.gate, self.config.intermediate_dim)
        self.linear(acts.gate, layer.down, acts.delta, f"{label} down")
