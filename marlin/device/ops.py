"""Recording each kernel with its shapes: the one place that knows the order of a kernel's bindings.

Functions append to a Recorder. Arguments named `*_var` are indices into a step's vars (VAR_*).
Shapes are in the heads of metal_shim/cpu/kernels_*.c and shaders/*.metal.
"""

from typing import NamedTuple

import numpy as np

from marlin.device import abi
from marlin.device.program import View, make_params

READ, WRITE, BOTH = abi.READ, abi.WRITE, abi.READ | abi.WRITE

# What changes from step to step: the values given to Program.submit(), in this order.
VAR_TOKENS = 0  # rows on the token axis
VAR_TILES = 1  # attention tiles
VAR_LOGITS = 2  # rows whose logits are wanted
VAR_SPLITS = 3  # KV splits of the longest context
VAR_MASKS = 4  # rows of logits that have a mask
VAR_SEQUENCES = 5  # chunks, each of a sequence of its own
NUM_VARS = 6


class Weight(NamedTuple):
    """A matrix W [n, k] on the device.

    Attributes:
        kind: "f32", "f16", "bf16" (row-major) or "int8", "int4", "fp4" (docs/formats.md).
        group_size: columns that share a scale; 0 for dense kinds.
        flags: abi.SCALE_F32, _BLOCK, _EXP or _ROW, | abi.WEIGHT_BIAS, of packed kinds.
        data, scales, biases: where it lies; scales and biases are None where the kind has none.
        num_experts: matrices of n rows that lie one after the other; 0: it is one matrix.
    """

    kind: str
    n: int
    k: int
    data: View
    group_size: int = 0
    flags: int = 0
    scales: View | None = None
    biases: View | None = None
    num_experts: int = 0

    @property
    def num_rows(self) -> int:
        """Of all experts."""
        return self.n * max(1, self.num_experts)

    @property
    def num_bytes(self):
        return sum(v.num_bytes for v in (self.data, self.scales, self.biases) if v is not None)


def weight_flags(scale_bytes: int, has_biases: bool) -> int:
    """Weight.flags of a packed weight; scale_bytes as weights.kinds.Form has them."""
    forms = {4: abi.SCALE_F32, 1: abi.SCALE_BLOCK, -1: abi.SCALE_EXP, -2: abi.SCALE_ROW}
    return forms.get(scale_bytes, 0) | has_biases * abi.WEIGHT_BIAS


