"""Runs kernels of MLX's library on the CPU runtime and compares them with numpy:

    python cases.py WHEEL CACHE

A line a kernel; the exit status is 1 if one is wrong.
"""

import sys
import zipfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(FOLDER)]

import numpy as np
from msl import build, simt

from air import library
from air.metallib import MetalLib

MEMBER = "mlx/lib/mlx.metallib"
# Of the largest value: float16 outputs, and sums in an order of MLX's own.
TOLERANCE = 4e-3
HALF, SLOTS = np.float16, 31
RNG = np.random.default_rng(1)
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
FP4 = np.concatenate([FP4, -FP4])


def halves(*shape):
    return RNG.standard_normal(shape).astype(HALF)


def one(value, dtype=np.int32):
    return np.array([value], dtype)


def rms_norm():
    x, w = halves(3, 576), halves(576)
    wide = x.astype(np.float32)
    expected = wide / np.sqrt((wide * wide).mean(1, keepdims=True) + 1e-5) * w
    sizes = {3: one(1e-5, np.float32), 4: one(576, np.uint32), 5: one(1, np.uint32)}
    return "rmsfloat16", (3,), (160,), {0: x, 1: w, 2: np.zeros_like(x), **sizes}, 2, expected, {}


def layer_norm():
    x, w = halves(3, 768), halves(768)
    wide = x.astype(np.float32)
    middle = wide - wide.mean(1, keepdims=True)
    expected = middle / np.sqrt(wide.var(1, keepdims=True) + 1e-5) * w + w
    buffers = {0: x, 1: w, 2: w, 3: np.zeros_like(x), 4: one(1e-5, np.float32)}
    buffers |= {5: one(768, np.uint32), 6: one(1, np.uint32), 7: one(1, np.uint32)}
    return "layer_normfloat16", (3,), (96,), buffers, 3, expected, {}


def softmax():
    x = halves(3, 576)
    weights = np.exp(x.astype(np.float32) - x.max(1, keepdims=True))
    expected = weights / weights.sum(1, keepdims=True)
    buffers = {0: x, 1: np.zeros_like(x), 2: one(576)}
    return "block_softmax_precise_float16", (3,), (160,), buffers, 1, expected, {}


