"""Both libraries compiled and linked for an Apple-silicon Mac, off one: by the clang, the headers
of Darwin's libc and the linker of PyPI's ziglang. And the shim against Apple's own headers, where
METAL_MARLIN_APPLE_HEADERS names a folder with `include` and `Frameworks` of a macOS SDK: none are
kept here.

What is linked cannot run here; what Apple's frameworks define is looked up when a Mac loads it.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import metal_facts
import pytest
from wheels import run_pip

PACKAGE = "ziglang==0.17.1"
HEADERS_VARIABLE = "METAL_MARLIN_APPLE_HEADERS"
TARGET = "aarch64-macos"
# zig's spelling of what build.py says with -march.
ISAS = {"i8mm": ("-mcpu=generic+v8_2a+dotprod+i8mm",), "neon": ("-mcpu=generic+v8_2a+dotprod",)}


@pytest.fixture(scope="module")
def zig(pytestconfig):
    """The command of the compiler, without a target."""
    folder = None
    if importlib.util.find_spec("ziglang") is None:
        folder = pytestconfig.cache.mkdir("ziglang")
        if not (folder / "ziglang").exists():
            run_pip(PACKAGE, "install", "--quiet", "--no-deps", "--target", str(folder))
    driver = f"import sys; sys.path.insert(0, {str(folder or '')!r}); import runpy; "
    driver += "sys.argv[0] = 'zig'; runpy.run_module('ziglang', run_name='__main__')"
    return (sys.executable, "-c", driver, "cc")


def exported(library):
    """Names that a Mach-O library exports."""
    if shutil.which("llvm-nm-19") is None:
        pytest.skip("no llvm-nm-19: apt-get install llvm-19")
    command = ["llvm-nm-19", "--extern-only", "--defined-only", str(library)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = set(re.findall(r" [A-Z] _(\w+)$", listed, re.MULTILINE))
    return found - {"__dso_handle", "_mh_dylib_header"}  # the linker's own


def declared(checkout):
    """What marlin.h declares."""
    text = (checkout / "metal_shim" / "marlin.h").read_text()
    return set(re.findall(r"^MARLIN_API [^;(]*?(marlin_\w+)\(", text, re.MULTILINE))


@pytest.mark.downloads
def test_the_cpu_library_links_for_a_mac_without_a_warning(
    zig, checkout, load_script, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # asked for its version, zig leaves an empty a.o where it is
    build = load_script("metal_shim/build/build.py")
    command = (*zig, "-target", f"{TARGET}.11.0")
    toolchain = build.open_toolchain(command, "aarch64", "Darwin", {})
    isas = build.choose_isas("aarch64")
    assert ISAS.keys() <= isas.keys()
    built = build.build(checkout, toolchain, tmp_path, isas | ISAS)
    assert built.warnings == "" and built.num_objects > 20
    assert exported(built.library) == declared(checkout)


@pytest.mark.downloads
def test_the_metal_library_links_for_a_mac_without_a_warning(zig, checkout, load_script, tmp_path):
    build_metal = load_script("metal_shim/build/build_metal.py")
    text = build_metal.joined_source(checkout / "shaders")
    (tmp_path / "shader_source.h").write_text(build_metal.source_header(text))
    command = build_metal.shim_command(checkout, tmp_path, tmp_path / build_metal.LIBRARY)
    command = command[command.index("clang") + 1 :]
    for name in build_metal.FRAMEWORKS:
        at = command.index(name)
        del command[at - 1 : at + 1]
    stubs = [*metal_facts.MAC_FLAGS[metal_facts.MAC_FLAGS.index("-isystem") :], "-fblocks"]
    command = [*zig, "-target", f"{TARGET}.14.0", *stubs, "-Wl,-undefined,dynamic_lookup", *command]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert exported(tmp_path / build_metal.LIBRARY) == declared(checkout)


def test_the_shim_compiles_against_apples_own_headers(checkout, load_script, tmp_path):
    named = os.environ.get(HEADERS_VARIABLE)
    if not named:
        pytest.skip(f"{HEADERS_VARIABLE} names no folder of Apple's headers")
    if shutil.which(metal_facts.CLANG) is None:
        pytest.skip(f"no {metal_facts.CLANG}: apt-get install clang-19")
    folder = Path(named)
    build_metal = load_script("metal_shim/build/build_metal.py")
    (tmp_path / "shader_source.h").write_text(build_metal.source_header("kernel void k() {}\n"))
    where = ("-isystem", str(folder / "include"), "-iframework", str(folder / "Frameworks"))
    flags = ("-target", "arm64-apple-macos14.0", "-nostdlibinc", *where, "-Werror")
    ours = (tmp_path, checkout / "metal_shim", checkout / "shaders")
    flags = (*flags, *build_metal.OBJC_FLAGS, *(f"-I{path}" for path in ours))
    for source in build_metal.shim_sources(checkout):
        command = [metal_facts.CLANG, *flags, "-fsyntax-only", str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), source.name
