"""How fast the shaders of a decode step read memory on an NVIDIA GPU.

Owns the shapes, what is timed and the tables. A time is the median of 15 replays of a CUDA graph
that works through so many copies of its weights or KV caches that no cache answers. Shares are of
the rate at which this GPU sums floats, measured in the same run.
"""

from dataclasses import dataclass

import numpy as np
from gpu_device import CALL_SLOT, STATUS_SLOT, VARS_SLOT, Arguments
from msl import cuda

from marlin.device import abi, ops
from marlin.device.program import make_params

GIB = 1 << 30
# Weights and caches in turn: ten times the 60 MB of an H200's last cache.
ROTATED_BYTES = 600 << 20
POOL_BYTES = 2 * GIB
LEAST_LAUNCHES = 40
SUM_BYTES = 4 * GIB

FLOAT_SUM = """
struct Arguments { void *buffers[31]; unsigned offsets[31]; unsigned grid[3]; };
extern "C" __global__ void __launch_bounds__(256) float_sum(const Arguments a)
{
    const float4 *in = (const float4 *)a.buffers[0];
    unsigned long count = *(const unsigned long *)a.buffers[1], stride = gridDim.x * 256ul;
    float sums[4] = {};
    for (unsigned long i = blockIdx.x * 256ul + threadIdx.x; i + 3 * stride < count;
         i += 4 * stride) {
        float4 v[4];
        for (int j = 0; j < 4; j++) v[j] = in[i + j * stride];
        for (int j = 0; j < 4; j++) sums[j] += v[j].x + v[j].y + v[j].z + v[j].w;
    }
    float sum = sums[0] + sums[1] + sums[2] + sums[3];
    if (sum == 12345.678f) *(float *)a.buffers[2] = sum;
}
"""

# name: (k, n) of the matrices of one layer, and of the output
# (experts, those that a token chooses, K, N)
EXPERTS = {
    "gpt-oss-20b gate, up": (32, 4, 2880, 2880),
    "Qwen3-30B-A3B gate, up": (128, 8, 2048, 768),
    "Qwen3-30B-A3B down": (128, 8, 768, 2048),
}
MATRICES = {
    "Qwen3-4B q": (2560, 4096),
    "Qwen3-4B k, v": (2560, 1024),
    "Qwen3-4B o": (4096, 2560),
    "Qwen3-4B gate, up": (2560, 9728),
    "Qwen3-4B down": (9728, 2560),
    "Llama-3-8B q, o": (4096, 4096),
    "Llama-3-8B k, v": (4096, 1024),
    "Llama-3-8B gate, up": (4096, 14336),
    "Llama-3-8B down": (14336, 4096),
    "Llama-3-8B output": (4096, 128256),
}
# kind, group size, bytes of a group's codes, scale and bias
KINDS = [
    ("fp4", 32, 18),
    ("fp4", 64, 34),
    ("int4", 32, 20),
    ("int4", 64, 36),
    ("int8", 32, 34),
    ("f16", 0, 0),
]
# Both models: 32 heads, 8 KV heads, head_dim 128.
HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 32, 8, 128, 16
CONTEXTS = [(1, 8192), (4, 8192), (16, 8192), (16, 1024)]


@dataclass
class Measured:
    """Seconds of one launch, and the bytes that it had to read."""

    seconds: float
    num_bytes: int

    def cells(self, bandwidth):
        share = self.num_bytes / self.seconds / bandwidth
        return f"{self.seconds * 1e6:.1f} µs, {share:.0%}"


