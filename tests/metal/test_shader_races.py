"""No kernel of shaders/ races, and none of its barriers can be left out.

Every kernel runs on a small odd shape in a build that stops at the first access that no barrier
separates from another thread's. Then each barrier in turn is left out, found by its name, so that
a new one is covered by itself: the run that reaches it must be stopped, or its answer be wrong.
Both take one build, of copies whose barriers a function constant leaves out.
"""

import functools
import itertools
import re

import numpy as np
import pytest
import reference
import reference_experts
from expert_runs import (
    any_weight,
    combine_experts,
    matmul_experts,
    matvec_experts,
    route,
    sort_experts,
)
from fused_runs import matvec_fused
from ggml_blocks import blank, random_blocks
from latent_runs import attention_of_latents, latent_write
from msl import build, simt
from shader import SHADERS, Shader
from state_runs import STATE_RUNS, delta_rule
from test_attention_shaders import draws, kv_case, normal, split, whole
from test_linear_shaders import TWO_UNITS, arrays_of, matmul, repacked_by_cpu

from marlin.device import abi
from marlin.weights.block_types import REPACKED
from marlin.weights.kinds import KINDS, ROW_TILE

MISSING = build.unavailable()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

# Builds are most of the time here, and -O1 keeps the loads and stores that the source has.
WATCHED = {"races": True, "optimize": "1"}


# --- one small run of each kernel, compared with the oracle ---


def embed(shader, kind):
    """Rows of more words than a threadgroup has threads."""
    vocab_size, dim = 33, 1120
    arrays, flags, values, magnitude = any_weight(kind, vocab_size, dim)
    token_ids, y = np.array([32, 0, 16], np.int32), np.full((3, dim), np.nan, np.float32)
    sizes = {"vocab_size": vocab_size, "dim": dim, "group_size": 32, "flags": flags, "scale": 1.0}
    params, bindings = ("EmbedParams", {"rows_var": 0, **sizes}), [token_ids, *arrays, y]
    constants = {"GROUP_SIZE": 32, "FLAGS": flags}
    assert shader("embed").run(f"embed_{kind}", (3, 1, 1), bindings, params, [3], constants)
    reference.assert_close(y, reference.Expected(values[token_ids], magnitude[token_ids]))


