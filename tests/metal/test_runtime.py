"""The CPU runtime does to kernels what Metal says: positions, barriers, SIMD-groups, matrices.

Expected values are numpy's. Thread orders are tried wherever threads meet.
"""

import json

import numpy as np
import pytest
from msl import build, mslc, simt
from msl.source import MSL_FOLDER

MISSING = build.unavailable()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

KERNELS = MSL_FOLDER.parent / "runtime_kernels"
ORDERS = ["asc", "desc", "random:1", "random:2"]
RNG_SEED = 20


@pytest.fixture(scope="module")
def msl_cache(request):
    return request.config.cache.mkdir("msl")


@pytest.fixture(scope="module")
def exchange(msl_cache):
    return simt.load(KERNELS / "exchange.metal", msl_cache)


@pytest.fixture(scope="module")
def matrices(msl_cache):
    return simt.load(KERNELS / "matrices.metal", msl_cache)


@pytest.fixture
def rng():
    return np.random.default_rng(RNG_SEED)


@pytest.fixture(params=ORDERS)
def any_order(request):
    with simt.thread_order(request.param):
        yield


def test_a_ragged_grid_gives_every_thread_its_positions(exchange):
    width, height, threads = 37, 3, (16, 2)
    out = np.zeros((height, width, 12), np.uint32)
    exchange.run("positions", (width, height), threads, out, whole_groups=False)
    y, x = np.mgrid[:height, :width]
    here_x = np.minimum(16, width - x // 16 * 16)
    here_y = np.minimum(2, height - y // 2 * 2)
    index = y % 2 * here_x + x % 16
    expected = [x // 16, y // 2, x % 16, y % 2, here_x, here_y, np.full_like(x, 3)]
    expected += [np.full_like(x, 2), index, index % 32, index // 32, (here_x * here_y + 31) // 32]
    np.testing.assert_array_equal(out, np.stack(expected, -1))


def test_a_barrier_separates_writes_from_reads(exchange, any_order):
    x = np.arange(3 * 200, dtype=np.float32)
    y = np.zeros_like(x)
    exchange.run("reverse_in_threadgroup", (3,), (200,), x, y)
    np.testing.assert_array_equal(y, x.reshape(3, 200)[:, ::-1].ravel())


def test_threadgroup_memory_of_the_dispatch_is_shared_by_a_threadgroup(exchange, any_order, rng):
    x = rng.integers(-9, 9, 5 * 64).astype(np.float32)
    y = np.zeros(5, np.float32)
    exchange.run("sum_in_threadgroup", (5,), (64,), x, y, threadgroup=[64 * 4])
    np.testing.assert_array_equal(y, x.reshape(5, 64).sum(1))


@pytest.mark.parametrize("active", [32, 20])
def test_simd_functions_see_the_lanes_that_exist(exchange, any_order, rng, active):
    x = rng.integers(-99, 99, active).astype(np.int32)
    out = np.zeros((15, active), np.int32)
    exchange.run("simd_functions", (active,), (32,), x, out, whole_groups=False)
    lane = np.arange(active)
    same = np.ones(active, np.int32)
    assert (out[0] == x.sum()).all()
    assert (out[1] == x.max()).all()
    assert (out[2] == x.min()).all()
    inside = (lane ^ 5) < active
    np.testing.assert_array_equal(out[3][inside], x[(lane ^ 5)[inside]])
    np.testing.assert_array_equal(out[4][: active - 3], x[3:])
    np.testing.assert_array_equal(out[5][3:], x[:-3])
    np.testing.assert_array_equal(out[6:8], np.stack([x[7] * same, x[0] * same]))
    np.testing.assert_array_equal(out[8], np.cumsum(x) - x)
    np.testing.assert_array_equal(out[9], np.cumsum(x))
    ballot = sum(1 << i for i in lane if x[i] > 0 and i < 31)
    np.testing.assert_array_equal(out[10:13], np.stack([ballot * same, same, 0 * same]))
    np.testing.assert_array_equal(out[13], np.repeat(x.reshape(-1, 4).sum(1), 4))
    np.testing.assert_array_equal(out[14][: active - 2], x[2:])
    if active == 32:
        assert (out[14][30:] == -1).all()


def test_atomics_lose_nothing(exchange, any_order, rng):
    bins = rng.integers(3, 11, 4096).astype(np.uint32)
    counts, least = np.zeros(16, np.uint32), np.array([99], np.uint32)
    exchange.run("count_in_bins", (64,), (64,), bins, counts, least)
    np.testing.assert_array_equal(counts, np.bincount(bins, minlength=16))
    assert least[0] == bins.min()


def test_function_constants_are_set_by_name_and_cleared(exchange):
    x = np.array([1, 2], np.float32)
    exchange.set_constants(SCALE=np.uint32(3), NEGATE=np.bool_(True))
    exchange.run("scale", (2,), (1,), x)
    assert x.tolist() == [-3, -6]
    exchange.set_constants()
    exchange.run("scale", (2,), (1,), x)
    assert x.tolist() == [-3, -6]
    with pytest.raises(simt.KernelError, match="SCALE: no such function constant of 8 bytes"):
        exchange.set_constants(SCALE=np.uint64(3))


def test_half_and_bfloat_round_after_every_operation(exchange, rng):
    x = np.concatenate([rng.standard_normal(50), [0, 1e-7, 70000, np.inf]]).astype(np.float32)
    out = np.zeros((5, x.size), np.uint32)
    exchange.run("conversions", (x.size,), (1,), x, out)
    with np.errstate(over="ignore"):
        h = x.astype(np.float16)
        np.testing.assert_array_equal(out[0], h.view(np.uint16))
        np.testing.assert_array_equal(out[2], (h * h + h).view(np.uint16))
    bits = x.view(np.uint32)
    np.testing.assert_array_equal(out[1], (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)
    finite = np.isfinite(h)
    expected = 3 + 20 + 100 + 1000 * h[finite].astype(np.float32)
    np.testing.assert_allclose(out[3].view(np.float32)[finite], expected, rtol=1e-6)
    np.testing.assert_array_equal(out[4], 0x030201 + (np.arange(x.size) << 24))


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_simdgroup_matrices_multiply(matrices, any_order, rng, kind):
    m, k, n = 16, 24, 8
    a, b = rng.integers(-5, 6, (m, k)).astype(kind), rng.integers(-5, 6, (n, k)).astype(kind)
    c = np.zeros((m, n), np.float32)
    name = {np.float32: "multiply_float", np.float16: "multiply_half"}[kind]
    matrices.run(name, (n // 8, m // 8), (32,), a, b, c, np.array([k, n], np.uint32))
    np.testing.assert_array_equal(c, a.astype(np.float32) @ b.T.astype(np.float32))


def test_a_simdgroup_matrix_is_stored_transposed(matrices, any_order):
    x, y = np.arange(64, dtype=np.float16).reshape(8, 8), np.zeros((8, 8), np.float16)
    matrices.run("transpose", (1,), (32,), x, y)
    np.testing.assert_array_equal(y, x.T)


def test_lanes_hold_the_matrix_elements_that_apples_hold(matrices):
    x, out = np.arange(64, dtype=np.float32), np.zeros((32, 2), np.float32)
    matrices.run("layout", (1,), (32,), x, out)
    # Lanes 0 to 3, 8 and 16 as Apple's GPUs show them through thread_elements().
    assert out[[0, 1, 2, 3, 8, 16]].tolist() == [[0, 1], [2, 3], [8, 9], [10, 11], [4, 5], [32, 33]]


def test_kernels_are_listed_by_their_host_names(matrices):
    assert sorted(matrices.kernels) == ["layout", "multiply_float", "multiply_half", "transpose"]


def test_a_second_build_of_the_same_source_is_a_look_up(msl_cache):
    path = KERNELS / "matrices.metal"
    built = build.library(path, msl_cache)
    stamp = built.stat().st_mtime_ns
    assert build.library(path, msl_cache) == built
    assert built.stat().st_mtime_ns == stamp
    assert build.library(path, msl_cache, defines=["OTHER=1"], optimize="1") != built


def test_threads_that_never_wait_share_a_stack(exchange):
    x = np.ones(1024, np.float32)
    exchange.set_constants(SCALE=np.uint32(2))
    exchange.run("scale", (1,), (1024,), x)
    assert (x == 2).all()
    assert exchange.stats()["switches"] == 2  # to the first thread and back from the last


def test_the_command_lists_kernels_arguments_and_constants(capsys):
    assert mslc.main(["reflect", str(KERNELS / "exchange.metal"), "--only", "^scale$"]) == 0
    reflected = json.loads(capsys.readouterr().out)
    assert [kernel["name"] for kernel in reflected["kernels"]] == ["scale"]
    x, t = reflected["kernels"][0]["arguments"]
    assert (x["kind"], x["index"], x["space"], x["is_const"]) == ("buffer", 0, "device", False)
    assert (t["kind"], t["type"]) == ("builtin", "uint")
    constants = [(c["name"], c["index"], c["type"]) for c in reflected["function_constants"]]
    assert constants == [("SCALE", "0", "uint"), ("NEGATE", "1", "bool")]


def test_the_command_builds_a_library_beside_its_intermediate_files(tmp_path, msl_cache):
    out = tmp_path / "scale.so"
    command = ["build", str(KERNELS / "exchange.metal"), "-o", str(out), "--only", "^scale$"]
    assert mslc.main([*command, "--cache", str(msl_cache)]) == 0
    library = simt.Library(simt.Runtime(build.runtime(msl_cache)), out)
    assert library.kernels == ["scale"]
    assert library.max_threads("scale") == 1024