class KvLayout(NamedTuple):
    """The KV cache's shape: K [num_blocks, num_kv_heads, block_size / 16, head_dim, 16], V
    [num_blocks, num_kv_heads, block_size, head_dim], of dtype "float16" or "float32"; a sequence
    holds up to table_stride blocks. With a value_dim there is one head and no V: its keys' first
    numbers are the values."""

    num_blocks: int
    block_size: int
    table_stride: int
    num_kv_heads: int
    head_dim: int
    dtype: str = "float16"
    value_dim: int = 0

    @property
    def out_dim(self):
        """Of what a head makes of the values that it sees."""
        return self.value_dim or self.head_dim

    @property
    def layer_bytes(self):
        """Bytes of one layer's K; V, where there is one, is as large."""
        size = np.dtype(self.dtype).itemsize
        return self.num_blocks * self.block_size * self.num_kv_heads * self.head_dim * size

    @property
    def max_splits(self):
        return -(-self.table_stride * self.block_size // abi.KV_SPLIT)


def maybe(view, access):
    """A binding, or None of what is not bound."""
    return None if view is None else (view, access)


def read_weight(weight):
    """The bindings of a weight: data, scales, biases."""
    parts = weight.data, weight.scales, weight.biases
    return [maybe(part, READ) for part in parts]


def embed(recorder, token_ids, weight, y, rows_var=VAR_TOKENS, scale=1.0):
    """y[t] = W[token_ids[t]] * scale."""
    params = make_params(
        "EmbedParams",
        rows_var=rows_var,
        vocab_size=weight.n,
        dim=weight.k,
        group_size=weight.group_size,
        flags=weight.flags,
        scale=scale,
    )
    bindings = [(token_ids, READ), *read_weight(weight), (y, WRITE)]
    recorder.dispatch(f"embed_{weight.kind}", params, bindings)


def linear(recorder, x, weight, y, rows_var=VAR_TOKENS, bias=None, many_rows=False, label=""):
    """y = x W^T + bias; many_rows chooses the kernel made for a prefill."""
    params = make_params(
        "LinearParams",
        rows_var=rows_var,
        n=weight.n,
        k=weight.k,
        group_size=weight.group_size,
        flags=weight.flags | (abi.OUTPUT_BIAS if bias is not None else 0),
    )
    bindings = [(x, READ), *read_weight(weight), maybe(bias, READ), (y, WRITE)]
    kernel = "matmul" if many_rows else "matvec"
    recorder.dispatch(f"{kernel}_{weight.kind}", params, bindings, label=label)


def rms_norm(
    recorder, x, weight, y, dim, eps, delta=None, rows_per_var=1, delta_scale=1.0, adds=False
):
    """x += delta * delta_scale (if given); y = x * rsqrt(mean(x^2) + eps) * weight, or y += that
    (if it adds); y may be x."""
    params = make_params(
        "RmsNormParams",
        rows_var=VAR_TOKENS,
        rows_per_var=rows_per_var,
        dim=dim,
        has_delta=int(delta is not None),
        adds=int(adds),
        eps=eps,
        delta_scale=delta_scale,
    )
    x_access = READ if delta is None else BOTH
    bindings = [(x, x_access), maybe(delta, READ), (weight, READ), (y, BOTH if adds else WRITE)]
    recorder.dispatch("rms_norm", params, bindings)


def layer_norm(recorder, x, weight, bias, y, dim, eps, delta=None):
    """x += delta (if given); y = (x - mean) / sqrt(variance + eps) * weight + bias; y may be x."""
    has_delta = int(delta is not None)
    params = make_params(
        "LayerNormParams", rows_var=VAR_TOKENS, dim=dim, has_delta=has_delta, eps=eps
    )
    x_access = READ if delta is None else BOTH
    more = maybe(delta, READ), (weight, READ), (bias, READ), (y, WRITE)
    recorder.dispatch("layer_norm", params, [(x, x_access), *more])


def rope_table(recorder, positions, inv_freq, table, half_dim, scale):
    """table[t] = cos and sin of positions[t] * inv_freq, times scale."""
    params = make_params("RopeTableParams", rows_var=VAR_TOKENS, half_dim=half_dim, scale=scale)
    recorder.dispatch("rope_table", params, [(positions, READ), (inv_freq, READ), (table, WRITE)])


def rope_kv_write(recorder, qkv, rows, caches, layout, num_heads, turns=None, norms=None):
    """Norm and rotate q and k in place and write k and v to their slots.

    Args:
        qkv: Views q, k, v.
        rows: Views (RoPE table, slots, beyond); the table is None where nothing turns. beyond:
            int32 [num_tokens], becomes 1 where a number was larger than the cache's largest.
        caches: Views (K cache, V cache) of the layer.
        turns: (the first dimensions of a head that turn, whether pairs are neighbours); None is all
            of them in half-split pairs.
        norms: (weight of q's heads, of k's, float [head_dim] each, eps), as rms_norm() takes them;
            None: they are not normed.
    """
    rotary_dim, interleaved = turns or (layout.head_dim, False)
    q_norm, k_norm, eps = norms or (None, None, 0.0)
    params = make_params(
        "RopeKvParams",
        rows_var=VAR_TOKENS,
        num_heads=num_heads,
        **_cache_shape(layout),
        rotary_dim=rotary_dim,
        interleaved=int(interleaved),
        has_norms=int(norms is not None),
        eps=eps,
    )
    table, slots, beyond = rows
    accesses = (BOTH, BOTH, READ, READ, READ, WRITE, WRITE, READ, READ, BOTH)
    views = zip((*qkv, table, slots, *caches, q_norm, k_norm, beyond), accesses, strict=True)
    bindings = [maybe(view, access) for view, access in views]
    recorder.dispatch("rope_kv_write", params, bindings)


def turn_queries(recorder, q, table, layout, num_heads, turns, norm=None):
    """As rope_kv_write() with q alone, where keys and values are in the cache already.

    Args:
        norm: (weight float [head_dim], eps), or None.
    """
    weight, eps = norm or (None, 0.0)
    params = make_params(
        "RopeKvParams",
        rows_var=VAR_TOKENS,
        num_heads=num_heads,
        **_cache_shape(layout) | {"num_kv_heads": 0},
        rotary_dim=turns[0],
        interleaved=int(turns[1]),
        has_norms=int(norm is not None),
        eps=eps,
    )
    between, behind = [None] * 3, [None] * 2
    bindings = [(q, BOTH), None, None, maybe(table, READ), *between, maybe(weight, READ), *behind]
    recorder.dispatch("rope_kv_write", params, bindings)


def _cache_shape(layout):
    names = "num_kv_heads", "head_dim", "block_size", "num_blocks"
    shape = {name: getattr(layout, name) for name in names}
    return shape | {"kv_f32": int(layout.dtype == "float32")}


class AttentionInputs(NamedTuple):
    """What a layer's attention reads besides q and its own cache.

    Attributes:
        window: tokens that a query sees at most; None: all before it.
        scale: what the scores are multiplied by.
        softcap: scores become softcap * tanh(score / softcap); 0: they stay.
        position_scale, scale_tokens: queries are multiplied by 1 + position_scale * ln(1 +
            position // scale_tokens); 0: they are not.
        sinks: float [num_heads], a score a head that takes its share of the softmax and has no
            value; None: there are none.
    """

    tables: View
    tiles: View
    layout: KvLayout
    num_heads: int
    window: int | None
    scale: float
    softcap: float = 0.0
    position_scale: float = 0.0
    scale_tokens: int = 1
    sinks: View | None = None


# Query heads that share a pass over a latent's keys: what a unit of attention takes at once.
LATENT_HEADS = 8


def _attention_params(inputs):
    layout = inputs.layout
    shape = _cache_shape(layout)
    if layout.value_dim:
        counts = range(min(LATENT_HEADS, inputs.num_heads), 0, -1)
        together = next(count for count in counts if inputs.num_heads % count == 0)
        shape["num_kv_heads"] = inputs.num_heads // together
    return make_params(
        "AttentionParams",
        tiles_var=VAR_TILES,
        splits_var=VAR_SPLITS,
        num_heads=inputs.num_heads,
        **shape,
        latent_dim=layout.value_dim,
        table_stride=layout.table_stride,
        window=inputs.window or 0,
        max_splits=layout.max_splits,
        scale=inputs.scale,
        softcap=inputs.softcap,
        position_scale=inputs.position_scale,
        scale_tokens=inputs.scale_tokens,
        has_sinks=int(inputs.sinks is not None),
    )


def _attention_bindings(q, caches, inputs, out):
    views = (q, *caches, inputs.tables, inputs.tiles)
    return [*(maybe(view, READ) for view in views), (out, WRITE)]


def attention(recorder, q, caches, inputs, out):
    """Causal attention, each tile's whole context in one unit of work: for prefill."""
    bindings = [*_attention_bindings(q, caches, inputs, out), maybe(inputs.sinks, READ)]
    recorder.dispatch("attention", _attention_params(inputs), bindings)


def split_attention(recorder, q, caches, inputs, partials, out):
    """The same numbers as attention(), the context shared out over threads: for decode. Where a
    step has one split, the first kernel writes them and the second has nothing to do."""
    params, sinks = _attention_params(inputs), maybe(inputs.sinks, READ)
    bindings = [*_attention_bindings(q, caches, inputs, partials), sinks, (out, WRITE)]
    recorder.dispatch("attention_split", params, bindings)
    merged = [(partials, READ), None, None, None, (inputs.tiles, READ), (out, WRITE)]
    recorder.dispatch("attention_combine", params, [*merged, sinks])


def silu_mul(recorder, gate, up, y, dim):
    """y = silu(gate) * up; y may be gate."""
    _gated_mul(recorder, "silu_mul", gate, up, y, dim)


def gelu_mul(recorder, gate, up, y, dim):
    """y = gelu(gate) * up, GELU as tanh approximates it; y may be gate."""
    _gated_mul(recorder, "gelu_mul", gate, up, y, dim)


def swiglu_mul(recorder, gate, up, y, dim):
    """y = g * sigmoid(1.702 g) * (u + 1), with g at most 7 and u within 7 of 0; y may be gate."""
    _gated_mul(recorder, "swiglu_mul", gate, up, y, dim)


def sigmoid_mul(recorder, gate, up, y, dim):
    """y = sigmoid(gate) * up; y may be gate or up."""
    _gated_mul(recorder, "sigmoid_mul", gate, up, y, dim)


def _gated_mul(recorder, kernel, gate, up, y, dim):
    params = make_params("RowsParams", rows_var=VAR_TOKENS, dim=dim)
    recorder.dispatch(kernel, params, [(gate, READ), (up, READ), (y, WRITE)])


def scale_rows(recorder, x, y, dim, scale, cap=0.0, rows_var=VAR_LOGITS):
    """y = x * scale, or cap * tanh(x * scale / cap) where cap is not 0; y may be x."""
    params = make_params("ScaleParams", rows_var=rows_var, dim=dim, scale=scale, cap=cap)
    recorder.dispatch("scale_rows", params, [(x, READ), (y, WRITE)])


def gelu(recorder, x, y, dim):
    """y = gelu(x), by the error function; y may be x."""
    params = make_params("RowsParams", rows_var=VAR_TOKENS, dim=dim)
    recorder.dispatch("gelu", params, [(x, READ), (y, WRITE)])


def gather_rows(recorder, rows, x, y, dim):
    """y[r] = x[rows[r]] for the rows whose logits are wanted."""
    params = make_params("RowsParams", rows_var=VAR_LOGITS, dim=dim)
    recorder.dispatch("gather_rows", params, [(rows, READ), (x, READ), (y, WRITE)])


def mask_logits(recorder, logits, masks, rows, vocab_size):
    """logits[rows[r], id] = minus infinity where bit id of masks[r] is 0."""
    params = make_params("SampleParams", rows_var=VAR_MASKS, vocab_size=vocab_size)
    recorder.dispatch("mask_logits", params, [(logits, BOTH), (masks, READ), (rows, READ)])


def penalize(recorder, logits, entries, starts, rows, vocab_size):
    """Apply penalties and biases to the logits in place."""
    params = make_params("SampleParams", rows_var=VAR_LOGITS, vocab_size=vocab_size)
    bindings = [(logits, BOTH), (entries, READ), (starts, READ), (rows, READ)]
    recorder.dispatch("penalize", params, bindings)


def sample(recorder, logits, rows, token_ids, vocab_size):
    """token_ids[r] drawn from logits[r]."""
    params = make_params("SampleParams", rows_var=VAR_LOGITS, vocab_size=vocab_size)
    recorder.dispatch("sample", params, [(logits, READ), (rows, READ), (token_ids, WRITE)])


def repack(recorder, source, weight, type_number, permute_heads=0, factor=1.0):
    """Fill a packed weight from the GGUF blocks in `source`, of ggml's type of that number.

    Args:
        factor: of the whole matrix; 1 where scales are float16.
    """
    params = make_params(
        "RepackParams",
        type=type_number,
        n=weight.num_rows,
        k=weight.k,
        permute_heads=permute_heads,
        factor=factor,
    )
    recorder.dispatch(
        "repack",
        params,
        [
            (source, READ),
            (weight.data, WRITE),
            (weight.scales, WRITE),
            maybe(weight.biases, WRITE),
        ],
    )


def probe(recorder, kernel, num_units, source, out):
    """Run a probe kernel, "probe_read" (source: num_units * abi.PROBE_BYTES) or "probe_dot"."""
    recorder.dispatch(
        kernel,
        make_params("ProbeParams", num_units=num_units),
        [maybe(source, READ), (out, WRITE)],
    )
