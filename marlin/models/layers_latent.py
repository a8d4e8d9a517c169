"""Latent attention (MLA, arXiv 2405.04434) as a part that families compose.

What is kept of a token is one row for all heads: a normed latent, of which keys and values are
linear, and a key that turns. A head's matrix of keys is put to its query instead ("absorbed"), and
its matrix of values to what it has attended to, in prompts as in decode steps: making keys and
values of a chunk's whole context costs more than it saves in steps of 256 tokens, but for models
with far more heads than 20 (docs/architecture.md counts it).
"""

from dataclasses import dataclass

from marlin.device import ops, ops_experts, ops_latent, ops_state
from marlin.device.ops import AttentionInputs
from marlin.device.program import View
from marlin.models.config_latent import LatentConfig
from marlin.models.head_rows import HeadRows
from marlin.models.layers import Rope, Step, StepSizes
from marlin.models.spec import FullKV, Fused, Linear, Names, Stack, Tensor

# Activations that are 0, 1, 2, ... in every row: each head is the expert that a token chooses as
# its matrices are read.
HEAD_IDS = "head ids"
# A row of the cache is whole tiles.
ROW_STEP = 16


@dataclass(frozen=True, slots=True)
class LatentKV(FullKV):
    """A layer that keeps a row of every token: the key of all heads, whose first `value_dim`
    numbers are the value of all heads, too."""

    value_dim: int

    @property
    def token_bytes(self) -> int:
        """As FullKV's; there is no other row of values."""
        return (4 if self.dtype == "float32" else 2) * self.head_dim


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """delta = o(values(attention(keys(q), latents of x))).

    Attributes:
        q_a, q_norm: a smaller row of which queries are made; None where they are made of x.
        q: all heads' queries, each of what does not turn and then of what does.
        kv: the latent, and what turns of the key.
        kv_norm: of the latent.
        keys: [num_heads, latent, what does not turn], which a query is multiplied by.
        values: [num_heads, value, latent].
        inner_eps: of both norms.
        scale: of ops.AttentionInputs.
    """

    q_a: Linear | None
    q_norm: Tensor | None
    q: Linear
    kv: Linear
    kv_norm: Tensor
    keys: Tensor
    values: Tensor
    o: Linear
    rope: Rope
    cache: LatentKV
    inner_eps: float
    scale: float
    fused: tuple[Fused, ...] = ()

    @property
    def num_heads(self) -> int:
        return self.keys.shape[0]

    def activations(self, sizes: StepSizes) -> dict[str, tuple[int, int]]:
        """{name: (rows, values of 4 bytes a row)} of what record() reads and writes."""
        heads, rank, nope = self.keys.shape
        tokens, decoded = sizes.max_tokens, min(sizes.max_tokens, sizes.max_logits)
        widths = {
            "q": self.q.weight.shape[0],
            "latent": self.kv.weight.shape[0],
            "q nope": heads * nope,
            "q absorbed": heads * rank,
            "queries": heads * self.cache.head_dim,
            "attended latents": heads * rank,
            "attended": self.o.weight.shape[1],
            HEAD_IDS: heads,
            "head order": heads,
        }
        if self.q_a is not None:
            widths["q low"] = self.q_a.weight.shape[0]
        return {name: (tokens, width) for name, width in widths.items()} | {
            "head groups": (heads, 3),
            # As Attention's.
            "partials": (decoded * heads * sizes.max_splits, rank + 2),
        }

    def record(self, step: Step, index: int, x: str = "normed") -> None:
        label, acts = f"layer {index}", step.acts
        # Every layer of a step reads the same rows of its heads.
        order, groups = acts["head order"], acts["head groups"]
        choices = ops_experts.Choices(acts[HEAD_IDS], acts[HEAD_IDS], order, groups)
        if index == 0:
            ops_experts.sort(step.recorder, choices, self.num_heads, self.num_heads)
        self._project(step, x, label)
        self._of_heads(step, "q nope", self.keys, "q absorbed", choices, f"{label} keys")
        self._attend(step, index)
        self._of_heads(
            step, "attended latents", self.values, "attended", choices, f"{label} values"
        )
        step.linear("attended", self.o, "delta", f"{label} o")

    def _project(self, step, x, label):
        if self.q_a is not None and self.q_norm is not None:
            step.linear(x, self.q_a, "q low", f"{label} q_a")
            low, norm = step.acts["q low"], step.floats(self.q_norm)
            ops.rms_norm(step.recorder, low, norm, low, self.q_norm.shape[0], self.inner_eps)
        step.linear("q low" if self.q_a else x, self.q, "q", f"{label} q")
        step.linear(x, self.kv, "latent", f"{label} kv")
        heads, _, nope = self.keys.shape
        all_floats, stride = self.q.weight.shape[0], nope + self.rope.dim
        taken = ops_state.Columns(all_floats, heads, stride, 0, nope)
        views = step.acts["q"], taken, step.acts["q nope"]
        ops_state.take_columns(step.recorder, *views, heads * nope)

    def _of_heads(self, step, x, tensor, y, choices, label):
        """y[t, head] = the head's matrix times x[t, head]."""
        acts, weight, heads = step.acts, step.weights[tensor.name], self.num_heads
        many = {"many_rows": step.prefill, "label": label}
        given = acts[x], weight, acts[y], heads, choices, heads
        ops_experts.experts(step.recorder, *given, **many)

    def _attend(self, step, index):
        acts, cache, recorder = step.acts, step.inputs.caches[index], step.recorder
        layout, heads = cache.layout, self.num_heads
        queries, out = acts["queries"], acts["attended latents"]
        sizes = heads, self.keys.shape[2], self.rope.dim, self.rope.interleaved, self.inner_eps
        ops_latent.latent_write(
            recorder,
            (acts["q absorbed"], acts["q"], acts["latent"]),
            (step.ropes[self.rope], cache.slots, cache.beyond),
            step.floats(self.kv_norm),
            cache.k,
            layout,
            queries,
            ops_latent.Latent(*sizes),
        )
        tables, tiles, caches = cache.tables, step.inputs.tiles, (cache.k, None)
        seen = AttentionInputs(tables, tiles, layout, heads, None, self.scale)
        if step.prefill:
            return ops.attention(recorder, queries, caches, seen, out)
        # The partials hold a row for each sequence, fewer than the rows of queries.
        partials = acts["partials"]
        row_floats = heads * layout.max_splits * (layout.out_dim + 2)
        num_rows = partials.num_bytes // (4 * row_floats)
        queries = View(queries.buffer, 0, num_rows * heads * layout.head_dim * 4)
        ops.split_attention(recorder, queries, caches, seen, partials, out)


