"""The shim, its C files and the simulated Metal, built with clang's sanitizers: no access to memory
that is not theirs, nothing undefined, no leak, no race.

sim/lifetimes.c uses devices from C, on several threads; then the shim's tests run once more.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import simulated

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ADDRESS, THREAD = simulated.SANITIZERS
# Far longer than a run takes; only a thread that waits for ever takes it.
RUN_TIMEOUT_S = 120
REPORT = re.compile(r"Sanitizer|runtime error:")
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1",
    "LSAN_OPTIONS": f"print_suppressions=0:suppressions='{HERE}/sim/leaks.supp'",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": f"suppressions='{HERE}/sim/threads.supp'",
}
# Each mistake of lifetimes.c: who reports it, and what.
MISTAKES = {
    "a program that is never destroyed": (ADDRESS, r"leak of [\s\S]* marlin_program_create"),
    "a program that is destroyed twice": (ADDRESS, r"heap-use-after-free .*metal/metal_replay\.m"),
    "memory that is freed while it is wrapped": (ADDRESS, "heap-use-after-free"),
    "a record at an odd address": (ADDRESS, r"records\.c.* runtime error: .* misaligned address"),
    "a buffer released while a thread reads it": (THREAD, r"data race .*common/buffers\.c"),
}


@pytest.fixture(scope="module")
def build(simulated_metal, load_script):
    """A sanitized library by what -fsanitize= takes, or a skip that says why."""
    build_metal = load_script("metal_shim/build/build_metal.py")

    def build_with(sanitize):
        if simulated.sanitizer_library(sanitize) is None:
            pytest.skip("no run time of clang's sanitizers: apt-get install libclang-rt-19-dev")
        return simulated.build(simulated_metal.home.parent, build_metal, sanitize)

    return build_with


@pytest.fixture
def run_lifetimes(build, tmp_path):
    """Run lifetimes.c with a mistake under a sanitizer: the finished process."""

    def run(mistake, sanitize):
        built = build(sanitize)
        source = HERE / "sim" / "lifetimes.c"
        program = simulated.caller(built.home.parent, source, built.library, sanitize)
        environment = os.environ | built.environment | OPTIONS | {"HOME": str(tmp_path)}
        return finished([str(program), mistake], environment)

    return run


def finished(command, environment):
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=RUN_TIMEOUT_S
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip(f"ThreadSanitizer cannot run on this kernel: {done.stderr.strip()}")
    return done


def run_python(sanitize, *arguments):
    """A finished Python process with a sanitizer's run time: its own leaks are no concern of
    ours."""
    path = os.pathsep.join(map(str, (ROOT, HERE)))
    environment = os.environ | OPTIONS | {"ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": path}
    environment["LD_PRELOAD"] = simulated.sanitizer_library(sanitize)
    return finished([sys.executable, *arguments], environment)


def assert_no_report(done):
    said = done.stdout[-3000:] + done.stderr[-6000:]
    assert done.returncode == 0 and not REPORT.search(done.stderr), said


@pytest.mark.parametrize("sanitize", simulated.SANITIZERS)
def test_careful_use_from_several_threads_is_reported_by_no_sanitizer(run_lifetimes, sanitize):
    done = run_lifetimes("none", sanitize)
    assert_no_report(done)
    assert done.stdout == "fine\n"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported_and_fails_the_run(run_lifetimes, mistake):
    sanitize, report = MISTAKES[mistake]
    done = run_lifetimes(mistake, sanitize)
    assert done.returncode != 0 and re.search(report, done.stderr), done.stderr[-6000:]


# Whose library is built with a sanitizer. What the whole source compiles to is not.
TESTS_OF_THE_SHIM = """
import functools, sys, pytest, simulated
simulated.build = functools.partial(simulated.build, sanitize=sys.argv[1])
options = ["-q", "--capture=no", "-p", "no:cacheprovider", "-k", "not whole_source"]
sys.exit(pytest.main([*options, *sys.argv[2:]]))
"""


@pytest.mark.parametrize(
    ("names", "least"), [(("test_shim.py", "test_shim_memory.py"), 25), (("test_segments.py",), 6)]
)
@pytest.mark.long
@pytest.mark.parametrize("sanitize", simulated.SANITIZERS)
def test_the_shims_tests_pass_under_sanitizers(build, sanitize, names, least):
    build(sanitize)  # by a compiler that has none preloaded
    files = [str(HERE / name) for name in names]
    done = run_python(sanitize, "-c", TESTS_OF_THE_SHIM, sanitize, *files)
    assert_no_report(done)
    passed = re.search(r"^(\d+) passed(, 1 deselected)? in", done.stdout, re.MULTILINE)
    assert passed and int(passed[1]) > least, done.stdout


DESTROY_TWICE = """
import sys
from marlin.device.device import Device
from silu import silu_program
device = Device(kind="metal", library_path=sys.argv[1])
program = silu_program(device)[0]
for _ in range(2):
    device.library.marlin_program_destroy(program._handle)
"""


def test_a_report_ends_a_python_process(build):
    done = run_python(ADDRESS, "-c", DESTROY_TWICE, str(build(ADDRESS).library))
    assert done.returncode != 0
    found = re.search(r"heap-use-after-free .*metal/metal_replay\.m", done.stderr)
    assert found, done.stderr[-6000:]
