"""build.py of metal_shim/build against a stand-in compiler: what it compiles, when, and how it
refuses.

The stand-in is a shell script that notes each call and writes its arguments and its input as the
object, so these tests need no C compiler.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
for argument in "$@"; do
    case "$argument" in *.[co]) cat "$argument" >>"$out" || exit 1 ;; esac
done
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


@pytest.mark.parametrize(
    ("cc", "said"),
    [
        ("'gcc", 'CC is "\'gcc", which no shell reads'),
        ("{root}", "is not a program on PATH"),
        ("true", "ends well, and makes no such file"),
        ("false", "the C compiler false does not run"),
    ],
)
def test_an_odd_cc_is_a_sentence(tree, cc, said):
    done, _ = tree.build(CC=cc.format(root=tree.root))
    assert done.returncode == 1 and said in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) < 15
    assert list((tree.root / "marlin" / "device").iterdir()) == []


def test_a_cc_of_blanks_is_none_and_one_with_arguments_keeps_them(tree, tmp_path):
    done, _ = tree.build(CC="  ", PATH=str(tmp_path))
    assert "no C compiler found" in done.stderr
    (tmp_path / "ccache").write_text('#!/bin/sh\necho via ccache >>"$CCLOG"; exec "$@"\n')
    (tmp_path / "ccache").chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CCLOG": str(tmp_path / "log")}
    done, calls = tree.build(CC=f"ccache '{tree.compiler}' --with this", **environ)
    assert done.returncode == 0 and len(calls) == 7  # --version, five objects and the library
    assert all(call.startswith("--with this ") for call in calls)
    assert (tmp_path / "log").read_text().count("via ccache") == 7


def test_flags_of_the_environment_come_after_defaults_and_before_what_results_rest_on(tree):
    flags = {"CFLAGS": "-O2 -D'A B=1' -ffast-math", "CPPFLAGS": "-DX", "LDFLAGS": "-Wl,-z,now"}
    _, calls = tree.build(**flags)
    *compiled, linked = [call for call in calls if " -c " in call] + [
        call for call in calls if " -c " not in call
    ]
    assert len(compiled) == 5
    for call in compiled:
        order = [" -O3 ", " -DX ", " -O2 ", " -DA B=1 ", " -ffast-math ", " -fno-fast-math "]
        places = [f" {call}".index(word) for word in order]
        assert places == sorted(places)
        assert "-Wl" not in call
    assert " -Wl,-z,now " in linked and "-DX" not in linked
    assert tree.compiled(**flags) == []
    assert len(tree.compiled()) == 5


def test_flags_that_no_shell_could_read_are_named(tree):
    done, _ = tree.build(LDFLAGS='"')
    assert done.returncode == 1 and "LDFLAGS is '\"', which no shell" in done.stderr


def test_a_folder_in_the_librarys_place_is_a_sentence_and_leaves_nothing_half_done(tree):
    folder = tree.root / "marlin" / "device" / "libmarlin_cpu.so"
    folder.mkdir()
    done, _ = tree.build()
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{folder} cannot be written: Is a directory" in done.stderr
    assert tree.library() == folder


def test_a_cache_that_cannot_be_made_is_a_sentence_with_its_path(tree):
    (tree.root / "build").write_text("")
    done, _ = tree.build()
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert f"{tree.root}/build/native" in done.stderr and "Not a directory" in done.stderr


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("build/native", "the C compiler failed: no space left in "),
        ("marlin/device", "libmarlin_cpu.so cannot be written: No space left on device"),
    ],
)
def test_a_full_disk_is_a_sentence_with_its_path(tree, folder, said):
    tree.write("metal_shim/cpu/cpu.c", "/* much */\n" * 10_000)
    (tree.root / folder).mkdir(parents=True, exist_ok=True)
    mount = f"mount -t tmpfs -o size=32k none '{tree.root / folder}'"
    in_namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*in_namespace, mount]).returncode:
        pytest.skip("this system lets nobody mount a small disk")
    script = f"{mount} && exec '{sys.executable}' '{tree.script}' --machine x86_64 --output"
    done = subprocess.run(
        [*in_namespace, f"{script} '{tree.root}/marlin/device'"],
        env={"PATH": os.environ["PATH"], "CC": f"'{tree.compiler}'"},
        capture_output=True,
        text=True,
    )
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("build.py: ")]
    assert done.returncode == 1 and said in line and str(tree.root) in line
    assert "Traceback" not in done.stderr


def test_with_nothing_to_build_nothing_is_opened_for_writing(tree):
    tree.compiled()
    written = f"""
import runpy, sys
WRITES = {os.O_WRONLY | os.O_RDWR | os.O_TRUNC}
def refuse(event, given):
    if event == "open" and given[2] & WRITES and "/dev/null" not in str(given[0]):
        raise OSError(30, "Read-only file system", given[0])
    if event in ("os.rename", "os.remove"):
        raise OSError(30, "Read-only file system", given[0])
sys.addaudithook(refuse)
sys.argv = {[str(tree.script), "--machine", "x86_64", "--output", str(tree.library().parent)]}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    environ = {"PATH": os.environ["PATH"], "CC": f"'{tree.compiler}'"}
    done = subprocess.run([sys.executable, "-c", written], env=environ, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_mac_without_command_line_tools_is_told_how_to_get_them(load_script):
    build = load_script("metal_shim/build/build.py")
    with pytest.raises(build.BuildError, match="xcode-select --install"):
        build.find_compiler({}, "Darwin", which=lambda name: None)