def packed(n, k):
    """(uint32 words, codes [n, k])."""
    words = RNG.integers(0, 2**32, (n, k // 8), dtype=np.uint32)
    return words, ((words[:, :, None] >> (4 * np.arange(8, dtype=np.uint32))) & 15).reshape(n, k)


def affine(n, k):
    """([words, scales, biases], the matrix) in groups of 64."""
    words, codes = packed(n, k)
    scales = (RNG.random((n, k // 64)) * 0.05).astype(HALF)
    biases = (RNG.random((n, k // 64)) * -0.3).astype(HALF)
    wide = (np.repeat(part.astype(np.float32), 64, axis=1) for part in (scales, biases))
    return [words, scales, biases], codes * next(wide) + next(wide)


def affine_vector():
    n, k = 64, 512
    parts, matrix = affine(n, k)
    x = halves(k)
    buffers = dict(enumerate([*parts, x, np.zeros(n, HALF), one(k), one(n)]))
    name = "affine_qmv_fast_float16_t_gs_64_b_4_batch_0_pr_0_hgs_0_r_4"
    return name, (1, n // 8), (32, 2), buffers, 4, matrix @ x.astype(np.float32), {}


def mxfp4_vector():
    n, k = 64, 512
    words, codes = packed(n, k)
    exponents = RNG.integers(118, 128, (n, k // 32), dtype=np.uint8)
    matrix = FP4[codes] * np.repeat(2.0 ** (exponents.astype(np.float32) - 127), 32, axis=1)
    x = halves(k)
    buffers = {0: words, 1: exponents, 3: x, 4: np.zeros(n, HALF), 5: one(k), 6: one(n)}
    name = "mxfp4_qmv_fast_float16_t_gs_32_b_4_batch_0_pr_0_hgs_0_r_4"
    return name, (1, n // 8), (32, 2), buffers, 4, matrix @ x.astype(np.float32), {}


def affine_matrix():
    """On 8 by 8 matrices of a simdgroup."""
    rows, n, k = 40, 64, 128
    parts, matrix = affine(n, k)
    x = halves(rows, k)
    arrays = [*parts, x, np.zeros((rows, n), HALF), one(k), one(n), one(rows)]
    name = "affine_qmm_t_float16_t_gs_64_b_4_alN_true_batch_0"
    expected = x.astype(np.float32) @ matrix.T
    return name, (n // 32, -(-rows // 32)), (32, 2, 2), dict(enumerate(arrays)), 4, expected, {}


def attended(q, keys, values, seen):
    """seen(query) keys of each; arrays [heads, tokens, dim], two query heads a KV head."""
    out = np.zeros(q.shape, np.float32)
    for head in range(len(q)):
        k, v = (part[head // 2].astype(np.float32) for part in (keys, values))
        for row in range(q.shape[1]):
            count = seen(row)
            scores = k[:count] @ q[head, row].astype(np.float32) * q.shape[2] ** -0.5
            weights = np.exp(scores - scores.max())
            out[head, row] = weights / weights.sum() @ v[:count]
    return out


def decode_attention():
    q, keys, values = halves(4, 1, 64), halves(2, 50, 64), halves(2, 50, 64)
    buffers = {0: q, 1: keys, 2: values, 3: np.zeros_like(q), 4: one(2), 5: one(50)}
    for slot in (6, 8):
        buffers |= {slot: one(50 * 64, np.uint64), slot + 1: one(64, np.uint64)}
    buffers[10] = one(0.125, np.float32)
    expected = attended(q, keys, values, lambda row: 50)
    return "sdpa_vector_float16_t_64_64", (4, 1), (1024,), buffers, 3, expected, {}


def prefill_attention():
    """On 8 by 8 matrices, whole tiles of 32 queries and 16 keys, causal."""
    tokens, dim = 64, 128
    q, keys, values = halves(4, tokens, dim), halves(2, tokens, dim), halves(2, tokens, dim)
    steps = tokens // 32, tokens // 16
    head = np.array([1, 4, dim, tokens, tokens, 2], np.int32).tobytes()
    head += one(dim**-0.5, np.float32).tobytes()
    head += np.array([*steps, *steps, 0, 0, 0], np.int32).tobytes()
    strides = [(h * tokens * dim, tokens * dim, dim) for h in (4, 2, 2, 4)]
    params = np.frombuffer(head + np.array(strides, np.int64).tobytes(), np.uint8).copy()
    buffers = {0: q, 1: keys, 2: values, 3: np.zeros_like(q), 4: params}
    expected = attended(q, keys, values, lambda row: row + 1)
    name = "steel_attention_float16_bq32_bk16_bd128_bv128_wm4_wn1_maskfloat16"
    constants = {"align_Q": 1, "align_K": 1, "do_causal": 1}
    return name, (steps[0], 4, 1), (32, 4), buffers, 3, expected, constants


CASES = (rms_norm, layer_norm, softmax, affine_vector, mxfp4_vector, affine_matrix)
CASES += (decode_attention, prefill_attention)


def main(wheel, cache):
    metallib = MetalLib(zipfile.ZipFile(wheel).read(MEMBER))
    cases = [case() for case in CASES]
    path = library.library(metallib, [case[0] for case in cases], cache)
    kernels, wrong = simt.Library(simt.Runtime(build.runtime(cache)), path), False
    for name, grid, threads, buffers, output, expected, constants in cases:
        kernels.set_constants(**{key: np.uint8(value) for key, value in constants.items()})
        unused = np.zeros(4096, np.uint8)
        bound = [np.ascontiguousarray(buffers.get(slot, unused)) for slot in range(SLOTS)]
        kernels.run(name, grid, threads, *bound)
        error = np.abs(bound[output] - expected).max() / np.abs(expected).max()
        right = error < TOLERANCE
        wrong |= not right
        print(f"{name}: {'right' if right else 'WRONG'}, off by {error:.1e} of its largest value")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
