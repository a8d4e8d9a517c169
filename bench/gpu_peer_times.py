"""What gpu_peers.py times: MLX's kernels as MLX launches them, and ours, on the same shapes.

Owns the launches of MLX's kernels, their check against numpy and the tables. Where MLX chooses
among several forms by the chip, all are timed and the fastest counts. Its activations, keys and
values are float16; ours are float32, and keys and values float16.
"""

import ctypes
import functools

import numpy as np
from gpu_device import CALL_SLOT, STATUS_SLOT, VARS_SLOT, Arguments
from gpu_times import (
    BLOCK_SIZE,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    MATRICES,
    POOL_BYTES,
    ROTATED_BYTES,
    Measured,
    Timer,
    attention_params,
)
from msl import cuda

from marlin.device import abi

# ours: (kind, group, bytes of a group's codes and factors, flags); MLX's kernels by their prefix.
FORMS = {
    "int4, 32": (("int4", 32, 20, abi.WEIGHT_BIAS), "affine", 32),
    "int4, 64": (("int4", 64, 36, abi.WEIGHT_BIAS), "affine", 64),
    "mxfp4": (("fp4", 32, 17, abi.SCALE_EXP), "mxfp4", 32),
}
GPT_OSS = {"gpt-oss expert": (2880, 2880), "gpt-oss q": (2880, 4096), "gpt-oss o": (4096, 2880)}
ROW_COUNTS = (2, 4, 8, 16)
ROW_SHAPES = ("Qwen3-4B gate, up", "Llama-3-8B down")
DECODE = [(1, 512), (1, 2048), (1, 8192), (4, 2048), (16, 2048), (16, 8192)]
DECODE_BLOCKS = (32, 64, 128, 256, 512)
PREFILL = (512, 2048, 4096)
QUERY_TILE = 16
WRONG = "WRONG"
REPEATS = 5  # of a prefill, which takes long
FAST_COLUMNS = 512  # of K, a multiple of which MLX's fast form asks for
# Function constants of MLX's files by index: none of a mask, a sink or a batch.
CONSTANTS = {
    "affine": {200: 1, 201: 1, 202: 1},
    "mxfp4": {200: 1, 201: 1, 202: 1},
    "sdpa": dict.fromkeys(range(20, 27), 0),
    "steel": {200: 1, 201: 1, 300: 0, 301: 1, 302: 0, 303: 0},
}
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
FP4 = np.concatenate([FP4, -FP4])


