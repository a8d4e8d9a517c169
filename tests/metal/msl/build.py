"""Builds the CPU runtime, and .metal files as libraries that it loads.

Everything is written under a cache folder that the caller names, in folders keyed by content: a
second build of the same source is a look-up, and two builds never write the same file.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from msl.source import INCLUDE_FOLDER, MSL_FOLDER, SourceError
from msl.unit import Unit

CLANG = "clang++-19"
RUNTIME_FOLDER = MSL_FOLDER / "runtime"
RUNTIME_NAME = "libmslrt.so"
# The runtime's context switch is written for this machine only.
MACHINES = ("x86_64", "AMD64")

# `kernel` lists, unused helpers and Metal's pragmas are no business of a C++ compiler's.
QUIET = [
    "-Wno-unknown-attributes",
    "-Wno-ignored-attributes",
    "-Wno-duplicate-decl-specifier",
    "-Wno-unused-parameter",
    "-Wno-unused-function",
    "-Wno-unused-const-variable",
    "-Wno-unknown-pragmas",
    "-Wno-instantiation-after-specialization",
    "-Wno-logical-op-parentheses",
]
# x86-64-v3 has half conversions; half arithmetic rounds after every operation, as on a GPU.
MACHINE_FLAGS = ["-march=x86-64-v3", "-Xclang", "-ffloat16-excess-precision=none"]
# Every load and store calls the runtime; clang reports none wider than 16 bytes, and no memcpy:
# none is made of a loop.
RACE_FLAGS = ["-DMSL_RACES=1", "-fno-vectorize", "-fno-slp-vectorize", "-fno-builtin-memcpy"]
RACE_FLAGS += ["-fsanitize-coverage=bb,no-prune,trace-loads,trace-stores"]


def compiler_missing():
    """Why this machine cannot check .metal files, None if it can."""
    if shutil.which(CLANG) is None:
        return f"no {CLANG}: apt-get install clang-19 libclang-rt-19-dev"
    return None


def unavailable():
    """Why this machine cannot run .metal files, None if it can."""
    if compiler_missing():
        return compiler_missing()
    if platform.system() != "Linux" or platform.machine() not in MACHINES:
        return f"the CPU runtime is for Linux on x86-64, not {platform.system()} {os.uname()[4]}"
    return None


def runtime(cache, sanitize=None):
    """The runtime library under `cache`, built if it is not there: its path.

    `sanitize` is what -fsanitize= takes, such as "address". A program that links the library
    (runtime/msl_rt.h) must use the same one, or it and a kernel library see different runtimes.
    """
    sources = sorted(RUNTIME_FOLDER.glob("*.cpp"))
    flags = ["-std=c++17", "-O2", "-g1", "-Wall", "-Wextra", "-fno-exceptions", "-fno-rtti"]
    flags += ["-fPIC", "-shared", "-pthread", f"-Wl,-soname,{RUNTIME_NAME}"]
    flags += [f"-I{RUNTIME_FOLDER}", f"-I{INCLUDE_FOLDER / 'msl'}"] + _sanitizer_flags(sanitize)
    headers = [INCLUDE_FOLDER / "msl" / name for name in ("args.h", "rt_abi.h")]
    read = [*sorted(RUNTIME_FOLDER.iterdir()), *headers]
    key = _key(flags, *(path.read_bytes() for path in read))
    place = Path(cache) / f"runtime-{key}" / RUNTIME_NAME
    return _once(place, lambda out: [CLANG, *flags, *map(str, sources), "-o", out, "-ldl"])


def library(
    path, cache, includes=(), defines=(), only=None, optimize="2", sanitize=None, races=False
):
    """A .metal file as a library for msl_library_open(), under `cache`: its path.

    Args:
        includes, defines: for the preprocessor; the repository's shaders/ is always searched.
        only: a regular expression; kernels whose host name it does not match are left out.
        optimize: clang's -O level.
        races: stop a dispatch at the first access that no barrier separates from another
            thread's; slow.

    Raises:
        SourceError: the source breaks a rule of Metal's, or does not compile.
    """
    linked = runtime(cache, sanitize)
    unit = Unit(path, CLANG, includes, defines)
    unit.refuse_errors()
    text = unit.cpu_text(only)
    flags = ["-std=c++17", "-O" + optimize, "-g1", "-fPIC", "-shared", "-nostdinc", "-nostdinc++"]
    flags += ["-fno-math-errno", "-ffp-contract=on", "-fno-strict-aliasing", "-fno-exceptions"]
    flags += ["-fvisibility=hidden", "-ferror-limit=40", "-fno-caret-diagnostics"]
    flags += [f"-I{INCLUDE_FOLDER / 'msl'}", *MACHINE_FLAGS, *QUIET, *_sanitizer_flags(sanitize)]
    flags += [f"-D{define}" for define in defines if define.startswith("MSL_")]
    flags += RACE_FLAGS if races else []
    links = [f"-L{linked.parent}", f"-l:{RUNTIME_NAME}", f"-Wl,-rpath,{linked.parent}", "-lm"]
    headers = sorted((INCLUDE_FOLDER / "msl").iterdir())
    key = _key(flags + links, text.encode(), *(header.read_bytes() for header in headers))
    place = Path(cache) / f"{Path(path).stem}-{key}" / f"{Path(path).stem}.so"
    place.parent.mkdir(parents=True, exist_ok=True)
    source = place.with_suffix(".cpp")
    if not place.exists():
        source.write_text(text)
    return _once(place, lambda out: [CLANG, *flags, str(source), "-o", out, *links])


def _sanitizer_flags(sanitize):
    if not sanitize:
        return []
    flags = [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    # The program that loads the library is not clang's: the run time is preloaded into it.
    return [*flags, "-shared-libsan"]


def _key(flags, *contents):
    """Names what a build depends on; the compiler's major version is in its name."""
    digest = hashlib.sha256("\0".join([CLANG, *flags]).encode())
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def _once(place, command):
    """Run command(output) unless `place` exists; another process may do the same meanwhile."""
    if place.exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=place.parent, suffix=".part")
    os.close(handle)
    result = subprocess.run(command(partial), capture_output=True, text=True)
    if result.returncode != 0:
        os.unlink(partial)
        raise SourceError(result.stderr or f"{place.name}: the compiler failed")
    os.replace(partial, place)
    return place


def sanitizer_library(name):
    """The shared run-time library of clang's sanitizer `name` ("asan"), to be preloaded; None if
    it is not installed."""
    for file in (f"libclang_rt.{name}-x86_64.so", f"libclang_rt.{name}.so"):
        command = [CLANG, f"-print-file-name={file}"]
        found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        if os.path.isabs(found) and os.path.exists(found):
            return found
    return None