def matvec(shader, kind):
    """One row a threadgroup and sixteen; columns for a few turns of any threadgroup."""
    n, k = 33, 2144
    arrays, flags, values, magnitude = any_weight(kind, n, k)
    for rows, form in ((2, 1), (13, 16)):
        x, y = normal(rows, k), np.full((rows, n), np.nan, np.float32)
        sizes = {"n": n, "k": k, "group_size": 32, "flags": flags}
        constants = {"ROWS": form, "GROUP_SIZE": 32, "FLAGS": flags}
        units, bindings = (-(-n // ROW_TILE), rows, 1), [x, *arrays, None, y]
        params = ("LinearParams", {"rows_var": 0, **sizes})
        assert shader("matvec").run(f"matvec_{kind}", units, bindings, params, [rows], constants)
        reference.assert_close(y, reference.linear(x, values, weight_magnitude=magnitude))


def matmul_of_steps(shader, kind):
    """Two tiles of y and three steps of columns."""
    x = normal(35, 96)
    arrays, flags, values, magnitude = any_weight(kind, 65, 96)
    y = matmul(shader, kind, x, arrays, 65, flags)
    reference.assert_close(y, reference.linear(x, values, weight_magnitude=magnitude))


def rms_norm(shader):
    """A threadgroup a row, and a simdgroup a row."""
    for rows_per_var, dim in ((1, 1030), (9, 70)):
        rows = 2 * rows_per_var
        x, delta, weight = normal(rows, dim), normal(rows, dim, seed=1), normal(dim, seed=2)
        y = np.full((rows, dim), np.nan, np.float32)
        expected, summed = reference.rms_norm(x, weight, 1e-5, delta)
        sizes = {"rows_per_var": rows_per_var, "dim": dim, "has_delta": 1, "eps": 1e-5}
        sizes |= {"adds": 0, "delta_scale": 1.0}
        params, units = ("RmsNormParams", {"rows_var": 0, **sizes}), (2, rows_per_var, 1)
        assert shader("rows").run("rms_norm", units, [x, delta, weight, y], params, [2])
        reference.assert_close(y, expected)
        np.testing.assert_array_equal(x, summed)


def layer_norm(shader):
    x, delta, y = normal(2, 1030), normal(2, 1030, seed=1), np.full((2, 1030), np.nan, np.float32)
    weight, bias = normal(1030, seed=2), normal(1030, seed=3)
    expected, summed = reference.layer_norm(x, weight, bias, 1e-5, delta)
    params = ("LayerNormParams", {"rows_var": 0, "dim": 1030, "has_delta": 1, "eps": 1e-5})
    bindings = [x, delta, weight, bias, y]
    assert shader("rows").run("layer_norm", (2, 1, 1), bindings, params, [2])
    reference.assert_close(y, expected)
    np.testing.assert_array_equal(x, summed)


def rope_table(shader):
    positions, inv_freq = np.array([0, 17, 8191], np.int32), normal(70) ** 2
    table = np.full((3, 2, 70), np.nan, np.float32)
    params = ("RopeTableParams", {"rows_var": 0, "half_dim": 70, "scale": 1.19})
    bindings = [positions, inv_freq, table]
    assert shader("rows").run("rope_table", (3, 1, 1), bindings, params, [3])
    reference.assert_close(table, reference.rope_table(positions, inv_freq, 1.19))


def rope_kv_write(shader):
    """Five rows of 3 + 2 heads: the slots of some lie side by side in a key tile."""
    rows, heads, head_dim, blocks = 5, 3, 80, 2
    q, k, v = normal(rows, heads, head_dim), normal(rows, 1, head_dim), normal(rows, 1, head_dim)
    table = reference.rope_table(np.arange(rows) * 7, normal(head_dim // 2) ** 2, 1.0).value
    table, slots = table.astype(np.float32), np.array([3, 4, 31, 5, 16], np.int32)
    k_cache = np.full((blocks, 1, 1, head_dim, 16), 7, np.float16)
    v_cache = np.full((blocks, 1, 16, head_dim), 9, np.float16)
    expected_k, expected_v = k_cache.copy(), v_cache.copy()
    norms = normal(head_dim, seed=3), normal(head_dim, seed=4)
    v[1, 0, [0, 40]], norms[1][79] = (1e6, -1e6), 1e6  # several simdgroups mark a row
    k[[0, 2, 3, 4], 0, 79] = 0
    normed = [reference.rms_norm(x, w, 1e-5)[0].value for x, w in zip((q, k), norms, strict=True)]
    turned_q, turned_k = (reference.rotate(x.astype(np.float32), table) for x in normed)
    reference.write_kv(expected_k, expected_v, turned_k, v, slots)
    sizes = {"num_heads": heads, "num_kv_heads": 1, "head_dim": head_dim}
    sizes |= {"rotary_dim": head_dim, "interleaved": 0, "has_norms": 1, "eps": 1e-5, "kv_f32": 0}
    params = ("RopeKvParams", {"rows_var": 0, **sizes, "block_size": 16, "num_blocks": blocks})
    beyond, units, constants = np.zeros(rows, np.int32), (rows, heads + 2, 1), {"KV_F32": 0}
    bindings = [q, k, v, table, slots, k_cache, v_cache, *norms, beyond]
    assert shader("rows").run("rope_kv_write", units, bindings, params, [rows], constants)
    assert beyond.tolist() == [0, 1, 0, 0, 0]
    for got, want in ((q, turned_q), (k, turned_k)):
        reference.assert_close(got, reference.Expected(want, np.abs(want) + 1))
    reference.assert_close(k_cache, reference.Expected(expected_k, np.abs(expected_k)), "float16")
    np.testing.assert_array_equal(v_cache, expected_v)


def scale_rows(shader):
    x, y = normal(2, 1030) * 9, np.full((2, 1030), np.nan, np.float32)
    params = ("ScaleParams", {"rows_var": 0, "dim": 1030, "scale": 0.5, "cap": 3.0})
    assert shader("rows").run("scale_rows", (2, 2, 1), [x, y], params, [2])
    reference.assert_close(y, reference.scale_rows(x, 0.5, 3.0))


def gated_mul(shader, kernel, oracle):
    gate, up = normal(2, 1030), normal(2, 1030, seed=1)
    expected = oracle(gate, up)
    params = ("RowsParams", {"rows_var": 0, "dim": 1030})
    assert shader("rows").run(kernel, (2, 2, 1), [gate, up, gate], params, [2])
    reference.assert_close(gate, expected)


def gelu(shader):
    x = normal(2, 1030) * 3
    expected, params = reference.gelu(x), ("RowsParams", {"rows_var": 0, "dim": 1030})
    assert shader("rows").run("gelu", (2, 2, 1), [x, x], params, [2])
    reference.assert_close(x, expected)


def gather_rows(shader):
    rows, x = np.array([4, 0, 4], np.int32), normal(5, 300)
    y = np.full((3, 300), np.nan, np.float32)
    params = ("RowsParams", {"rows_var": 0, "dim": 300})
    assert shader("rows").run("gather_rows", (3, 1, 1), [rows, x, y], params, [3])
    np.testing.assert_array_equal(y, x[rows])


# Contexts of several chunks of 64 tokens, tiles that end within a matrix of eight queries. A
# head that is kept whole, with two turns of a simdgroup, and one that is taken in parts.
ATTENTION = (
    ([(150, 11), (70, 1), (131, 1), (200, 1)], {"num_heads": 4, "head_dim": 80, "window": 100}),
    ([(70, 3)], {"head_dim": 272}),
)
# Contexts of two splits; more queries than are taken together; heads of one part and of two.
ATTENTION_SPLIT = (
    ([(300, 3), (40, 1)], {"num_heads": 3, "head_dim": 48}),
    ([(20, 2)], {"num_heads": 5, "head_dim": 144}),
    ([(260, 2)], {"num_heads": 5, "head_dim": 144}),
)


def attention(shader, way=whole, cases=ATTENTION):
    for sequences, shape in cases:
        case = kv_case.make_case(sequences, **shape)
        reference.assert_close(way(shader, case), case.expected())


attention_split = functools.partial(attention, way=split, cases=ATTENTION_SPLIT)


def mask_logits(shader):
    """More tokens than threads, and a vocabulary that ends within a word."""
    logits, rows = normal(3, 700), np.array([2, 0], np.int32)
    masks = np.random.default_rng(1).integers(0, 2**32, (2, 22)).astype(np.uint32)
    expected = reference.mask_logits(logits, masks, rows)
    params = ("SampleParams", {"rows_var": 0, "vocab_size": 700})
    assert shader("sample").run("mask_logits", (2, 1, 1), [logits, masks, rows], params, [2])
    np.testing.assert_array_equal(logits, expected)


def penalize(shader):
    """More entries than threads."""
    logits, penalties = normal(2, 700), np.zeros(2, abi.PARAMS["SampleRow"])
    penalties["repetition_penalty"], penalties["frequency_penalty"] = 1.3, 0.2
    lists = [[(i, i % 4 - 1, 0.5) for i in range(699, 300, -1)], [(5, 2, 0.0)]]
    pairs = zip(logits, lists, penalties, strict=True)
    expected = np.stack([reference.penalize(*pair) for pair in pairs])
    entries = np.array(lists[0] + lists[1], abi.PARAMS["PenaltyEntry"])
    starts = np.cumsum([0, *map(len, lists)]).astype(np.int32)
    params = ("SampleParams", {"rows_var": 0, "vocab_size": 700})
    bindings = [logits, entries, starts, penalties]
    assert shader("sample").run("penalize", (2, 1, 1), bindings, params, [2])
    np.testing.assert_array_equal(logits, expected)


# Greedy; nothing left out of the draw; limits that end among equal logits.
SAMPLE_SETTINGS = (
    {"temperature": 0.0},
    {},
    {"top_p": 0.37},
    {"top_k": 41},
    {"top_k": 41, "top_p": 0.61},
)


def sample(shader):
    """More tokens than threads, in logits of few values."""
    logits, num_draws = np.round(normal(1100) * 4) / 4, 3
    uniform = [reference.uniform(5, position) for position in range(num_draws)]
    for settings in SAMPLE_SETTINGS:
        running = np.cumsum(reference.distribution(logits, **settings))
        expected = np.searchsorted(running, uniform, side="right")
        ids = draws(shader, logits, num_draws, seed=5, **settings)
        np.testing.assert_array_equal(ids, expected, err_msg=str(settings))


def repack(shader):
    """Two blocks a row of 17 rows: a second tile with one row."""
    n, k = 17, 512
    source, arrays = random_blocks("Q4_K", n, k), arrays_of(blank("Q4_K", n, k))
    fields = {"type": REPACKED["Q4_K"].number, "n": n, "k": k, "permute_heads": 0}
    fields |= {"factor": 1.0}
    params, units = ("RepackParams", fields), (-(-n // ROW_TILE), 1, 1)
    assert shader("repack").run("repack", units, [source, *arrays], params, [])
    found = [array.tobytes() for array in arrays]
    assert found == repacked_by_cpu(source, "Q4_K", n, k, 0)


def probe_read(shader):
    x = np.random.default_rng(0).integers(0, 256, (2, abi.PROBE_BYTES)).astype(np.uint8)
    sums = np.zeros(2, np.uint32)
    shader("probe").run("probe_read", (2, 1, 1), [x, sums], TWO_UNITS, [])
    assert sums.tolist() == x.view(np.uint32).sum(axis=1, dtype=np.uint32).tolist()


def probe_dot(shader):
    out = np.full(2, np.nan, np.float32)
    params = ("ProbeParams", {"num_units": 1})
    shader("probe").run("probe_dot", (1, 1, 1), [None, out], params, [])
    assert 0 < out[0] < np.inf and np.isnan(out[1])


def every_kind(shader, run):
    for kind in KINDS:
        run(shader, kind)


def several(*runs):
    def run_all(shader):
        for run in runs:
            run(shader)

    return run_all


BY_KIND = {"embed": embed, "matvec": matvec, "matmul": matmul_of_steps}
BY_KIND |= {"matvec_experts": matvec_experts, "matmul_experts": matmul_experts}
GATES = {name: getattr(reference, name) for name in ("silu_mul", "gelu_mul", "sigmoid_mul")}
GATES["swiglu_mul"] = reference_experts.swiglu_mul
RUNS = {
    **{
        f"{op}_{kind}": functools.partial(run, kind=kind)
        for op, run in BY_KIND.items()
        for kind in KINDS
    },
    **{
        f"matvec_fused_{kind}": functools.partial(matvec_fused, kind=kind)
        for kind in abi.FUSED_KINDS
    },
    **{
        name: functools.partial(gated_mul, kernel=name, oracle=oracle)
        for name, oracle in GATES.items()
    },
    **{
        run.__name__: run
        for run in (
            *(route, sort_experts, combine_experts, rms_norm, layer_norm, rope_table),
            *(rope_kv_write, latent_write, scale_rows, gelu, gather_rows, mask_logits),
            *(penalize, sample, repack, probe_read, probe_dot),
        )
    },
    **STATE_RUNS,
    "attention": several(attention, attention_of_latents),
    "attention_split": attention_split,
    "attention_combine": attention_split,
}


# --- with every barrier, and with each left out ---

BARRIER = re.compile(r"\b(?:threadgroup|simdgroup)_barrier\s*\(")
# A copy leaves out the barrier of this number: a function constant, so that it is built once.
SWITCH = """#include <metal_stdlib>
using namespace metal;
constant uint LEFT_OUT [[function_constant(100)]];
"""
NOTHING = 0xFFFFFFFF

SOURCES = {path.name: path.read_text() for path in sorted(SHADERS.glob("*.[hm]*"))}
BARRIERS = [
    (name, text.count("\n", 0, found.start()) + 1)
    for name, text in SOURCES.items()
    for found in BARRIER.finditer(text)
]


@pytest.fixture(scope="module")
def without(request, tmp_path_factory):
    """without(n) opens copies of the .metal files by name, built to stop at a race, that leave out
    barrier n of BARRIERS."""
    folder, numbers = tmp_path_factory.mktemp("shaders"), itertools.count()
    for name, text in SOURCES.items():
        copy = BARRIER.sub(lambda at: f"LEFT_OUT == {next(numbers)} ? (void)0 : {at[0]}", text)
        (folder / name).write_text((SWITCH if name.endswith(".metal") else "") + copy)
    cache = request.config.cache.mkdir("shaders")
    opened = functools.cache(lambda name: Shader(name, cache, folder, **WATCHED))

    def leave_out(number, name):
        opened(name).constants = {"LEFT_OUT": np.uint32(number)}
        return opened(name)

    return lambda number: functools.partial(leave_out, number)


@pytest.mark.parametrize("kernel", abi.KERNELS)
def test_a_kernel_runs_without_a_race_to_the_right_answer(without, any_order, kernel):
    RUNS[kernel](without(NOTHING))


# What reaches the barriers of a file.
RUNS_OF_FILES = {
    "attention.metal": attention,
    "attention_split.metal": attention_split,
    "common.h": rms_norm,
    "experts.metal": several(route, sort_experts),
    "matmul.metal": several(
        *(functools.partial(every_kind, run=run) for run in (matmul_of_steps, matmul_experts))
    ),
    "matvec.metal": several(
        *(functools.partial(every_kind, run=run) for run in (matvec, matvec_experts))
    ),
    "matvec_experts.h": functools.partial(every_kind, run=matvec_experts),
    "matvec_fused.h": functools.partial(matvec_fused, kind="int4"),
    "probe.metal": probe_read,
    "sample.metal": sample,
    "state.metal": delta_rule,
}
# Its histogram is of atomics, which do not race: too early, they give a wrong answer.
FILES_OF_ATOMICS = ("sample.metal",)


@pytest.mark.parametrize(
    "number", range(len(BARRIERS)), ids=[f"{name}:{line}" for name, line in BARRIERS]
)
def test_without_one_barrier_there_is_a_race_or_a_wrong_answer(without, number):
    file, _ = BARRIERS[number]
    wrong = (AssertionError,) if file in FILES_OF_ATOMICS else ()
    with pytest.raises((simt.KernelError, *wrong)) as caught:
        RUNS_OF_FILES[file](without(number))
    assert caught.type is AssertionError or "race: " in str(caught.value)
