"""Runs one kernel on arrays: uploads, records, replays, reads back.

Every array lies between guard bytes, which must be as they were when the kernel has run: a kernel
that writes one element too many fails the test that ran it.
"""

import numpy as np

from marlin.device import ops, ops_experts, ops_state
from marlin.device.program import Recorder, View
from marlin.weights import formats
from marlin.weights.block_types import BLOCK_TYPES

GUARD_BYTES = 64
GUARD = 0xA5


class Memory:
    """The buffers of one run, guarded and released at its end."""

    def __init__(self, device):
        self.device = device
        self._views = []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        broken = [] if kind else [view for view in self._views if not self._guards_hold(view)]
        for view in self._views:
            view.buffer.release()
        assert not broken, f"a kernel wrote outside {broken}"

    def _guards_hold(self, view):
        raw = view.buffer.array(np.uint8)
        end = view.offset + view.num_bytes
        return (raw[: view.offset] == GUARD).all() and (raw[end:] == GUARD).all()

    def room(self, num_bytes):
        """View of num_bytes of stale memory."""
        buffer = self.device.create(num_bytes + 2 * GUARD_BYTES)
        buffer.array(np.uint8)[:] = GUARD
        view = View(buffer, GUARD_BYTES, num_bytes)
        self._views.append(view)
        return view

    def floats(self, *shape):
        """View of a float32 array that a kernel will fill."""
        return self.room(4 * int(np.prod(shape)))

    def put(self, array):
        """View of a copy of an array."""
        view = self.room(array.nbytes)
        self.read(view, array.dtype, array.shape, copy=False)[...] = array
        return view

    def read(self, view, dtype, shape, copy=True):
        array = view.buffer.array(dtype, shape, view.offset)
        return array.copy() if copy else array

    def weight(self, weight):
        """ops.Weight of a PackedWeight, or of a dense (kind, array [n, k]) with bf16 as uint16."""
        if not isinstance(weight, formats.PackedWeight):
            kind, array = weight
            return ops.Weight(kind, *array.shape, self.put(array))
        flags = ops.weight_flags(weight.scale_bytes, weight.biases is not None)
        biases = None if weight.biases is None else self.put(weight.biases)
        return ops.Weight(
            weight.format, *weight.shape, self.put(weight.codes), weight.group_size, flags,
            self.put(weight.scales), biases,
        )  # fmt: skip


def step(tokens=0, tiles=0, logits=0, splits=0, masks=0, sequences=0):
    """A step's vars in their order."""
    return tokens, tiles, logits, splits, masks, sequences


def run(device, record, variables):
    """Record with record(recorder), then replay once."""
    recorder = Recorder(device)
    record(recorder)
    program = recorder.finish()
    try:
        program.run(*variables)
    finally:
        program.close()


def linear(device, x, weight, bias=None, many_rows=False):
    """float32 [rows, n]."""
    with Memory(device) as memory:
        w = memory.weight(weight)
        y = memory.floats(len(x), w.n)
        x_view, bias_view = memory.put(x), None if bias is None else memory.put(bias)
        run(
            device,
            lambda r: ops.linear(r, x_view, w, y, bias=bias_view, many_rows=many_rows),
            step(tokens=len(x)),
        )
        return memory.read(y, np.float32, (len(x), w.n))


def embed(device, token_ids, weight, scale=1.0):
    """float32 [rows, dim]."""
    with Memory(device) as memory:
        w = memory.weight(weight)
        ids, y = memory.put(np.asarray(token_ids, np.int32)), memory.floats(len(token_ids), w.k)
        run(device, lambda r: ops.embed(r, ids, w, y, scale=scale), step(tokens=len(token_ids)))
        return memory.read(y, np.float32, (len(token_ids), w.k))


