"""build.py of metal_shim/build against a stand-in compiler: what it compiles, when, and how it
refuses; and build_metal.py's source and command lines.

The stand-in is a shell script that notes each call and writes its arguments and its input as the
object, so these tests need no C compiler.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from marlin.device import abi
from marlin.weights.kinds import KINDS

FAKE_COMPILER = r"""#!/bin/sh
if [ "$1" = --version ]; then cat "$0.version"; exit; fi
echo "$@" >>"$0.log"
previous=
for argument in "$@"; do
    [ "$previous" = -o ] && out="$argument"
    case "$argument" in
        *.c) grep -q 'syntax error' "$argument" && { echo 'bad C' >&2; exit 1; } ;;
    esac
    previous="$argument"
done
echo "$@" | sed 's/[0-9]*\.partial//g' >"$out"
for argument in "$@"; do case "$argument" in *.c) cat "$argument" >>"$out" ;; esac; done
"""


class Tree:
    """A checkout with two plain sources, one kernel source, one of Metal's and the stand-in
    compiler."""

    def __init__(self, root, build_script):
        self.root = root
        for folder in ("build", "common", "cpu", "metal"):
            (root / "metal_shim" / folder).mkdir(parents=True)
        for folder in ("shaders", "marlin/device"):
            (root / folder).mkdir(parents=True)
        self.script = root / "metal_shim" / "build" / "build.py"
        self.script.write_bytes(build_script.read_bytes())
        for name in ("common/records.c", "cpu/cpu.c", "cpu/kernels_rows.c", "metal/metal_files.c"):
            (root / "metal_shim" / name).write_text(f"/* {name} */\n")
        for name in ("marlin.h", "common/buffers.h"):
            (root / "metal_shim" / name).write_text(f"/* {name} */\n")
        (root / "shaders" / "params.h").write_text("/* params */\n")
        self.compiler = root / "my cc"
        self.compiler.write_text(FAKE_COMPILER)
        self.compiler.chmod(0o755)
        self.set_version("1.0")

    def set_version(self, version):
        Path(f"{self.compiler}.version").write_text(version)

    def write(self, name, text):
        (self.root / name).write_text(text)

    def build(self, *options, machine="x86_64", **environ):
        """(finished process, the compiler's calls in this build)."""
        log = Path(f"{self.compiler}.log")
        log.unlink(missing_ok=True)
        output = self.root / "marlin" / "device"
        command = [sys.executable, str(self.script)]
        command += ["--machine", machine, "--output", str(output), *options]
        done = subprocess.run(
            command,
            env={"PATH": os.environ["PATH"], "CC": f"'{self.compiler}'", **environ},
            capture_output=True,
            text=True,
        )
        return done, sorted(log.read_text().splitlines()) if log.exists() else []

    def compiled(self, *options, **environ):
        """Names of the sources compiled by a build that succeeds, one for each time."""
        done, calls = self.build(*options, **environ)
        assert done.returncode == 0, done.stderr
        names = [word for call in calls for word in call.split() if word.endswith(".c")]
        return sorted(Path(name).name for name in names)

    def library(self):
        (library,) = (self.root / "marlin" / "device").iterdir()
        return library


@pytest.fixture
def tree(tmp_path, checkout):
    return Tree(tmp_path / "a checkout", checkout / "metal_shim" / "build" / "build.py")


def test_kernel_sources_are_compiled_once_for_each_instruction_set(tree):
    assert tree.compiled() == ["cpu.c", *["kernels_rows.c"] * 3, "records.c"]


def test_each_instruction_set_gets_its_own_flags_and_names(tree):
    _, calls = tree.build()
    (avx512,) = [call for call in calls if "-DMARLIN_ISA_AVX512=1" in call]
    (avx2,) = [call for call in calls if "-DMARLIN_ISA_AVX2=1" in call]
    (scalar,) = [call for call in calls if "-DMARLIN_ISA_SCALAR=1" in call]
    assert "-mavx512vnni" in avx512 and "-DMARLIN_ISA_SUFFIX=avx512" in avx512
    assert "-mfma" in avx2 and "-mavx512" not in avx2
    assert "-mavx" not in scalar and "-mfma" not in scalar


# Fused, the bits that the product lost stay in the first; reordered, the second is 1.
ROUNDING = """#include <stdio.h>
volatile float factor = 1.000244140625f, large = 1e8f, one = 1;
int main(void) {
    float a = factor, b = large, c = one, product = a * a;
    printf("%g %g", a * a - product, b + c - b);
}
"""


@pytest.mark.native
@pytest.mark.parametrize("compiler", ["cc", "clang"])
def test_no_flag_lets_the_compiler_reorder_or_fuse_float_arithmetic(tree, tmp_path, compiler):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} on PATH")
    calls = tree.build(machine=platform.machine())[1]
    sets = {tuple(re.findall(r" (-(?:std|[Ofm])\S+)", call)) for call in calls if " -c " in call}
    (tmp_path / "rounding.c").write_text(ROUNDING)
    for flags in filter(runs_here, sets):
        subprocess.run([compiler, *flags, "rounding.c", "-o", "rounding"], cwd=tmp_path, check=True)
        done = subprocess.run([tmp_path / "rounding"], capture_output=True, check=True)
        assert done.stdout == b"0 0", flags
    assert any(map(runs_here, sets))