class Timer:
    """Launches kernels on pools of random weights.

    Args:
        gpu: a cuda_driver.Gpu; kernels: gpu_device.Kernels of it.
    """

    def __init__(self, gpu, kernels):
        self.gpu, self.kernels = gpu, kernels
        self._rng = np.random.default_rng(0)
        codes = self._rng.integers(0, 256, 64 << 20, np.uint8)
        scales = self._rng.uniform(0.01, 0.1, 32 << 20).astype(np.float16)
        self._codes, self._scales = self._pool(codes), self._pool(scales)
        # No NaN and no infinity: cached keys and values, dense weights.
        halves = self._rng.standard_normal(32 << 20).astype(np.float16)
        self._halves = self._pool(halves), self._pool(halves[::-1])
        self._call = gpu.upload(np.full(13, 0xFFFFFFFF, np.uint32))
        self._status = gpu.upload(np.full(1, 0xFFFFFFFF, np.uint32))

    def _pool(self, array):
        address = self.gpu.allocate(POOL_BYTES)
        self.gpu.upload(array, address)
        for at in range(array.nbytes, POOL_BYTES, array.nbytes):
            self.gpu.copy(address + at, address, array.nbytes)
        return address

    def _floats(self, count):
        return self.gpu.upload(self._rng.standard_normal(count).astype(np.float32))

    def bandwidth(self):
        """Bytes a second of a float sum over SUM_BYTES, the best of three grids."""
        image = cuda.compile_text(FLOAT_SUM, self.gpu.architecture)
        function = self.gpu.function(self.gpu.load(image.cubin), "float_sum")
        memory, arguments = self.gpu.allocate(SUM_BYTES), Arguments()
        noise = self._rng.standard_normal(16 << 20).astype(np.float32)
        for at in range(0, SUM_BYTES, noise.nbytes):
            self.gpu.upload(noise, memory + at)
        count = self.gpu.upload(np.array([SUM_BYTES // 16], np.uint64))
        arguments.buffers[:3] = memory, count, self._status

        def seconds(blocks):
            return self.gpu.seconds(
                lambda: self.gpu.launch(function, (blocks, 1, 1), 256, arguments)
            )

        fastest = min(seconds(self.gpu.multiprocessors * several) for several in (8, 16, 32))
        self.gpu.release(memory)
        return SUM_BYTES / fastest

    def _timed(self, launches, num_bytes):
        """launches: one for each copy of what is read."""
        rounds = -(-LEAST_LAUNCHES // len(launches))

        def queue():
            for _ in range(rounds):
                for launch in launches:
                    launch()

        return Measured(self.gpu.seconds(queue) / (rounds * len(launches)), num_bytes)

    def matvec(self, kind, group, group_bytes, k, n, rows=1, both=False, flags=None):
        """y = x W^T for a weight that no cache holds; both: for two of them, in no order."""
        if flags is None:
            flags = abi.WEIGHT_BIAS if kind == "int4" else 0
        fields = {"rows_var": ops.VAR_TOKENS, "n": n, "k": k, "group_size": group, "flags": flags}
        raw = make_params("LinearParams", **fields).tobytes()
        weight_bytes = n * k // group * group_bytes if group else 2 * n * k
        code_bytes = {"fp4": n * k // 2, "int4": n * k // 2, "int8": n * k}.get(kind, 2 * n * k)
        scale_bytes = 2 * n * k // group if group else 0
        variables = np.array([rows] + [0] * 7, np.int32)
        shared = {0: self._floats(rows * k), 4: self._call, VARS_SLOT: self.gpu.upload(variables)}
        outputs = self.gpu.allocate(4 * rows * n), self.gpu.allocate(4 * rows * n)
        codes = self._codes if group else self._halves[0]
        copies = min(max(2, -(-ROTATED_BYTES // weight_bytes)), POOL_BYTES // code_bytes)

        def launch(copy):
            scales = copy * scale_bytes
            weights = {1: codes + copy * code_bytes, 2: self._scales + scales, 5: outputs[copy % 2]}
            weights[3] = self._scales + POOL_BYTES // 2 + scales
            self.kernels.launch(f"matvec_{kind}", shared | weights, raw, variables)

        launches = [lambda copy=copy: launch(copy) for copy in range(copies)]
        if both:
            pairs = zip(launches[::2], launches[1::2], strict=False)
            launches = [lambda pair=pair: self.gpu.both(*pair) for pair in pairs]
        measured = self._timed(launches, weight_bytes * (2 if both else 1))
        for address in (shared[0], shared[VARS_SLOT], *outputs):
            self.gpu.release(address)
        return measured

    def experts(self, kind, group, group_bytes, shape):
        """The matrices of the experts that one token chooses, others each time.

        Args:
            shape: (experts, those that are chosen, K, N).
        """
        count, slots, k, n = shape
        flags = abi.WEIGHT_BIAS if kind == "int4" else 0
        fields = {"rows_var": ops.VAR_TOKENS, "n": n, "k": k, "group_size": group, "flags": flags}
        fields |= {"num_experts": count, "num_slots": slots, "x_slots": 1}
        raw = make_params("ExpertParams", **fields).tobytes()
        expert_bytes = n * k // group * group_bytes if group else 2 * n * k
        variables = np.array([1] + [0] * 7, np.int32)
        codes = self._codes if group else self._halves[0]
        fixed = {0: self._floats(k), 1: codes, 2: self._scales, 4: self._call}
        fixed |= {3: self._scales + POOL_BYTES // 2, 5: self.gpu.allocate(4 * slots * n)}
        fixed |= {6: self.gpu.upload(np.arange(slots, dtype=np.int32)), CALL_SLOT: self._call}
        fixed |= {VARS_SLOT: self.gpu.upload(variables), STATUS_SLOT: self._status}

        def launch_of(first):
            groups = np.zeros((count, 3), np.int32)
            for slot in range(slots):
                groups[slot] = (first + slot * count // slots) % count, slot, slot + 1
            addresses = fixed | {7: self.gpu.upload(groups)}
            name = f"matvec_experts_{kind}"
            return lambda: self.kernels.launch(name, addresses, raw, variables)

        launches = [launch_of(first) for first in range(count // slots)]
        return self._timed(launches, slots * expert_bytes)

    def attention(self, sequences, context):
        """attention_split and attention_combine: one new token for each sequence."""
        blocks = context // BLOCK_SIZE
        half = sequences * context * KV_HEADS * HEAD_DIM * 2
        copies = min(max(2, -(-ROTATED_BYTES // (2 * half))), POOL_BYTES // half)
        splits = -(-context // abi.KV_SPLIT)
        raw = attention_params(sequences * blocks, blocks).tobytes()
        tables = self._rng.permutation(sequences * blocks).astype(np.int32)
        tiles = [(row, 1, row, context - 1) for row in range(sequences)]
        variables = np.array([sequences, sequences, sequences, splits, 0, 0, 0, 0], np.int32)
        partials = self.gpu.allocate(4 * sequences * HEADS * splits * (HEAD_DIM + 2))
        out = self.gpu.allocate(4 * sequences * HEADS * HEAD_DIM)
        fixed = {CALL_SLOT: self._call, STATUS_SLOT: self._status}
        fixed[VARS_SLOT] = self.gpu.upload(variables)
        fixed[4] = self.gpu.upload(np.array(tiles, np.int32))
        read = {0: self._floats(sequences * HEADS * HEAD_DIM), 3: self.gpu.upload(tables)}

        def launch(copy):
            caches = {1 + i: pool + copy * half for i, pool in enumerate(self._halves)}
            addresses = fixed | read | caches | {5: partials, 7: out}
            self.kernels.launch("attention_split", addresses, raw, variables)
            addresses = fixed | {0: partials, 5: out}
            self.kernels.launch("attention_combine", addresses, raw, variables)

        launches = [lambda copy=copy: launch(copy) for copy in range(copies)]
        return self._timed(launches, 2 * half)


def attention_params(num_blocks, table_stride):
    """AttentionParams of a step that sees whole contexts."""
    return make_params(
        "AttentionParams",
        tiles_var=ops.VAR_TILES,
        splits_var=ops.VAR_SPLITS,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks,
        table_stride=table_stride,
        window=0,
        max_splits=-(-table_stride * BLOCK_SIZE // abi.KV_SPLIT),
        scale=HEAD_DIM**-0.5,
        softcap=0.0,
        position_scale=0.0,
        scale_tokens=1,
        has_sinks=0,
        kv_f32=0,
        latent_dim=0,
    )


def matvec_table(timer, bandwidth):
    """Markdown lines: every matrix and kind, one row of x."""
    heads = [f"{kind}, {group}" if group else kind for kind, group, _ in KINDS]
    yield "| matrix | K, N | " + " | ".join(heads) + " |"
    yield "|---" * (2 + len(KINDS)) + "|"
    for name, (k, n) in MATRICES.items():
        cells = [timer.matvec(*kind, k, n).cells(bandwidth) for kind in KINDS]
        yield f"| {name} | {k}, {n} | " + " | ".join(cells) + " |"


def pairs_table(timer, bandwidth):
    """Markdown lines: two matrices that a step multiplies with no barrier between them."""
    yield "| two at once | K, N | " + " | ".join(f"{kind}, {g}" for kind, g, _ in KINDS) + " |"
    yield "|---" * (2 + len(KINDS)) + "|"
    for name in ("Qwen3-4B gate, up", "Llama-3-8B gate, up"):
        k, n = MATRICES[name]
        cells = [timer.matvec(*kind, k, n, both=True).cells(bandwidth) for kind in KINDS]
        yield f"| {name} | {k}, {n} | " + " | ".join(cells) + " |"


def rows_table(timer, bandwidth, k=4096, n=14336):
    """Markdown lines: what more rows of x cost."""
    yield f"| rows, K {k}, N {n} | " + " | ".join(f"{kind}, {g}" for kind, g, _ in KINDS) + " |"
    yield "|---" * (1 + len(KINDS)) + "|"
    for rows in (1, 2, 4, 8, 16):
        cells = [timer.matvec(*kind, k, n, rows).cells(bandwidth) for kind in KINDS]
        yield f"| {rows} | " + " | ".join(cells) + " |"


def experts_table(timer, bandwidth):
    """Markdown lines: what one token reads of its experts."""
    yield "| experts | of, K, N | " + " | ".join(f"{kind}, {g}" for kind, g, _ in KINDS) + " |"
    yield "|---" * (2 + len(KINDS)) + "|"
    for name, shape in EXPERTS.items():
        cells = [timer.experts(*kind, shape).cells(bandwidth) for kind in KINDS]
        yield f"| {name} | {', '.join(map(str, shape))} | " + " | ".join(cells) + " |"


def attention_table(timer, bandwidth):
    """Markdown lines: decode attention of both models."""
    yield "| sequences | context | attention_split and attention_combine |"
    yield "|---|---|---|"
    for sequences, context in CONTEXTS:
        cells = timer.attention(sequences, context).cells(bandwidth)
        yield f"| {sequences} | {context} | {cells} |"