def latent_attention(
    names: Names, config: LatentConfig, rope: Rope, inner_eps: float
) -> LatentAttention:
    """The latent attention of a layer under its usual names."""
    dim, heads, rank = config.hidden_dim, config.num_heads, config.kv_rank
    q_dim = heads * (config.nope_dim + config.rope_dim)

    def linear(word, gguf, shape, has_bias=False):
        return names.linear(f"self_attn.{word}", gguf, shape, "attention", has_bias)

    def of_heads(word, gguf, shape, first, turned):
        name, whole = f"{names.hf}self_attn.{word}.weight", f"{names.hf}self_attn.kv_b_proj.weight"
        rows = HeadRows(
            *(whole, f"{names.gguf}attn_kv_b.weight"),
            *(config.nope_dim + config.value_dim, first, turned),
        )
        stack = Stack(heads, heads=rows)
        return Tensor(name, f"{names.gguf}{gguf}.weight", shape, "attention", stack=stack)

    q_a = q_norm = None
    if config.q_rank:
        q_a = linear("q_a_proj", "attn_q_a", (config.q_rank, dim), config.qkv_bias)
        q_norm = names.norm("self_attn.q_a_layernorm", "attn_q_a_norm", config.q_rank)
    q_words = ("q_b_proj", "attn_q_b") if q_a else ("q_proj", "attn_q")
    kept = rank + config.rope_dim
    return LatentAttention(
        q_a=q_a,
        q_norm=q_norm,
        q=linear(*q_words, (q_dim, config.q_rank or dim)),
        kv=linear("kv_a_proj_with_mqa", "attn_kv_a_mqa", (kept, dim), config.qkv_bias),
        kv_norm=names.norm("self_attn.kv_a_layernorm", "attn_kv_a_norm", rank),
        keys=of_heads("embed_q", "attn_k_b", (heads, rank, config.nope_dim), 0, True),
        values=of_heads(
            *("unembed_out", "attn_v_b", (heads, config.value_dim, rank)), config.nope_dim, False
        ),
        o=linear("o_proj", "attn_output", (dim, heads * config.value_dim), config.o_bias),
        rope=rope,
        cache=LatentKV(1, -(-kept // ROW_STEP) * ROW_STEP, value_dim=rank),
        inner_eps=inner_eps,
        scale=config.attention_scale,
    )
