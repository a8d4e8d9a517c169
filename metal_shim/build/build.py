"""Builds libmarlin_cpu from common/ and cpu/, with the machine's own compiler; on a Mac also what
build_metal.py builds.

Owns the compiler, its flags, the table of instruction sets and the cache of objects. Knows nothing
of Python packaging (setuptools_commands.py runs this file as a program) and needs only the standard
library:

    python3 metal_shim/build/build.py [--output DIR] [--isa avx2,scalar]
        [--sanitize address,undefined] [--cc aarch64-linux-gnu-gcc --machine aarch64]

CC, CPPFLAGS, CFLAGS and LDFLAGS count as they do for make.

Every source is compiled once, except cpu/kernels_*.c: they are compiled once for each instruction
set in the table below, with -DMARLIN_ISA_<NAME>=1 -DMARLIN_ISA_SUFFIX=<name>. The other sources see
-DMARLIN_HAVE_<NAME>=1 for each set that the library holds, and choose among them at run time.
"""

import argparse
import fcntl
import filecmp
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Machine -> instruction set -> what the compiler needs to emit it. Best first. A set may use
# nothing that the processor check in cpu.c does not ask for.
ISA_FLAGS = {
    "x86_64": {
        "avx512": (
            *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"),
            *("-mavx2", "-mfma", "-mf16c", "-mprefer-vector-width=512"),
        ),
        "avx2": ("-mavx2", "-mfma", "-mf16c"),
        "scalar": (),
    },
    "aarch64": {
        "i8mm": ("-march=armv8.2-a+dotprod+i8mm",),
        "neon": ("-march=armv8.2-a+dotprod",),
        "scalar": (),
    },
}
OTHER_MACHINE_ISA_FLAGS = {"scalar": ()}
MACHINE_NAMES = {"amd64": "x86_64", "arm64": "aarch64"}

# What CFLAGS may change, since a later flag wins.
DEFAULT_C_FLAGS = ("-O3", "-Wall", "-Wextra", "-Wshadow")
# What it may not. The compiler may not fuse a multiply and an add on its own, so that the same
# source gives the same bits in every set; a kernel that wants an FMA says so with an intrinsic.
C_FLAGS = (
    *("-std=c11", "-fPIC", "-fvisibility=hidden", "-pthread"),
    *("-fno-fast-math", "-ffp-contract=off"),
)
# A later -O wins. -O1 keeps the sanitizers' reports readable.
SANITIZED_C_FLAGS = ("-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")
INCLUDE_FLAGS = ("-Imetal_shim", "-Ishaders")
# The oldest macOS on Apple Silicon; the wheel's tag promises the same.
MACOS_FLAGS = ("-mmacosx-version-min=11.0",)


# What a disk has left when it is why a compiler fails; all objects are some megabytes.
LITTLE_BYTES = 256 * 1024


class BuildError(Exception):
    """The library cannot be built; the text says what to do about it."""


@dataclass(frozen=True)
class Toolchain:
    """A compiler and what it compiles for.

    Attributes:
        command: the program and its fixed arguments.
        version: what it prints for --version; a new compiler makes new objects.
        machine: x86_64, aarch64 or whatever the system calls it.
        system: Linux, Darwin, ...
        compile_flags, link_flags: what whoever builds wants beside ours.
    """

    command: tuple
    version: str
    machine: str
    system: str
    compile_flags: tuple = ()
    link_flags: tuple = ()


@dataclass(frozen=True)
class Unit:
    """One source compiled with one set of flags; `name` is unique in a build."""

    name: str
    source: Path
    flags: tuple


@dataclass(frozen=True)
class Built:
    """What a build did: the library's path and how much work it took."""

    library: Path
    num_objects: int
    num_compiled: int
    warnings: str


def find_compiler(environ, system, which=shutil.which):
    """The C compiler's command: CC, else the usual names.

    Raises:
        BuildError: there is none; the text says how to get one.
    """
    if command := words_of(environ, "CC"):
        if not which(command[0]):
            raise BuildError(f"CC names {command[0]!r}, which is not a program on PATH")
        return command
    if system == "Darwin":
        if which("xcrun") and _runs(("xcrun", "--find", "clang")):
            return ("xcrun", "clang")
        raise BuildError("no C compiler found: get Apple's with `xcode-select --install`")
    for name in ("cc", "gcc", "clang"):
        if which(name):
            return (name,)
    raise BuildError(
        "no C compiler found (tried cc, gcc, clang): install one, for example with "
        "`sudo apt-get install gcc libc6-dev` or `sudo dnf install gcc`, or name yours in CC"
    )


def words_of(environ, *names):
    """The words of these variables as a shell splits them; raises BuildError where it could not."""
    words = []
    for name in names:
        try:
            words += shlex.split(environ.get(name, ""))
        except ValueError as why:
            raise BuildError(f"{name} is {environ[name]!r}, which no shell reads: {why}") from None
    return tuple(words)