def rms_norm(
    device, x, weight, eps, delta=None, rows_per_var=1, in_place=False, added_to=None, **options
):
    """(y, x afterwards), float32 [rows, dim] each; added_to: what y held, where it grows."""
    with Memory(device) as memory:
        x_view, w = memory.put(x), memory.put(weight)
        d = None if delta is None else memory.put(delta)
        y = x_view if in_place else memory.floats(*x.shape)
        if added_to is not None:
            y, options = memory.put(added_to), {"adds": True, **options}
        run(
            device,
            lambda r: ops.rms_norm(r, x_view, w, y, x.shape[1], eps, d, rows_per_var, **options),
            step(tokens=len(x) // rows_per_var),
        )
        return memory.read(y, np.float32, x.shape), memory.read(x_view, np.float32, x.shape)


def layer_norm(device, x, weight, bias, eps, delta=None, in_place=False):
    """(y, x afterwards), float32 [rows, dim] each."""
    with Memory(device) as memory:
        x_view, w, b = memory.put(x), memory.put(weight), memory.put(bias)
        d = None if delta is None else memory.put(delta)
        y = x_view if in_place else memory.floats(*x.shape)
        steps = step(tokens=len(x))
        run(device, lambda r: ops.layer_norm(r, x_view, w, b, y, x.shape[1], eps, d), steps)
        return memory.read(y, np.float32, x.shape), memory.read(x_view, np.float32, x.shape)


def rope_table(device, positions, inv_freq, scale):
    """float32 [rows, 2, half_dim]."""
    shape = (len(positions), 2, len(inv_freq))
    with Memory(device) as memory:
        at, freq, table = memory.put(positions), memory.put(inv_freq), memory.floats(*shape)
        run(
            device,
            lambda r: ops.rope_table(r, at, freq, table, len(inv_freq), scale),
            step(tokens=len(positions)),
        )
        return memory.read(table, np.float32, shape)


def rope_kv_write(device, q, k, v, table, slots, k_cache, v_cache, turns=None, norms=None):
    """(q, k, k_cache, v_cache, beyond) after the kernel has rotated and stored; table None: no
    rotation; norms: arrays for q and k, and eps."""
    num_blocks, num_kv_heads, block_size, head_dim = v_cache.shape
    sizes = num_blocks, block_size, num_blocks, num_kv_heads, head_dim
    layout = ops.KvLayout(*sizes, v_cache.dtype.name)
    with Memory(device) as memory:
        beyond = np.zeros(len(slots), np.int32)
        arrays = (q, k, v, table, np.asarray(slots, np.int32), beyond, k_cache, v_cache)
        views = [None if array is None else memory.put(array) for array in arrays]
        parts = views[:3], views[3:6], views[6:]
        if norms is not None:
            norms = memory.put(norms[0]), memory.put(norms[1]), norms[2]
        run(
            device,
            lambda r: ops.rope_kv_write(r, *parts, layout, q.shape[1], turns, norms),
            step(tokens=len(slots)),
        )
        changed = [(views[i], arrays[i]) for i in (0, 1, 6, 7, 5)]
        return [memory.read(view, array.dtype, array.shape) for view, array in changed]


def gated_mul(device, op, gate, up, in_place=False):
    """float32 [rows, dim] of ops.silu_mul, ops.gelu_mul or ops.sigmoid_mul."""
    with Memory(device) as memory:
        g, u = memory.put(gate), memory.put(up)
        y = g if in_place else memory.floats(*gate.shape)
        run(device, lambda r: op(r, g, u, y, gate.shape[1]), step(tokens=len(gate)))
        return memory.read(y, np.float32, gate.shape)


def scale_rows(device, x, scale, cap, in_place):
    """float32 [rows, dim]."""
    with Memory(device) as memory:
        view = memory.put(x)
        y = view if in_place else memory.floats(*x.shape)
        run(
            device,
            lambda r: ops.scale_rows(r, view, y, x.shape[1], scale, cap),
            step(logits=len(x)),
        )
        return memory.read(y, np.float32, x.shape)


def gelu(device, x, in_place=False):
    """float32 [rows, dim]."""
    with Memory(device) as memory:
        x_view = memory.put(x)
        y = x_view if in_place else memory.floats(*x.shape)
        run(device, lambda r: ops.gelu(r, x_view, y, x.shape[1]), step(tokens=len(x)))
        return memory.read(y, np.float32, x.shape)


def gather_rows(device, rows, x):
    """float32 [len(rows), dim]."""
    with Memory(device) as memory:
        ids, x_view = memory.put(np.asarray(rows, np.int32)), memory.put(x)
        y = memory.floats(len(rows), x.shape[1])
        run(
            device, lambda r: ops.gather_rows(r, ids, x_view, y, x.shape[1]), step(logits=len(rows))
        )
        return memory.read(y, np.float32, (len(rows), x.shape[1]))


def attention(device, case, split=False, num_splits=None):
    """float32 [rows, num_heads, head_dim] of a kv_case.KvCase; num_splits None: all it has."""
    layout = case.layout
    with Memory(device) as memory:
        q, k_cache, v_cache = (memory.put(a) for a in (case.q, case.k_cache, case.v_cache))
        if case.value_dim:
            v_cache = None
        tables, tiles, num_heads = memory.put(case.tables), memory.put(case.tiles), case.q.shape[1]
        scores = dict(case.scores)
        if "sinks" in scores:
            scores["sinks"] = memory.put(scores["sinks"])
        inputs = ops.AttentionInputs(
            tables, tiles, layout, num_heads, case.window, case.scale, **scores
        )
        out_shape = (*case.q.shape[:2], layout.out_dim)
        out = memory.floats(*out_shape)
        if split:
            shape = (*case.q.shape[:2], layout.max_splits, layout.out_dim + 2)
            partials = memory.floats(*shape)
            arguments = (q, (k_cache, v_cache), inputs, partials, out)
            record = ops.split_attention
        else:
            arguments, record = (q, (k_cache, v_cache), inputs, out), ops.attention
        num_splits = case.num_splits if num_splits is None else num_splits
        variables = step(tiles=len(case.tiles), splits=num_splits)
        run(device, lambda r: record(r, *arguments), variables)
        return memory.read(out, np.float32, out_shape)


def mask_logits(device, logits, masks, rows):
    """float32 [any, vocab_size]."""
    with Memory(device) as memory:
        view, *rest = (memory.put(a) for a in (logits, masks, rows))
        run(
            device,
            lambda r: ops.mask_logits(r, view, *rest, logits.shape[1]),
            step(masks=len(rows)),
        )
        return memory.read(view, np.float32, logits.shape)


def penalize(device, logits, entries, starts, rows):
    """float32 [rows, vocab_size]."""
    with Memory(device) as memory:
        view, *rest = (memory.put(a) for a in (logits, entries, starts, rows))
        run(
            device,
            lambda r: ops.penalize(r, view, *rest, logits.shape[1]),
            step(logits=len(logits)),
        )
        return memory.read(view, np.float32, logits.shape)


def sample(device, logits, rows):
    """int32 [rows]."""
    with Memory(device) as memory:
        view, parameters, ids = memory.put(logits), memory.put(rows), memory.room(4 * len(rows))
        run(
            device,
            lambda r: ops.sample(r, view, parameters, ids, logits.shape[1]),
            step(logits=len(rows)),
        )
        return memory.read(ids, np.int32, (len(rows),))


def repack(device, raw, packed, ggml_type, permute_heads=0, factor=1.0):
    """Fill the arrays of a blank PackedWeight from GGUF blocks."""
    number = BLOCK_TYPES[ggml_type].number
    with Memory(device) as memory:
        source, weight = memory.put(raw), memory.weight(packed)
        run(device, lambda r: ops.repack(r, source, weight, number, permute_heads, factor), step())
        views = (weight.data, weight.scales, weight.biases)
        for view, array in zip(views, (packed.codes, packed.scales, packed.biases), strict=True):
            if array is not None:
                array[...] = memory.read(view, array.dtype, array.shape)


def route(device, logits, router, bias=None):
    """(ids, weights, order, groups) of route: [rows, num_slots] twice, [choices], and [n, 3]
    with n as many groups as there can be."""
    rows, slots = len(logits), router.num_slots
    with Memory(device) as memory:
        scores, corrections = memory.put(logits), None if bias is None else memory.put(bias)
        views = [memory.floats(rows, slots) for _ in range(3)]
        choices = ops_experts.Choices(*views, memory.room(12 * router.num_experts))
        steps = step(tokens=rows)
        run(device, lambda r: ops_experts.route(r, scores, corrections, router, choices), steps)
        dtypes = np.int32, np.float32, np.int32
        found = [memory.read(v, d, (rows, slots)) for v, d in zip(views, dtypes, strict=True)]
        count = min(rows * slots, router.num_experts)
        groups = memory.read(choices.groups, np.int32, (count, 3))
        return found[0], found[1], found[2].reshape(-1), groups


def experts(device, x, weight, num_experts, choices, bias=None, many_rows=False):
    """float32 [rows, num_slots, n].

    Args:
        x: [rows, x_slots, k].
        weight: of all experts, one below the other.
        choices: (order [choices], groups [any, 3]) int32.
    """
    rows, x_slots, _ = x.shape
    order, groups = choices
    slots = len(order) // rows
    with Memory(device) as memory:
        w = memory.weight(weight)
        n = w.n // num_experts
        w = w._replace(n=n, num_experts=num_experts)
        y, x_view = memory.floats(rows, slots, n), memory.put(x)
        whole = np.zeros((num_experts, 3), np.int32)
        whole[: len(groups)] = groups
        views = ops_experts.Choices(None, None, memory.put(order), memory.put(whole))
        b = None if bias is None else memory.put(bias)
        arguments = x_view, w, y, x_slots, views, slots
        run(
            device,
            lambda r: ops_experts.experts(r, *arguments, bias=b, many_rows=many_rows),
            step(tokens=rows),
        )
        return memory.read(y, np.float32, (rows, slots, n))


def combine_experts(device, values, weights, y=None):
    """float32 [rows, dim]; y: what it held, where it grows."""
    rows, slots, dim = values.shape
    with Memory(device) as memory:
        views = memory.put(values), memory.put(weights)
        out = memory.floats(rows, dim) if y is None else memory.put(y)
        adds, steps = y is not None, step(tokens=rows)
        run(device, lambda r: ops_experts.combine_experts(r, *views, out, dim, slots, adds), steps)
        return memory.read(out, np.float32, (rows, dim))


def runs_of(sequences):
    """(runs, starts), int32, of each sequence's (first row, rows, slot before, slot after)."""
    runs = [run for of_one in sequences for run in of_one]
    starts = np.cumsum([0, *map(len, sequences)])
    return np.array(runs, np.int32).reshape(-1, 4), starts.astype(np.int32)


def causal_conv(device, x, weight, bias, states, sequences, **options):
    """(y, states) after the kernel; options as ops_state.Conv's."""
    dim, taps = weight.shape
    with Memory(device) as memory:
        arrays = x, weight, bias, states, *runs_of(sequences)
        x_view, w, b, kept, *where = (a if a is None else memory.put(a) for a in arrays)
        y = memory.floats(len(x), dim)
        places = ops_state.StateRuns(*where, len(states))
        conv = ops_state.Conv(dim, taps, x.shape[1], **options)
        run(
            device,
            lambda r: ops_state.causal_conv(r, x_view, w, b, kept, places, y, conv),
            step(sequences=len(sequences)),
        )
        shapes = (y, (len(x), dim)), (kept, states.shape)
        return [memory.read(view, np.float32, shape) for view, shape in shapes]


def delta_rule(device, x, gates, states, sequences, delta):
    """(y, states) after the kernel; gates: arrays of ops_state.Gates; delta: ops_state.Delta."""
    with Memory(device) as memory:
        arrays = x, *gates, states, *runs_of(sequences)
        x_view, *gate_views, kept, runs, starts = (memory.put(array) for array in arrays)
        y = memory.floats(len(x), delta.value_floats)
        places, views = ops_state.StateRuns(runs, starts, len(states)), ops_state.Gates(*gate_views)
        run(
            device,
            lambda r: ops_state.delta_rule(r, x_view, views, kept, places, y, delta),
            step(sequences=len(sequences)),
        )
        shapes = (y, (len(x), delta.value_floats)), (kept, states.shape)
        return [memory.read(view, np.float32, shape) for view, shape in shapes]


def take_columns(device, x, columns, y, y_start):
    """y after the kernel; columns: ops_state.Columns."""
    with Memory(device) as memory:
        x_view, y_view = memory.put(x), memory.put(y)
        taken = x_view, columns, y_view, y.shape[1], y_start
        run(device, lambda r: ops_state.take_columns(r, *taken), step(tokens=len(x)))
        return memory.read(y_view, np.float32, y.shape)
