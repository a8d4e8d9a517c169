"""build_metal.py of metal_shim/build against a stand-in `xcrun`: what it builds where, when two
builds meet, and what an old SDK gives; and its source and command lines.

The stand-in writes its input as the output, in two halves with a pause between them.
"""

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from marlin.device import abi
from marlin.weights.kinds import KINDS

FAKE_XCRUN = r"""#!/bin/sh
case "$*" in
    *--show-sdk-version) [ -n "$FAKE_SDK" ] && echo "$FAKE_SDK"; exit ;;
    "clang --version") echo "clang 1.0"; exit ;;
    "-sdk macosx metal --version") [ -n "$FAKE_METAL" ] && echo "metal $FAKE_METAL"; exit ;;
esac
echo "$1 $2 $3" >>"$0.log"
previous=
for argument in "$@"; do
    [ "$previous" = -o ] && out="$argument"
    case "$argument" in
        *.m | *.c | *.metal)
            grep -q 'syntax error' "$argument" && { echo 'bad source' >&2; exit 1; }
            printf '%s' "$(cat "$argument");" >>"$0.$$" ;;
    esac
    previous="$argument"
done
text=$(cat "$0.$$")
: >"$out"
for half in 1 2; do printf '%s' "$text" >>"$out"; sleep 0.1; done
"""
# A Mac, as far as build.py asks.
AS_A_MAC = """
import platform, runpy, sys
platform.system = lambda: "Darwin"
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
FAKE_COMPILER = """#!/bin/sh
[ "$1" = --version ] && exit
while [ $# -gt 0 ]; do [ "$1" = -o ] && echo built >"$2"; shift; done
"""
LIBRARY, METALLIB, CPU = "libmarlin_metal.dylib", "marlin.metallib", "libmarlin_cpu.dylib"


class Tree:
    """A checkout with few sources, and a PATH whose first folder holds the stand-in."""

    def __init__(self, root, checkout):
        self.root, self.tools = root, root / "tools"
        for folder in ("build", "common", "metal"):
            (root / "metal_shim" / folder).mkdir(parents=True)
        for folder in ("shaders", "tools"):
            (root / folder).mkdir(parents=True)
        for name in ("build/build.py", "build/build_metal.py"):
            text = (checkout / "metal_shim" / name).read_bytes()
            (root / "metal_shim" / name).write_bytes(text)
        for name in ("metal/metal.m", "metal/metal_files.c", "common/records.c"):
            (root / "metal_shim" / name).write_text(f"/* {name} */")
        (root / "shaders" / "params.h").write_text("/* params */")
        self.shade("one")
        self._program("xcrun", FAKE_XCRUN)
        self._program("fake cc", FAKE_COMPILER)

    def _program(self, name, text):
        (self.tools / name).write_text(text)
        (self.tools / name).chmod(0o755)

    def shade(self, text):
        (self.root / "shaders" / "a.metal").write_text(f"kernel void {text}() {{}}\n")

    def start(self, output, sdk="15.2", metal="32.1", script="build_metal.py", *options):
        """A build that runs."""
        path = str(self.root / "metal_shim" / "build" / script)
        command = [sys.executable, "-c", AS_A_MAC, path, "--output", str(output), *options]
        environment = {"PATH": f"{self.tools}:{os.environ['PATH']}"}
        environment |= {"FAKE_SDK": sdk, "FAKE_METAL": metal}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=environment, **pipes)

    def build(self, *arguments):
        """(return code, what it said on stderr)."""
        process = self.start(*arguments)
        return process.wait(), process.communicate()[1]

    def compiled(self):
        """How often each tool ran since this was last asked."""
        log = self.tools / "xcrun.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return sum(line.startswith("clang") for line in lines), sum("metal" in s for s in lines)


@pytest.fixture
def tree(tmp_path, checkout):
    return Tree(tmp_path / "a checkout", checkout)


@pytest.fixture
def outputs(tmp_path):
    return tmp_path / "A", tmp_path / "B"


def contents(output):
    return {path.name: path.read_text() for path in output.iterdir()}


def test_each_output_has_what_the_shaders_are_now_whatever_another_output_was_given(tree, outputs):
    a, b = outputs
    assert tree.build(a) == (0, "")
    tree.shade("two")
    assert tree.build(b) == (0, "") and tree.build(a) == (0, "")
    assert set(contents(a)) == {LIBRARY, METALLIB} and contents(a) == contents(b)
    assert "kernel void two" in contents(a)[METALLIB]


def test_a_second_build_compiles_nothing_and_leaves_the_files_alone(tree, outputs):
    a, b = outputs
    tree.build(a)
    assert tree.compiled() == (1, 1)
    before = {path.name: path.stat().st_mtime_ns for path in a.iterdir()}
    tree.build(a)
    tree.build(b)
    assert tree.compiled() == (0, 0)
    assert {path.name: path.stat().st_mtime_ns for path in a.iterdir()} == before


def test_a_damaged_library_is_put_right_without_compiling(tree, outputs):
    a, _ = outputs
    tree.build(a)
    good = contents(a)
    for name in good:
        (a / name).write_text("cut sho")
    tree.compiled()
    tree.build(a)
    assert contents(a) == good and tree.compiled() == (0, 0)


def test_another_sdk_or_metal_compiler_compiles_again(tree, outputs):
    a, _ = outputs
    tree.build(a, "15.2", "32.1")
    tree.compiled()
    tree.build(a, "26.0", "32.1")
    assert tree.compiled() == (1, 1)
    tree.build(a, "26.0", "32.2")
    assert tree.compiled() == (0, 1)


def test_old_libraries_do_not_pile_up_in_the_cache(tree, outputs):
    for text in ("one", "two", "three"):
        tree.shade(text)
        tree.build(outputs[0])
    names = sorted(path.name for path in (tree.root / "build" / "native" / "metal").iterdir())
    kinds = [name.rsplit(".", 1)[0] for name in names]
    assert kinds == [LIBRARY, "lock", "marlin", METALLIB, "shader_source"]


def test_two_builds_at_once_both_publish_whole_files_and_one_compiles(tree, outputs):
    running = [tree.start(output) for output in outputs]
    assert [process.wait() for process in running] == [0, 0]
    for process in running:
        process.communicate()
    assert tree.compiled() == (1, 1)
    a, b = map(contents, outputs)
    assert a == b and set(a) == {LIBRARY, METALLIB}
    for text in a.values():  # both halves
        half = len(text) // 2
        assert text[:half] == text[half:] != ""


def test_a_shader_that_does_not_compile_fails_the_build_and_keeps_the_old_files(tree, outputs):
    a, _ = outputs
    tree.build(a)
    old = contents(a)
    tree.shade("syntax error")
    code, said = tree.build(a)
    assert code == 1 and said.count("bad source") == 1 and contents(a) == old


def test_without_xcode_the_library_comes_alone_and_an_older_metallib_goes(tree, outputs):
    a, _ = outputs
    tree.build(a)
    assert tree.build(a, "15.2", "") == (0, "") and set(contents(a)) == {LIBRARY}


@pytest.mark.parametrize("sdk", ["14.5", "26.0", ""])
def test_an_sdk_from_macos_14_on_or_an_unknown_one_builds_the_device(tree, outputs, sdk):
    assert tree.build(outputs[0], sdk, "") == (0, "") and set(contents(outputs[0])) == {LIBRARY}


def test_an_older_sdk_gives_the_cpu_library_alone_and_one_line_that_says_so(tree, outputs):
    a, _ = outputs
    a.mkdir()
    for name in (LIBRARY, METALLIB):
        (a / name).write_text("of a newer SDK")
    tools = ("--cc", f"'{tree.tools / 'fake cc'}'")
    code, said = tree.build(a, "13.3", "", "build.py", *tools)
    assert code == 0 and set(contents(a)) == {CPU} and tree.compiled() == (0, 0)
    assert said == (
        "build_metal.py: without the Metal device: it needs the SDK of macOS 14 (Xcode 15), "
        "and this is 13.3's\n"
    )


def test_a_compile_error_with_a_new_sdk_fails_the_whole_build(tree, outputs):
    tools = ("--cc", f"'{tree.tools / 'fake cc'}'")
    (tree.root / "metal_shim" / "metal" / "metal.m").write_text("syntax error")
    code, said = tree.build(outputs[0], "14.0", "", "build.py", *tools)
    assert code == 1 and "bad source" in said


# --- Its source and command lines, as far as they show without a Mac ---


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
    flags = ("-O0", "-DX"), ("-Wl,-x",)
    command = build_metal.shim_command(checkout, tmp_path, tmp_path / "out.dylib", *flags)
    assert command.index("-O2") < command.index("-O0") < command.index("-Wl,-x")
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
