"""What a kernel does wrong at run time is seen: races, divergence, missing bindings, bad addresses.

runtime_kernels/faulty.metal has one kernel for each fault.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from msl import build, simt
from msl.source import MSL_FOLDER

MISSING = build.unavailable()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

FAULTY = MSL_FOLDER.parent / "runtime_kernels" / "faulty.metal"
ORDERS = ["asc", "desc", "random:1", "random:2"]
THREADS = 64


@pytest.fixture(scope="module")
def msl_cache(request):
    return request.config.cache.mkdir("msl")


@pytest.fixture(scope="module")
def faulty(msl_cache):
    return simt.load(FAULTY, msl_cache)


def run(library, kernel, order="asc"):
    x, y = np.arange(1, THREADS + 1, dtype=np.float32), np.zeros(256, np.float32)
    with simt.thread_order(order):
        library.run(kernel, (1,), (THREADS,), x, y, np.array([1, 2], np.uint32))
    return y[:THREADS]


@pytest.mark.parametrize("kernel", ["no_barrier", "one_barrier_of_two", "two_writers"])
def test_a_race_makes_the_result_depend_on_the_order_of_threads(faulty, kernel):
    assert len({run(faulty, kernel, order).tobytes() for order in ORDERS}) > 1


def test_threadgroup_memory_starts_as_not_a_number(faulty):
    y = run(faulty, "never_written")
    np.testing.assert_array_equal(y[:32], np.arange(32))
    assert np.isnan(y[32:]).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("barrier_in_a_branch", "24 of 64 threads had already returned"),
        ("two_barriers_for_one", "threads wait at different threadgroup_barriers"),
        ("divergent_sum", "divergence: lanes of one SIMD-group meet in simd_"),
        ("half_of_a_simdgroup", "divergence: 16 of 32 lanes of SIMD-group . wait in"),
        ("too_much_memory", "brings the total to 48000 bytes, over the limit of 32768"),
    ],
)
def test_threads_that_cannot_meet_are_reported(faulty, kernel, message, order):
    with pytest.raises(simt.KernelError, match=message) as caught:
        run(faulty, kernel, order)
    assert str(caught.value).startswith(f"{kernel}: ")


def test_a_dispatch_that_metal_would_refuse_is_refused(faulty):
    y = np.zeros(4, np.float32)
    with pytest.raises(simt.KernelError, match=r"buffer 1 \(y\) is not bound"):
        faulty.run("two_writers", (1,), (2,))
    with pytest.raises(simt.KernelError, match=r"buffer 2 \(n\): 4 bytes bound, .* value of 8"):
        faulty.run("reads_a_reference", (1,), (1,), None, y, np.zeros(1, np.uint32))
    with pytest.raises(simt.KernelError, match="offset breaks the alignment of 4"):
        faulty.run("two_writers", (1,), (2,), None, np.zeros(9, np.uint8)[1:])
    with pytest.raises(simt.KernelError, match="1025 threads per threadgroup, at most 1024"):
        faulty.run("two_writers", (1,), (1025,), None, y)
    with pytest.raises(simt.KernelError, match="33 threads per threadgroup, at most 32"):
        faulty.run("few_threads", (1,), (33,), None, y)
    with pytest.raises(simt.KernelError, match="dimension is zero"):
        faulty.run("few_threads", (0,), (1,), None, y)
    with pytest.raises(simt.KernelError, match="no kernel 'absent'"):
        faulty.run("absent", (1,), (1,))


def test_a_fault_leaves_the_runtime_usable(faulty):
    for _ in range(3):
        with pytest.raises(simt.KernelError):
            run(faulty, "divergent_sum")
        assert run(faulty, "two_writers")[5] == 11


@pytest.mark.parametrize("kernel", ["beyond_a_buffer", "beyond_threadgroup_memory"])
def test_address_sanitizer_sees_an_access_out_of_bounds(msl_cache, kernel):
    sanitizer = build.sanitizer_library("asan")
    if sanitizer is None:
        pytest.skip("no AddressSanitizer run time: apt-get install libclang-rt-19-dev")
    built = build.library(FAULTY, msl_cache, sanitize="address")
    runtime = build.runtime(msl_cache, sanitize="address")
    program = (
        "import sys, numpy as np\n"
        "from msl import simt\n"
        "library = simt.Library(simt.Runtime(sys.argv[1]), sys.argv[2])\n"
        "x, y = np.zeros(64, np.float32), np.zeros(64, np.float32)\n"
        "library.run('two_writers', (1,), (64,), x, y)\n"
        "print('a good kernel runs', flush=True)\n"
        "library.run(sys.argv[3], (1,), (64,), x, y)\n"
    )
    command = [sys.executable, "-c", program, str(runtime), str(built), kernel]
    # Python's own leaks are not ours; numpy must get its arrays from the sanitizer's allocator.
    environment = {**os.environ, "LD_PRELOAD": sanitizer, "ASAN_OPTIONS": "detect_leaks=0"}
    environment["PYTHONPATH"] = os.pathsep.join([str(MSL_FOLDER.parent), *sys.path])
    environment["MSL_THREADS"] = "1"
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "a good kernel runs" in ended.stdout, ended.stderr
    assert "ERROR: AddressSanitizer" in ended.stderr
    assert f"faulty.metal:{line_of(kernel)}" in ended.stderr
    assert ended.returncode != 0


def line_of(kernel):
    """The faulty line: the first with `t + 1` after the kernel's head."""
    lines = FAULTY.read_text().splitlines()
    head = next(n for n, line in enumerate(lines) if f"kernel void {kernel}(" in line)
    return 1 + next(n for n in range(head, len(lines)) if "t + 1" in lines[n])


@pytest.fixture(scope="module")
def watched(msl_cache):
    return simt.load(FAULTY, msl_cache, races=True)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("kernel", "memory"),
    [("no_barrier", "shared"), ("one_barrier_of_two", "shared"), ("two_writers", "y")],
)
def test_a_library_that_looks_for_races_finds_them_in_any_order(watched, kernel, memory, order):
    message = rf"{kernel}: race: thread \d+ (reads|writes) byte \d+ of {memory}, which thread \d+"
    with pytest.raises(simt.KernelError, match=message):
        run(watched, kernel, order)


def test_a_barrier_for_the_other_kind_of_memory_is_a_race(watched):
    with pytest.raises(simt.KernelError, match=r"race: .* of shared, .* no barrier between"):
        run(watched, "barrier_for_device_memory")


def test_two_threadgroups_that_write_one_place_race(watched):
    with pytest.raises(simt.KernelError, match="wrote with no barrier between") as caught:
        watched.run("few_threads", (2,), (1,), None, np.zeros(4, np.float32))
    assert "thread 0 of another threadgroup" in str(caught.value)


@pytest.mark.parametrize("order", ORDERS)
def test_kernels_with_their_barriers_have_no_races(msl_cache, order):
    kernels = simt.load(FAULTY.with_name("exchange.metal"), msl_cache, races=True)
    x, y = np.arange(600, dtype=np.float32), np.zeros(600, np.float32)
    bins = np.arange(256, dtype=np.uint32) % 3
    with simt.thread_order(order):
        kernels.run("reverse_in_threadgroup", (3,), (200,), x, y)
        kernels.run("sum_in_threadgroup", (5,), (64,), x, y, threadgroup=[64 * 4])
        kernels.run("count_in_bins", (4,), (64,), bins, np.zeros(16, np.uint32), bins[:1].copy())
    assert y[:5].tolist() == [2016, 6112, 10208, 14304, 18400]