def open_toolchain(command, machine, system, environ):
    """Ask the compiler for its version. Raises BuildError when it does not run."""
    flags = words_of(environ, "CPPFLAGS", "CFLAGS"), words_of(environ, "LDFLAGS")
    try:
        asked = subprocess.run([*command, "--version"], capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"the C compiler {shlex.join(command)} does not run: {error}") from error
    if asked.returncode != 0:
        said = (asked.stderr or asked.stdout).strip()
        raise BuildError(f"the C compiler {shlex.join(command)} does not run: {said}")
    return Toolchain(tuple(command), asked.stdout, machine, system, *flags)


def machine_name(name):
    """One spelling for each machine."""
    return MACHINE_NAMES.get(name.lower(), name.lower())


def choose_isas(machine, wanted=()):
    """Instruction sets to compile, as {name: flags}; `wanted` keeps those, empty keeps all."""
    known = ISA_FLAGS.get(machine, OTHER_MACHINE_ISA_FLAGS)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        names = ", ".join(known)
        raise BuildError(f"no instruction set {unknown[0]!r} on {machine}; it has {names}")
    return {name: flags for name, flags in known.items() if not wanted or name in wanted}


def plan_units(root, toolchain, isas, sanitizers=()):
    """Every object of the library, in link order.

    Raises:
        BuildError: the folders hold no sources.
    """
    flags = (*DEFAULT_C_FLAGS, *toolchain.compile_flags)
    flags = (*flags, *C_FLAGS, *INCLUDE_FLAGS, *_platform_flags(toolchain.system))
    if sanitizers:
        flags = (*flags, *SANITIZED_C_FLAGS, _sanitize_flag(sanitizers))
    have = tuple(f"-DMARLIN_HAVE_{name.upper()}=1" for name in isas)
    shim = root / "metal_shim"
    kernels = sorted(shim.glob("cpu/kernels_*.c"))
    plain = sorted({*shim.glob("common/*.c"), *shim.glob("cpu/*.c")} - set(kernels))
    if not plain:
        raise BuildError(f"no sources: {shim} holds no common/*.c and no cpu/*.c")
    units = [Unit(source.stem, source, (*flags, *have)) for source in plain]
    for name, isa_flags in isas.items():
        defines = (f"-DMARLIN_ISA_{name.upper()}=1", f"-DMARLIN_ISA_SUFFIX={name}")
        units += [
            Unit(f"{source.stem}.{name}", source, (*flags, *isa_flags, *defines))
            for source in kernels
        ]
    return units


def build(root, toolchain, output, isas, sanitizers=()):
    """Compile what changed, link, and put the library into `output`.

    The old library is replaced by renaming, so a process that has it mapped keeps running.

    Returns:
        A Built.

    Raises:
        BuildError: the compiler refused a file; the text holds all that it printed.
    """
    cache = root / "build" / "native" / _variant(toolchain, sanitizers)
    cache.mkdir(parents=True, exist_ok=True)
    units = plan_units(root, toolchain, isas, sanitizers)
    headers = _digest_files(sorted([*root.glob("metal_shim/**/*.h"), *root.glob("shaders/*.h")]))
    with alone(cache):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            job = partial(_compile, root, toolchain, cache, headers)
            compiled = list(pool.map(job, units))
        if failures := [said for _, status, said in compiled if status == "failed"]:
            why = f"{len(failures)} times, first here:\n\n" + "\n".join(failures[:3])
            if shutil.disk_usage(cache).free < LITTLE_BYTES:
                why = f"no space left in {cache}"
            raise BuildError(f"the C compiler failed: {why}")
        objects = [path for path, _, _ in compiled]
        linked = _link(root, toolchain, cache, objects, sanitizers)
        library = publish(linked, output, library_name(toolchain.system))
        _prune(cache, {*objects, linked})
    return Built(
        library=library,
        num_objects=len(objects),
        num_compiled=sum(status == "compiled" for _, status, _ in compiled),
        warnings="".join(said for _, _, said in compiled),
    )


