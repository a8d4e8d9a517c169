"""Builds the Metal device for Linux: metal.m on GNUstep's Foundation, the simulated Metal of sim/,
and the shaders for the CPU runtime of msl/.

Owns the command lines and where everything goes: a cache folder, in folders keyed by content, so
that a second build is a look-up. Knows nothing of what the device does.
"""

import fcntl
import glob
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from msl import build as msl_build

from marlin.device.device import Device

CLANG = "clang-19"
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SIM = HERE / "sim"
PACKAGES = "clang-19 lld-19 llvm-19 libclang-rt-19-dev libgnustep-base-dev libobjc-12-dev " + (
    "libblocksruntime-dev"
)
GNUSTEP = Path("/usr/include/GNUstep/Foundation/Foundation.h")
# GCC's Objective-C runtime, which has no ARC; blocks from libBlocksRuntime.
OBJC_FLAGS = (
    *("-fobjc-runtime=gcc", "-fno-objc-arc", "-fblocks", "-fexceptions", "-fobjc-exceptions"),
    "-fconstant-string-class=NSConstantString",
)
FLAGS = ("-std=gnu11", "-g", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wshadow")
# GNUstep's own headers give these.
QUIET = ("-Wno-unknown-warning-option", "-Wno-objc-property-implementation")

# What -fsanitize= takes, to clang's name of the run time that a process preloads. "thread" watches
# the shim and the simulation alone: it cannot follow the stacks that kernels run on.
SANITIZERS = {"address,undefined": "asan", "thread": "tsan"}
SANITIZER_FLAGS = ("-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-shared-libsan")

# Bytes 4 and on of the constant at index 14 (MarlinCall) hold the words of bindings 0 to 11. One
# thread: a dispatch here is shorter than it takes a busy machine to wake another.
ENVIRONMENT = {"SIMMETAL_EXTENTS": "14:4:12", "MSL_THREADS": "1"}


class SimulationError(Exception):
    """A compiler refused; the text holds what it printed."""


@dataclass(frozen=True)
class Simulated:
    """What was built: the device's library, and a folder where it lies alone.

    Attributes:
        library: libmarlin_metal.so, with marlin.metallib beside it.
        home: what the device takes for the user's home: its pipelines are kept there.
    """

    library: Path
    home: Path

    @property
    def environment(self):
        """What a process needs that opens the library itself."""
        return {"HOME": str(self.home)} | {
            name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()
        }

    def open(self, home=None):
        """A Device of kind "metal" on this library."""
        for name, value in ENVIRONMENT.items():  # read at each dispatch
            os.environ.setdefault(name, value)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", str(home or self.home))
            return Device(kind="metal", library_path=self.library)


def gcc_folder():
    """Where GCC's Objective-C headers and library are, or None."""
    found = sorted(glob.glob("/usr/lib/gcc/x86_64-linux-gnu/*/include/objc/objc.h"))
    return Path(found[-1]).parents[2] if found else None


def unavailable():
    """Why this machine cannot build it; None if it can."""
    if reason := msl_build.unavailable():
        return reason
    if not GNUSTEP.exists() or gcc_folder() is None or shutil.which(CLANG) is None:
        return f"no GNUstep or GCC Objective-C: apt-get install {PACKAGES}"
    return None


def include_flags(generated):
    """Where metal.m and the simulation find their headers."""
    gcc = gcc_folder()
    ours = (SIM / "include", SIM, msl_build.RUNTIME_FOLDER, ROOT / "metal_shim", ROOT / "shaders")
    system = (Path("/usr/include/GNUstep"), gcc / "include")
    return [
        *(f"-I{path}" for path in (generated, *ours)),
        *(word for path in system for word in ("-isystem", str(path))),
    ]


def sanitizer_library(sanitize):
    """The run time that a process preloads; None: it is not installed."""
    return msl_build.sanitizer_library(SANITIZERS[sanitize])


def sanitizer_flags(sanitize):
    return [f"-fsanitize={sanitize}", *SANITIZER_FLAGS] if sanitize else []


def link_flags(runtime, sanitize=None):
    gcc = gcc_folder()
    return [
        *sanitizer_flags(sanitize),
        *(f"-L{runtime.parent}", f"-l:{runtime.name}", f"-Wl,-rpath,{runtime.parent}"),
        *(f"-L{gcc}", "-lgnustep-base", "-lobjc", "-lBlocksRuntime", "-pthread", "-ldl"),
    ]


def build(cache, build_metal, sanitize=None):
    """Build what has changed since the last time. Returns a Simulated.

    Of several processes at once one builds, and the others find it done.

    Args:
        cache: folder for everything built.
        build_metal: metal_shim/build/build_metal.py as a module.
        sanitize: one of SANITIZERS.

    Raises:
        SimulationError, msl.source.SourceError: a compiler refused.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(cache, build_metal, sanitize)


def _build(cache, build_metal, sanitize):
    text = build_metal.joined_source(ROOT / "shaders")
    bare = bare_library(cache, build_metal, text, sanitize)
    source, options = _keep(cache, "marlin.metal", text), {}
    if _kernels_sanitize(sanitize):  # optimized, they take a minute to compile
        options = {"sanitize": _kernels_sanitize(sanitize), "optimize": "0"}
    metallib = msl_build.library(source, cache, **options)
    folder = cache / f"device-{_digest(bare.parent.name, metallib.parent.name)}"
    if not folder.exists():
        partial = Path(tempfile.mkdtemp(dir=cache))
        shutil.copyfile(bare, partial / bare.name)
        shutil.copyfile(metallib, partial / "marlin.metallib")
        _rename(partial, folder)
    return Simulated(folder / bare.name, cache / "home")


def _kernels_sanitize(sanitize):
    return "address" if sanitize == "address,undefined" else None


def bare_library(cache, build_metal, text, sanitize=None):
    """libmarlin_metal.so with a shader source, alone: it compiles that when it is opened."""
    header = _keep(cache, "shader_source.h", build_metal.source_header(text))
    sources = [*build_metal.shim_sources(ROOT), *sorted(SIM.glob("*.m"))]
    headers = [*SIM.rglob("*.h"), *ROOT.glob("metal_shim/**/*.h"), *ROOT.glob("shaders/*.h")]
    headers = [*sorted(headers), header]
    objects = [compile_source(cache, p, headers, header.parent, sanitize) for p in sources]
    runtime = msl_build.runtime(cache, _kernels_sanitize(sanitize))
    return link(cache, objects, link_flags(runtime, sanitize))


def program(cache, source):
    """An Objective-C program that uses the simulated Metal itself."""
    headers = sorted(SIM.rglob("*.h"))
    sources = [source, *sorted(SIM.glob("*.m"))]
    objects = [compile_source(cache, path, headers, SIM) for path in sources]
    flags = link_flags(msl_build.runtime(cache))
    place = cache / f"program-{_digest(flags, [path.name for path in objects])}" / source.stem
    return _once(place, lambda out: [CLANG, *map(str, objects), *flags, "-o", out])


def compiler_command(cache):
    """SIMMETAL_COMPILER: what newLibraryWithSource runs."""
    return shlex.join([sys.executable, str(SIM / "compile_source.py"), str(cache)])


def caller(cache, source, library, sanitize):
    """A C program that uses a sanitized device through marlin.h alone."""
    folders = (library.parent, Path(sanitizer_library(sanitize)).parent)
    flags = [*FLAGS, *sanitizer_flags(sanitize), str(source), f"-l:{library.name}", "-pthread"]
    flags += [f"-I{ROOT / 'metal_shim'}", f"-I{ROOT / 'shaders'}", f"-L{library.parent}"]
    flags += [f"-Wl,-rpath,{folder}" for folder in folders]
    place = cache / f"program-{_digest(flags, source.read_text())}" / source.stem
    return _once(place, lambda out: [CLANG, *flags, "-o", out])


def compile_source(cache, source, headers, generated, sanitize=None):
    """The object of a C or Objective-C file."""
    flags = [*FLAGS, *QUIET, *(OBJC_FLAGS if source.suffix == ".m" else ())]
    flags += [*sanitizer_flags(sanitize), *include_flags(generated)]
    key = _digest(flags, source.read_text(), *(path.read_text() for path in headers))
    place = cache / "objects" / f"{source.stem}-{key}.o"
    return _once(place, lambda out: [CLANG, *flags, "-c", str(source), "-o", out])


def link(cache, objects, flags):
    """libmarlin_metal.so, alone in its folder."""
    place = cache / f"shim-{_digest(flags, [path.name for path in objects])}" / "libmarlin_metal.so"
    command = [CLANG, "-shared", "-Wl,-z,defs", *map(str, objects), *flags]
    return _once(place, lambda out: [*command, "-o", out])


def _keep(cache, name, text):
    """A file with a text, in a folder of its own."""
    place = cache / f"{Path(name).stem}-{_digest(text)}" / name
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(text)
        partial.replace(place)
    return place


def _digest(*parts):
    return hashlib.sha256(repr((CLANG, parts)).encode()).hexdigest()[:16]


def _once(place, command):
    if place.exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_suffix(f".{os.getpid()}.partial")
    done = subprocess.run(command(str(partial)), capture_output=True, text=True)
    if done.returncode != 0:
        partial.unlink(missing_ok=True)
        raise SimulationError(done.stderr)
    sys.stderr.write(done.stderr)
    partial.replace(place)
    return place


def _rename(partial, folder):
    try:
        partial.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(partial)