def runs_here(flags):
    """Whether this processor has the x86 instructions that the flags ask for."""
    wanted = {flag.removeprefix("-m") for flag in flags if re.match("-m(avx|fma|f16c)", flag)}
    if not wanted:
        return True
    return wanted <= set(Path("/proc/cpuinfo").read_text().replace("avx512_", "avx512").split())


def test_plain_sources_are_told_which_instruction_sets_the_library_holds(tree):
    _, calls = tree.build("--isa", "avx2,scalar")
    (call,) = [call for call in calls if "metal_shim/cpu/cpu.c" in call]
    assert "-DMARLIN_HAVE_AVX2=1" in call and "-DMARLIN_HAVE_SCALAR=1" in call
    assert "AVX512" not in call


def test_arm_compiles_dotprod_and_i8mm_variants(tree):
    _, calls = tree.build(machine="arm64")
    marches = [word for call in calls for word in call.split() if word.startswith("-march=")]
    assert sorted(marches) == ["-march=armv8.2-a+dotprod", "-march=armv8.2-a+dotprod+i8mm"]


def test_an_unknown_machine_gets_the_scalar_kernels(tree):
    assert tree.compiled(machine="riscv64") == ["cpu.c", "kernels_rows.c", "records.c"]


def test_a_second_build_runs_no_compiler_and_leaves_the_library_alone(tree):
    tree.compiled()
    before = tree.library().stat()
    done, calls = tree.build()
    assert calls == []
    assert "up to date" in done.stdout
    assert tree.library().stat().st_mtime_ns == before.st_mtime_ns


def test_a_changed_source_is_the_only_one_compiled_again(tree):
    tree.compiled()
    tree.write("metal_shim/common/records.c", "/* another */\n")
    assert tree.compiled() == ["records.c"]
    assert tree.compiled() == []


@pytest.mark.parametrize(
    "header", ["metal_shim/marlin.h", "metal_shim/common/buffers.h", "shaders/params.h"]
)
def test_a_changed_header_compiles_everything_again(tree, header):
    tree.compiled()
    tree.write(header, "/* another */\n")
    assert len(tree.compiled()) == 5


def test_a_new_compiler_compiles_everything_again(tree):
    tree.compiled()
    tree.set_version("1.1")
    assert len(tree.compiled()) == 5


def test_a_damaged_library_is_put_right_without_compiling(tree):
    tree.compiled()
    good = tree.library().read_bytes()
    tree.library().write_bytes(b"cut sho")
    assert tree.compiled() == []
    assert tree.library().read_bytes() == good


def test_a_new_library_replaces_the_old_file_instead_of_writing_into_it(tree):
    tree.compiled()
    inode = tree.library().stat().st_ino
    with open(tree.library(), "rb") as held:
        old = held.read()
        tree.write("metal_shim/cpu/cpu.c", "/* another */\n")
        tree.write("metal_shim/cpu/cpu_extra.c", "/* one more object */\n")
        tree.compiled()
        held.seek(0)
        assert held.read() == old
    assert tree.library().stat().st_ino != inode


def test_old_objects_do_not_pile_up(tree):
    for text in ("one", "two", "three"):
        tree.write("metal_shim/cpu/cpu.c", f"/* {text} */\n")
        tree.compiled()
    names = [path.name for path in (tree.root / "build" / "native").rglob("*") if path.is_file()]
    assert len([name for name in names if name.startswith("cpu.")]) == 1
    assert len([name for name in names if name.startswith("libmarlin_cpu.")]) == 1


def test_a_source_that_does_not_compile_is_named_and_keeps_the_old_library(tree):
    tree.compiled()
    old = tree.library().read_bytes()
    tree.write("metal_shim/cpu/cpu.c", "syntax error\n")
    done, _ = tree.build()
    assert done.returncode == 1
    assert "metal_shim/cpu/cpu.c" in done.stderr and "bad C" in done.stderr
    assert tree.library().read_bytes() == old