@contextmanager
def alone(cache):
    """Let other builds in this folder wait: each drops what it does not know."""
    # Only to be read: with nothing left to build, a checkout need not be writable.
    lock = os.open(cache / "lock", os.O_RDONLY | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def library_name(system):
    return "libmarlin_cpu.dylib" if system == "Darwin" else "libmarlin_cpu.so"


def _compile(root, toolchain, cache, headers, unit):
    """(object's path, "cached" | "compiled" | "failed", what the compiler printed)."""
    text = unit.source.read_text(encoding="utf-8")
    key = digest(toolchain.command, toolchain.version, unit.flags, headers, text)
    target = cache / f"{unit.name}.{key}.o"
    if target.is_file():
        return target, "cached", ""
    command = [*toolchain.command, *unit.flags, "-c", str(unit.source.relative_to(root))]
    is_made, said = _make(root, command, target)
    return target, "compiled" if is_made else "failed", said


def _make(root, command, target, *more):
    """Have the compiler make `target`, in one step; returns (whether it did, what it printed)."""
    unfinished = target.with_suffix(f".{os.getpid()}.partial")
    command = [*command, "-o", str(unfinished), *more]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        unfinished.unlink(missing_ok=True)
        return False, f"{shlex.join(command)}\n{done.stderr}"
    if not unfinished.is_file():
        return False, f"{shlex.join(command)}\nends well, and makes no such file\n"
    unfinished.replace(target)
    return True, done.stderr


def _link(root, toolchain, cache, objects, sanitizers):
    flags = ["-shared", "-pthread", *toolchain.link_flags, *_platform_flags(toolchain.system)]
    if sanitizers:
        flags.append(_sanitize_flag(sanitizers))
    elif toolchain.system != "Darwin":
        # A symbol that nothing defines is an error here, not when the library is first loaded. A
        # sanitizer's own symbols come from the program that loads it.
        flags.append("-Wl,-z,defs")
    target = cache / f"libmarlin_cpu.{digest(toolchain.version, flags, [o.name for o in objects])}"
    if not target.is_file():
        command = [*toolchain.command, *flags, *map(str, objects)]
        is_made, said = _make(root, command, target, "-lm")
        if not is_made:
            raise BuildError(f"the linker failed:\n\n{said}")
    return target


def publish(linked, output, name):
    """Put a file of the cache into `output`, by renaming, unless it is there. Returns its path."""
    output.mkdir(parents=True, exist_ok=True)
    library = output / name
    if library.is_file() and filecmp.cmp(linked, library, shallow=False):
        return library
    unfinished = output / f".{name}.{os.getpid()}.partial"
    try:
        shutil.copyfile(linked, unfinished)
        unfinished.chmod(0o755)
        unfinished.replace(library)
    except OSError as error:
        raise BuildError(f"{library} cannot be written: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return library


def _prune(cache, kept):
    """Drop what an older version of a kept file left; partial files belong to another build."""
    names = {path.name.rsplit(".", 2)[0] for path in kept if path.suffix == ".o"}
    for path in cache.iterdir():
        stem = path.name.rsplit(".", 2)[0]
        stale_object = path.suffix == ".o" and stem in names
        stale_library = stem == "libmarlin_cpu" and path.suffix != ".partial"
        if path not in kept and (stale_object or stale_library):
            path.unlink(missing_ok=True)


def _variant(toolchain, sanitizers):
    compiler = digest(toolchain.command)[:8]
    return "-".join([toolchain.system.lower(), toolchain.machine, compiler, *sanitizers])


def _platform_flags(system):
    return MACOS_FLAGS if system == "Darwin" else ()


def _sanitize_flag(sanitizers):
    return f"-fsanitize={','.join(sanitizers)}"


def _digest_files(paths):
    return digest([(path.name, path.read_text(encoding="utf-8")) for path in paths])


def digest(*parts):
    """A short name for what a file was made from: anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _runs(command):
    return subprocess.run(command, capture_output=True).returncode == 0


def _parse(argv):
    parser = argparse.ArgumentParser(description="Build libmarlin_cpu.", allow_abbrev=False)
    names = {"type": lambda text: tuple(filter(None, text.split(","))), "default": ()}
    parser.add_argument("--output", type=Path, help="folder for the library (marlin/device)")
    parser.add_argument("--isa", **names, help="instruction sets to include (all)")
    parser.add_argument("--sanitize", **names, help="sanitizers, such as address,undefined")
    parser.add_argument("--cc", help="compiler (CC, else cc, gcc, clang; xcrun clang on a Mac)")
    parser.add_argument("--machine", help="what --cc compiles for (this machine)")
    options = parser.parse_args(argv)
    if options.output is None:
        if options.isa or options.sanitize or options.machine:
            parser.error("a library that is not the usual one needs --output")
        options.output = ROOT / "marlin" / "device"
    return options


def main(argv=None):
    options = _parse(argv)
    system = platform.system()
    try:
        command = shlex.split(options.cc) if options.cc else find_compiler(os.environ, system)
        machine = machine_name(options.machine or platform.machine())
        toolchain = open_toolchain(command, machine, system, os.environ)
        isas = choose_isas(machine, options.isa)
        built = build(ROOT, toolchain, options.output.resolve(), isas, options.sanitize)
    except BuildError as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"build.py: {error.filename or ROOT}: {error.strerror}", file=sys.stderr)
        return 1
    sys.stderr.write(built.warnings)
    if system == "Darwin" and not (options.isa or options.sanitize or options.machine):
        # Where the SDK is too old for Metal it builds nothing and says so: no failure.
        build_metal = [sys.executable, str(Path(__file__).with_name("build_metal.py"))]
        if subprocess.run([*build_metal, "--output", str(options.output)]).returncode != 0:
            return 1
    work = f"compiled {built.num_compiled} of {built.num_objects} objects"
    print(f"{built.library}: {work if built.num_compiled else 'up to date'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