class SteelParams(ctypes.Structure):
    """AttnParams of MLX's steel/attn/params.h."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("B", "H", "D", "qL", "kL", "gqa_factor")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("NQ", "NK", "NQ_aligned", "NK_aligned")),
        *((name, ctypes.c_int) for name in ("qL_rem", "kL_rem", "qL_off")),
        *((name, ctypes.c_int64 * 3) for name in ("Q", "K", "V", "O")),
    ]


class PeerTimer(Timer):
    """A Timer that launches MLX's kernels too.

    Args:
        folder: of gpu_peers.prepare().
    """

    def __init__(self, gpu, kernels, folder):
        super().__init__(gpu, kernels)
        self._folder, self._functions = folder, {}

    def function(self, kernel, **changed):
        """MLX's kernel; changed: function constants c<index>."""
        values = CONSTANTS[kernel.split("_")[0]] | {int(k[1:]): v for k, v in changed.items()}
        key = kernel, tuple(values.values())
        if key not in self._functions:
            text = (self._folder / f"mlx_{kernel}.cu").read_text()
            defines = [f"MSL_FC_{index}={value}" for index, value in values.items()]
            image = cuda.compile_text(text, self.gpu.architecture, defines, ["-w"])
            self._functions[key] = self.gpu.function(self.gpu.load(image.cubin), f"msl_{kernel}")
        return self._functions[key]

    def launch(self, function, groups, threads, addresses):
        arguments = Arguments()
        for slot, address in addresses.items():
            arguments.buffers[slot] = address
        self.gpu.launch(function, groups, threads, arguments)

    def put(self, *values, dtype=np.int32):
        return self.gpu.upload(np.array(values, dtype))

    def halves(self, count):
        return self.gpu.upload(self._rng.standard_normal(count).astype(np.float16))

    # --- linear layers ---

    def quantized(self, kernel, weights, x, y, shape):
        """A function that queues y = x W^T.

        Args:
            weights: addresses of codes, scales and, of affine's, biases.
            shape: (rows, k, n).
        """
        rows, k, n = shape
        function, sizes = self.function(kernel), {"k": self.put(k), "n": self.put(n)}
        if "wide" in kernel or "qmm" in kernel:
            sizes["m"] = self.put(rows)
        # fp_qmv_wide alone has no room for a scale of the whole matrix.
        slots = [*weights] if kernel.startswith("affine") else [*weights[:2], self._call]
        if kernel.startswith("mxfp4_wide"):
            slots.pop()
        addresses = dict(enumerate([*slots, x, y, *sizes.values()]))
        if "qmm" in kernel:
            groups, threads = (-(-n // 32), -(-rows // 32), 1), 128
        elif "wide" in kernel:
            lanes, together = (8 if kernel.startswith("affine") else 16), int(kernel[-1])
            groups, threads = (-(-rows // together), -(-n // (64 // lanes)), 1), 64
        else:
            groups, threads = (rows, -(-n // 8), 1), 64
        return lambda: self.launch(function, groups, threads, addresses)

    def candidates(self, prefix, group, rows, k):
        """MLX's kernels for so many rows."""
        end = f"_{group}" if prefix == "affine" else ""
        if rows == 1:
            return [f"{prefix}_fast{end}"] if k % FAST_COLUMNS == 0 else ["mxfp4_any"]
        together = {2: (2,), 4: (4,)}.get(rows, (4, 5))
        wide = [f"{prefix}_wide{end}_{count}" for count in together]
        return wide if rows < 8 else [*wide, f"{prefix}_qmm{end}"]

    def mlx_matvec(self, kind, prefix, group, shape):
        """Measured, of the fastest form."""
        rows, k, n = shape
        weight_bytes = n * k // group * kind[2]
        copies = min(max(2, -(-ROTATED_BYTES // weight_bytes)), POOL_BYTES // (n * k // 2))
        x, outputs = self.halves(rows * k), [self.gpu.allocate(2 * rows * n) for _ in range(2)]
        scale_bytes = 2 * n * k // group

        def timed(kernel):
            launches = []
            for copy in range(copies):
                scales = self._scales + copy * scale_bytes
                weights = self._codes + copy * n * k // 2, scales, scales + POOL_BYTES // 2
                launches.append(self.quantized(kernel, weights, x, outputs[copy % 2], shape))
            return self._timed(launches, weight_bytes)

        found = [timed(kernel) for kernel in self.candidates(prefix, group, rows, k)]
        for address in (x, *outputs):
            self.gpu.release(address)
        return min(found, key=lambda measured: measured.seconds)

    def check(self):
        """Lines: MLX's kernels against numpy, so that what is timed is what MLX computes."""
        k, n = 512, 96
        for prefix, group in (("affine", 32), ("affine", 64), ("mxfp4", 32)):
            for rows in (1, 2, 4, 8):
                for kernel in self.candidates(prefix, group, rows, k):
                    yield self._checked(kernel, prefix, group, (rows, k, n))
        yield self._checked("mxfp4_any", "mxfp4", 32, (1, 480, 96))
        yield self._checked_decode(300)
        yield self._checked_prefill(256)

    def _checked(self, kernel, prefix, group, shape):
        rows, k, n = shape
        rng = np.random.default_rng(k + rows)
        codes, x = rng.integers(0, 16, (n, k)), rng.standard_normal((rows, k)).astype(np.float16)
        packed = (codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8)
        if prefix == "affine":
            factors = [rng.standard_normal((n, k // group)).astype(np.float16) for _ in range(2)]
            scales, biases = (np.repeat(f.astype(np.float64), group, axis=1) for f in factors)
            weight = scales * codes + biases
        else:
            factors = [rng.integers(120, 130, (n, k // group)).astype(np.uint8)]
            weight = FP4[codes] * np.repeat(np.exp2(factors[0] - 127.0), group, axis=1)
        y = self.gpu.allocate(2 * rows * n)
        weights = [self.gpu.upload(array) for array in (packed, *factors)]
        self.quantized(kernel, weights, self.gpu.upload(x), y, shape)()
        found = self.gpu.download(y, np.float16, (rows, n)).astype(np.float64)
        return verdict(f"{kernel}, {rows} rows", found, x.astype(np.float64) @ weight.T)

    # --- attention ---

    def decode_pass(self, q, keys, values, shape, blocks):
        """A function that queues MLX's two passes over (sequences, context); its output."""
        sequences, context = shape
        rows = sequences * HEADS
        partial = self.gpu.allocate(2 * rows * blocks * HEAD_DIM)
        sums, peaks = (self.gpu.allocate(4 * rows * blocks) for _ in range(2))
        out, stride = self.gpu.allocate(2 * rows * HEAD_DIM), (context * HEAD_DIM, HEAD_DIM)
        first = {0: q, 1: keys, 2: values, 3: partial, 4: sums, 5: peaks, 7: self.put(context)}
        for slot in (8, 10):
            first |= {slot + i: self.put(stride[i], dtype=np.int64) for i in range(2)}
        first[12] = self.put(HEAD_DIM**-0.5, dtype=np.float32)
        second = {0: partial, 1: sums, 2: peaks, 3: out, 4: self.put(blocks)}
        scores, merge = self.function("sdpa_first", c26=blocks), self.function("sdpa_second")

        def queue():
            groups = KV_HEADS, sequences, blocks
            self.launch(scores, groups, (32, HEADS // KV_HEADS, 1), first)
            self.launch(merge, (rows, 1, 1), 1024, second)

        return queue, out

    def mlx_decode(self, sequences, context):
        half = sequences * context * KV_HEADS * HEAD_DIM * 2
        copies = min(max(2, -(-ROTATED_BYTES // (2 * half))), POOL_BYTES // half)
        q = self.halves(sequences * HEADS * HEAD_DIM)

        def timed(blocks):
            caches = [[pool + copy * half for pool in self._halves] for copy in range(copies)]
            shape = sequences, context
            passes = [self.decode_pass(q, *cache, shape, blocks)[0] for cache in caches]
            return self._timed(passes, 2 * half)

        return min(map(timed, DECODE_BLOCKS), key=lambda measured: measured.seconds)

    def _checked_decode(self, context):
        shape = 1, context
        q, keys, values = self._random_attention(1, context)
        addresses = [self.gpu.upload(array) for array in (q, keys, values)]
        queue, out = self.decode_pass(*addresses, shape, 64)
        queue()
        found = self.gpu.download(out, np.float16, q.shape).astype(np.float64)
        return verdict("sdpa_vector, two passes", found, attended(q, keys, values, [context - 1]))

    def prefill_pass(self, q, keys, values, tokens):
        """A function that queues MLX's attention of one prompt; its output."""
        p = SteelParams(1, HEADS, HEAD_DIM, tokens, tokens, HEADS // KV_HEADS, HEAD_DIM**-0.5)
        p.NQ = p.NQ_aligned = tokens // 32
        p.NK = p.NK_aligned = tokens // 16
        for name, heads in (("Q", HEADS), ("K", KV_HEADS), ("V", KV_HEADS), ("O", HEADS)):
            strides = heads * tokens * HEAD_DIM, tokens * HEAD_DIM, HEAD_DIM
            setattr(p, name, (ctypes.c_int64 * 3)(*strides))
        out = self.gpu.allocate(2 * HEADS * tokens * HEAD_DIM)
        raw = self.gpu.upload(np.frombuffer(bytes(p), np.uint8))
        addresses = dict(enumerate((q, keys, values, out, raw)))
        function, groups = self.function("steel_attention"), (tokens // 32, HEADS, 1)
        return (lambda: self.launch(function, groups, 128, addresses)), out

    def mlx_prefill(self, tokens):
        q = self.halves(tokens * HEADS * HEAD_DIM)
        queue, _ = self.prefill_pass(q, *self._halves, tokens)
        return Measured(self.gpu.seconds(queue, REPEATS), 0)

    def our_prefill(self, tokens):
        blocks = tokens // BLOCK_SIZE
        raw = attention_params(blocks, blocks).tobytes()
        tiles = [(row, QUERY_TILE, 0, row) for row in range(0, tokens, QUERY_TILE)]
        variables = np.array([tokens, len(tiles), 1, 1, 0, 0, 0, 0], np.int32)
        tables = self._rng.permutation(blocks).astype(np.int32)
        addresses = {0: self._floats(tokens * HEADS * HEAD_DIM), 1: self._halves[0]}
        addresses |= {2: self._halves[1], 3: self.gpu.upload(tables)}
        addresses |= {4: self.gpu.upload(np.array(tiles, np.int32)), CALL_SLOT: self._call}
        addresses |= {5: self.gpu.allocate(4 * tokens * HEADS * HEAD_DIM), 6: self._call}
        addresses |= {VARS_SLOT: self.gpu.upload(variables), STATUS_SLOT: self._status}
        launch = self.kernels.launch
        queue = functools.partial(launch, "attention", addresses, raw, variables)
        return Measured(self.gpu.seconds(queue, REPEATS), 0)

    def _checked_prefill(self, tokens):
        q, keys, values = self._random_attention(tokens, tokens)
        addresses = [self.gpu.upload(array) for array in (q, keys, values)]
        queue, out = self.prefill_pass(*addresses, tokens)
        queue()
        found = self.gpu.download(out, np.float16, q.shape).astype(np.float64)
        return verdict("steel_attention", found, attended(q, keys, values, range(tokens)))

    def _random_attention(self, rows, context):
        shapes = (HEADS, rows), (KV_HEADS, context), (KV_HEADS, context)
        return [
            self._rng.standard_normal((*shape, HEAD_DIM)).astype(np.float16) for shape in shapes
        ]


def attended(q, keys, values, positions):
    """Causal attention in float64; all arrays [heads, tokens, head_dim]."""
    repeats = HEADS // KV_HEADS
    keys, values = (np.repeat(a.astype(np.float64), repeats, axis=0) for a in (keys, values))
    scores = q.astype(np.float64) @ keys.transpose(0, 2, 1) * HEAD_DIM**-0.5
    unseen = np.arange(keys.shape[1]) > np.asarray(positions)[:, None]
    scores = np.where(unseen, -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    return weights / weights.sum(axis=2, keepdims=True) @ values


def verdict(name, found, expected):
    """A line; the allowed error is float16's and that of its products."""
    error = np.abs(found - expected).max() / np.abs(expected).max()
    word = "right" if error < 4e-3 else WRONG
    return f"MLX's {name}: {word}, off by {error:.1e} of its largest value"


def cells(ours, theirs):
    micro = ours.seconds * 1e6, theirs.seconds * 1e6
    return f"{micro[0]:.1f}, {micro[1]:.1f} µs, {micro[1] / micro[0]:.2f}"


def header(first, names):
    yield f"| {first}: ours, MLX's, MLX's time by ours | " + " | ".join(names) + " |"
    yield "|---" * (1 + len(names)) + "|"


def matvec_table(timer):
    """Markdown lines: one row of x; where MLX has no form for K, nothing."""
    yield from header("one row", FORMS)
    for name, (k, n) in (MATRICES | GPT_OSS).items():
        found = []
        for kind, prefix, group in FORMS.values():
            if k % FAST_COLUMNS and prefix == "affine":
                found.append("")
                continue
            ours = timer.matvec(*kind[:3], k, n, flags=kind[3])
            found.append(cells(ours, timer.mlx_matvec(kind, prefix, group, (1, k, n))))
        yield f"| {name} ({k}, {n}) | " + " | ".join(found) + " |"


def rows_table(timer):
    """Markdown lines: small batches."""
    yield from header("few rows", FORMS)
    for name in ROW_SHAPES:
        k, n = MATRICES[name]
        for rows in ROW_COUNTS:
            found = []
            for kind, prefix, group in FORMS.values():
                ours = timer.matvec(*kind[:3], k, n, rows, flags=kind[3])
                found.append(cells(ours, timer.mlx_matvec(kind, prefix, group, (rows, k, n))))
            yield f"| {name}, {rows} rows | " + " | ".join(found) + " |"


def decode_table(timer):
    """Markdown lines: one new token a sequence."""
    yield from header("decode attention", ["32 heads, 8 of keys and values, 128"])
    for sequences, context in DECODE:
        found = cells(timer.attention(sequences, context), timer.mlx_decode(sequences, context))
        yield f"| {sequences} of {context} tokens | {found} |"


def prefill_table(timer):
    """Markdown lines: a whole prompt."""
    yield from header("prefill attention", ["32 heads, 8 of keys and values, 128"])
    for tokens in PREFILL:
        yield f"| {tokens} tokens | {cells(timer.our_prefill(tokens), timer.mlx_prefill(tokens))} |"