def test_sanitizers_are_passed_to_compiler_and_linker_and_kept_apart(tree):
    tree.compiled()
    done, calls = tree.build("--sanitize", "address,undefined")
    assert done.returncode == 0 and len(calls) == 6
    assert all("-fsanitize=address,undefined" in call for call in calls)
    assert tree.compiled() == []


def test_an_unusual_library_is_never_put_in_the_usual_place_by_default(tree):
    command = [sys.executable, str(tree.script), "--isa", "scalar"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "--output" in done.stderr


def test_an_unknown_instruction_set_is_refused_with_those_there_are(tree):
    done, _ = tree.build("--isa", "neon")
    assert done.returncode == 1
    assert "'neon' on x86_64; it has avx512, avx2, scalar" in done.stderr


def test_without_a_compiler_one_sentence_says_how_to_get_one(tree, tmp_path):
    done, _ = tree.build(PATH=str(tmp_path), CC="")
    assert done.returncode == 1
    assert "no C compiler found" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_compiler_named_in_cc_that_does_not_exist_is_named_back(tree):
    done, _ = tree.build(CC="no-such-cc -m64")
    assert done.returncode == 1 and "'no-such-cc'" in done.stderr


def test_a_mac_without_command_line_tools_is_told_how_to_get_them(load_script):
    build = load_script("metal_shim/build/build.py")
    with pytest.raises(build.BuildError, match="xcode-select --install"):
        build.find_compiler({}, "Darwin", which=lambda name: None)


# --- build_metal.py, as far as that shows without a Mac ---


@pytest.fixture(scope="module")
def build_metal(load_script):
    return load_script("metal_shim/build/build_metal.py")


def write_shaders(folder, **files):
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)


def test_the_joined_source_has_every_shader_and_each_header_once(build_metal, tmp_path):
    write_shaders(
        tmp_path,
        a_metal='#include <metal_stdlib>\n#include "x.h"\nkernel void a() {}\n',
        b_metal='#include <metal_stdlib>\n#include "x.h"\n#include "y.h"\nkernel void b() {}\n',
        x_h='#include "y.h"\nint x;\n',
        y_h="int y;\n",
    )
    lines = build_metal.joined_source(tmp_path).splitlines()
    code = [line for line in lines if not line.startswith(("//", "#include <"))]
    assert code == ["int y;", "int x;", "kernel void a() {}", "kernel void b() {}"]
    assert lines.count("#include <metal_stdlib>") == 2


def test_a_shader_that_includes_what_is_not_there_is_named(build_metal, tmp_path):
    write_shaders(tmp_path, a_metal='#include "gone.h"\n')
    with pytest.raises(build_metal.BuildError, match="a.metal includes gone.h"):
        build_metal.joined_source(tmp_path)
    with pytest.raises(build_metal.BuildError, match="holds no"):
        build_metal.joined_source(tmp_path / "empty")


def test_the_joined_source_holds_every_kernel_of_the_list(build_metal, checkout):
    text = build_metal.joined_source(checkout / "shaders")
    assert '#include "' not in text
    for name in abi.KERNELS:
        stem, _, kind = name.rpartition("_")
        made_by_macro = kind in KINDS and re.search(rf"{stem}_##", text)
        assert made_by_macro or re.search(rf"\b{name}\b", text), name


def test_the_embedded_source_is_the_text_to_the_byte(build_metal):
    header = build_metal.source_header('float x; // "é"\n' * 40)
    numbers = re.findall(r"\b\d+\b", header)
    assert bytes(map(int, numbers)) == ('float x; // "é"\n' * 40).encode() + b"\0"
    assert max(map(len, header.splitlines())) <= 100


def test_the_metal_library_is_linked_with_what_gives_it_a_device(build_metal, tmp_path, checkout):
    command = build_metal.shim_command(checkout, tmp_path, tmp_path / "out.dylib")
    assert command[:2] == ["xcrun", "clang"] and "-fno-objc-arc" in command
    frameworks = [b for a, b in pairwise(command) if a == "-framework"]
    assert frameworks == ["Metal", "Foundation", "CoreGraphics"]
    sources = {Path(word).name for word in command if word.endswith((".m", ".c"))}
    assert {"metal.m", "metal_launch.c", "records.c", "kernel_checks.c"} <= sources
    assert not any(name.startswith(("cpu", "kernels_")) for name in sources)


def test_shaders_are_compiled_for_the_oldest_system_and_without_fast_math(build_metal, tmp_path):
    command = build_metal.library_command(tmp_path / "a.metal", tmp_path / "a.metallib")
    assert command[:4] == ["xcrun", "-sdk", "macosx", "metal"]
    assert {"-std=metal3.1", "-fno-fast-math", "-mmacosx-version-min=14.0"} <= set(command)
