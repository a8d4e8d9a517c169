"""A whole step of a one-layer model with random weights, of every kernel a real step has: for tests
of how programs replay, not of what kernels compute."""

import launch
import numpy as np
from matrices import packed_weight

from marlin.device import abi, ops
from marlin.device.program import Recorder

DIM, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, VOCAB = 96, 6, 2, 16, 50
BLOCK_SIZE, NUM_BLOCKS = 16, 4
MAX_ROWS = 37
EPS = 1e-5


class TinyStep:
    """Buffers and program of one step of up to MAX_ROWS tokens of one sequence from position 0.

    Args:
        memory: launch.Memory, which owns the buffers.
        kind: packed format of the weights.
        split: whether attention is shared out over threads.
    """

    def __init__(self, memory, kind="int4", split=False):
        self.memory = memory
        self.views = {}
        self.recorder = Recorder(memory.device)
        self._kind = kind
        self._inputs()
        self._record(split)

    def _inputs(self):
        views, rng = self.views, np.random.default_rng(0)
        put = self.memory.put
        positions = np.arange(MAX_ROWS, dtype=np.int32)
        self.table = np.array([[2, 0, 3, 1]], np.int32)
        slots = self.table[0, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        views["ids"] = put(rng.integers(0, VOCAB, MAX_ROWS).astype(np.int32))
        views["positions"], views["slots"] = put(positions), put(slots.astype(np.int32))
        views["beyond"] = put(np.zeros(len(slots), np.int32))
        views["inv_freq"] = put(rng.uniform(0, 1, HEAD_DIM // 2).astype(np.float32))
        views["tables"] = put(self.table)
        tiles = [(i, min(16, MAX_ROWS - i), 0, i) for i in range(0, MAX_ROWS, 16)]
        views["tiles"] = put(np.array(tiles, np.int32))
        views["norm"] = put(rng.standard_normal(DIM).astype(np.float32))
        views["head_norm"] = put(rng.standard_normal(HEAD_DIM).astype(np.float32))
        views["rows"] = put(np.zeros(1, np.int32))
        sampling = np.zeros(1, abi.PARAMS["SampleRow"])
        sampling["temperature"], sampling["top_p"], sampling["repetition_penalty"] = 1, 0.9, 1.2
        views["sampling"] = put(sampling)
        entries = np.array([(3, 1, 0.5), (7, 0, 0.0)], abi.PARAMS["PenaltyEntry"])
        views["entries"], views["starts"] = put(entries), put(np.array([0, 2], np.int32))
        cache_bytes = 2 * NUM_BLOCKS * BLOCK_SIZE * NUM_KV_HEADS * HEAD_DIM
        for name in ("k_cache", "v_cache"):
            views[name] = self.memory.room(cache_bytes)

    def _weight(self, n, k, seed):
        return self.memory.weight(packed_weight(self._kind, n, k, 32, seed=seed))

    def _floats(self, name, width, rows=MAX_ROWS):
        self.views[name] = self.memory.floats(rows, width)
        return self.views[name]

    def _linear(self, x, name, n, k, seed, **where):
        rows = 1 if where else MAX_ROWS
        y = self._floats(name, n, rows)
        ops.linear(self.recorder, self.views[x], self._weight(n, k, seed), y, label=name, **where)

    def _record(self, split):
        r, v = self.recorder, self.views
        embedding = self._weight(VOCAB, DIM, seed=1)
        ops.embed(r, v["ids"], embedding, self._floats("x", DIM))
        ops.rms_norm(r, v["x"], v["norm"], self._floats("normed", DIM), DIM, EPS)
        heads, kv = NUM_HEADS * HEAD_DIM, NUM_KV_HEADS * HEAD_DIM
        for name, n, seed in (("q", heads, 2), ("k", kv, 3), ("v", kv, 4)):
            self._linear("normed", name, n, DIM, seed)
        ops.rms_norm(r, v["q"], v["head_norm"], v["q"], HEAD_DIM, EPS, rows_per_var=NUM_HEADS)
        table = self._floats("table", HEAD_DIM)
        ops.rope_table(r, v["positions"], v["inv_freq"], table, HEAD_DIM // 2, 1.0)
        self._record_attention(split)
        self._linear("attended", "projected", DIM, heads, 5)
        ops.rms_norm(r, v["x"], v["norm"], v["normed"], DIM, EPS, delta=v["projected"])
        for name, seed in (("gate", 6), ("up", 7)):
            self._linear("normed", name, 2 * DIM, DIM, seed)
        ops.silu_mul(r, v["gate"], v["up"], v["gate"], 2 * DIM)
        self._linear("gate", "down", DIM, 2 * DIM, 8)
        ops.rms_norm(r, v["x"], v["norm"], v["normed"], DIM, EPS, delta=v["down"])
        ops.gather_rows(r, v["rows"], v["normed"], self._floats("last", DIM, rows=1), DIM)
        self._linear("last", "logits", VOCAB, DIM, 9, rows_var=ops.VAR_LOGITS)
        penalties = (v["entries"], v["starts"], v["sampling"])
        ops.penalize(r, v["logits"], *penalties, VOCAB)
        v["token"] = self.memory.room(4)
        ops.sample(r, v["logits"], v["sampling"], v["token"], VOCAB)

    def _record_attention(self, split):
        r, v = self.recorder, self.views
        layout = ops.KvLayout(NUM_BLOCKS, BLOCK_SIZE, NUM_BLOCKS, NUM_KV_HEADS, HEAD_DIM)
        qkv, caches = (v["q"], v["k"], v["v"]), (v["k_cache"], v["v_cache"])
        ops.rope_kv_write(r, qkv, (v["table"], v["slots"], v["beyond"]), caches, layout, NUM_HEADS)
        inputs = ops.AttentionInputs(v["tables"], v["tiles"], layout, NUM_HEADS, None, 0.25)
        out = self._floats("attended", NUM_HEADS * HEAD_DIM)
        if split:
            partials = self._floats("partials", NUM_HEADS * (HEAD_DIM + 2) * layout.max_splits)
            ops.split_attention(r, v["q"], caches, inputs, partials, out)
        else:
            ops.attention(r, v["q"], caches, inputs, out)

    def variables(self, rows):
        """Set the inputs that depend on the number of tokens; the vars of a step of `rows`."""
        last = self.memory.read(self.views["rows"], np.int32, (1,), copy=False)
        last[0] = rows - 1
        num_tiles = -(-rows // abi.QUERY_TILE)
        tiles = self.memory.read(self.views["tiles"], np.int32, (num_tiles, 4), copy=False)
        tiles[:, 1] = [min(16, rows - first) for first in tiles[:, 0]]
        return launch.step(tokens=rows, tiles=num_tiles, logits=1, splits=1)

    def results(self, rows):
        """Copies of every float result of the step's rows, and the sampled token."""
        views = self.views
        widths = {"x": DIM, "normed": DIM, "attended": NUM_HEADS * HEAD_DIM, "gate": 2 * DIM}
        arrays = {
            name: self.memory.read(views[name], np.float32, (rows, width))
            for name, width in widths.items()
        }
        arrays["logits"] = self.memory.read(views["logits"], np.float32, (VOCAB,))
        arrays["token"] = self.memory.read(views["token"], np.int32, (1,))
        return arrays


def run_step(device, rows, kind="int4", split=False, barriers="computed", replay=None):
    """TinyStep.results after one step.

    Args:
        replay: called as replay(program, variables) instead of program.run(*variables).
    """
    with launch.Memory(device) as memory:
        step = TinyStep(memory, kind, split)
        program = step.recorder.finish(barriers)
        try:
            variables = step.variables(rows)
            if replay is None:
                program.run(*variables)
            else:
                replay(program, variables)
            return step.results(rows)
        finally:
            program.close()


def assert_same_bits(actual, expected):
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)
