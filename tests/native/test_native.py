"""device_test.c, the CPU device's own test program, where a plain run cannot show a fault.

Under sanitizers: a byte past a binding, undefined behaviour, a leak, a race in the worker pool.
Under qemu: the ARM instruction sets, and which of them a processor gets. With clang, which Macs
build with. Owns the building of the program; the checks are in the C files beside this one.
"""

import functools
import os
import platform
import re
import shutil
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(platform.system() != "Linux", reason="these tools are Linux's"),
]

# A run takes seconds; a worker that never wakes would take for ever.
RUN_TIMEOUT_S = 300
COMPILE_FLAGS = ("-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Wshadow", "-Werror")
ARM_PACKAGES = "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
ARM_LIBRARIES = "/usr/aarch64-linux-gnu"


def require_program(name, packages):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not on PATH: sudo apt-get install {packages}")


def build_device_test(checkout, folder, compiler, sanitize=None, machine=None, isa=None, flags=""):
    """The library and the program that tests it, built alike. Returns the program's path.

    Args:
        checkout: the checkout's root.
        folder: where both go.
        compiler: the C compiler's name.
        sanitize: sanitizers, as -fsanitize= takes them.
        machine: what the compiler compiles for, if not this machine.
        isa: the one instruction set to build; None is all.
        flags: that the library's own give way to.
    """
    build = [sys.executable, "metal_shim/build/build.py", "--output", str(folder), "--cc", compiler]
    build += ["--sanitize", sanitize] if sanitize else []
    build += ["--machine", machine] if machine else []
    build += ["--isa", isa] if isa else []
    compile_quietly(checkout, build, {**os.environ, **({"CFLAGS": flags} if flags else {})})
    return build_program(checkout, folder, folder, compiler, sanitize)


def build_program(checkout, folder, library_folder, compiler, sanitize=None):
    """The program alone, in `folder`, for a library that is there. Returns its path."""
    program = folder / "device_test"
    sources = sorted(str(path) for path in (checkout / "tests" / "native").glob("*.c"))
    command = [compiler, *COMPILE_FLAGS, "-Imetal_shim", "-Ishaders", *sources]
    command += [f"-fsanitize={sanitize}"] if sanitize else []
    command += [f"-L{library_folder}", "-lmarlin_cpu", "-ldl", f"-Wl,-rpath,{library_folder}"]
    compile_quietly(checkout, [*command, "-o", str(program)], os.environ)
    return program


def compile_quietly(checkout, command, environ):
    done = subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr


def run_device_test(program, *arguments, prefix=()):
    """The finished process of `prefix... program SCRATCH_FILE arguments...`."""
    command = [*prefix, str(program), str(program.with_name("scratch_file")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)


def assert_all_passed(done):
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    said = "\n".join([*failed[:20], done.stderr[:4000]])
    assert done.returncode == 0, f"exit status {done.returncode}\n{said}"
    summary = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"[1-9]\d* passed, 0 failed", summary), summary


@pytest.fixture(scope="module")
def fixed_addresses():
    """A command prefix that keeps a program's memory where sanitizers expect it, if it may.

    Their shadow memory has fixed places, which a kernel that randomizes addresses by 32 bits
    (vm.mmap_rnd_bits) may have given to something else.
    """
    prefix = ("setarch", "-R")
    if shutil.which("setarch") is None:
        print("setarch is not on PATH (Debian package util-linux): addresses stay random")
        return ()
    asked = subprocess.run([*prefix, "true"], capture_output=True, text=True)
    if asked.returncode != 0:
        print(f"setarch -R may not be used here, addresses stay random: {asked.stderr.strip()}")
        return ()
    return prefix


@pytest.mark.long
def test_no_check_reads_or_writes_past_a_binding_or_leaks_or_is_undefined(
    checkout, tmp_path, fixed_addresses
):
    require_program("gcc", "gcc libc6-dev")
    program = build_device_test(checkout, tmp_path, "gcc", sanitize="address,undefined")
    assert_all_passed(run_device_test(program, prefix=fixed_addresses))


def test_workers_do_not_race(checkout, tmp_path, fixed_addresses):
    require_program("gcc", "gcc libc6-dev")
    program = build_device_test(checkout, tmp_path, "gcc", sanitize="thread", isa="scalar")
    groups = ("devices", "kernels", "replays", "submit", "indices", "buffers")
    done = run_device_test(program, *groups, prefix=fixed_addresses)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip(f"ThreadSanitizer cannot run on this kernel: {done.stderr.strip()}")
    assert_all_passed(done)


@pytest.fixture(scope="module", params=["-O1", pytest.param("-O3", marks=pytest.mark.long)])
def arm_program(request, checkout, tmp_path_factory):
    """-O3 is what is shipped, and takes a minute more."""
    require_program("aarch64-linux-gnu-gcc", ARM_PACKAGES)
    require_program("qemu-aarch64", "qemu-user")
    folder = tmp_path_factory.mktemp("arm")
    compiler = "aarch64-linux-gnu-gcc"
    return build_device_test(checkout, folder, compiler, machine="aarch64", flags=request.param)


@pytest.fixture(scope="module")
def run_on_arm(arm_program):
    """run_on_arm(processor, *groups): the finished process of the program, run once."""

    @functools.cache
    def run(processor, *groups):
        qemu = ("qemu-aarch64", "-cpu", processor, "-L", ARM_LIBRARIES)
        return run_device_test(arm_program, *groups, prefix=qemu)

    return run


@pytest.mark.parametrize(
    ("processor", "sets"),
    [("max", "i8mm neon scalar"), ("neoverse-n1", "neon scalar"), ("cortex-a72", "scalar")],
)
def test_an_arm_processor_gets_the_sets_that_it_has(request, run_on_arm, processor, sets):
    """The first has all sets, and so the whole program; the others have it where there is time."""
    is_long = request.node.get_closest_marker("long") is not None
    groups = () if is_long or processor == "max" else ("devices",)
    done = run_on_arm(processor, *groups)
    assert_all_passed(done)
    best = sets.split()[0]
    assert done.stdout.splitlines()[0] == f"instruction sets: {sets}; best: {best}"


def bits_of_all_cases(done):
    assert_all_passed(done)
    return re.findall("^bits of all cases: ([0-9a-f]{16})$", done.stdout, re.MULTILINE)


def test_an_arm_processor_computes_the_bits_of_this_one(checkout, tmp_path, run_on_arm):
    require_program("gcc", "gcc libc6-dev")
    here = build_program(checkout, tmp_path, checkout / "marlin" / "device", "gcc")
    bits = bits_of_all_cases(run_device_test(here, "kernels"))
    assert len(bits) == 1
    assert bits_of_all_cases(run_on_arm("max")) == bits


@pytest.mark.long
def test_clang_builds_it_without_a_warning_and_it_passes(checkout, tmp_path):
    require_program("clang", "clang")
    program = build_device_test(checkout, tmp_path, "clang")
    assert_all_passed(run_device_test(program))
