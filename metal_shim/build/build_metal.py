"""Builds libmarlin_metal.dylib and, where Xcode's `metal` compiler is, marlin.metallib. On a Mac.

Owns how the shaders become one source, how that source gets into the library, the two command
lines, and which SDK they need. build.py runs this file as a program on a Mac; off one, tests call
its functions:

    python3 metal_shim/build/build_metal.py [--output DIR]

The library compiles the source that it holds when no marlin.metallib lies beside it, so the
command-line tools are enough. With an SDK older than macOS 14's there is no Metal device: nothing
is built, one line says so, and the CPU device serves.
"""

import argparse
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# MSL 3.1 is macOS 14's: older SDKs do not declare it, older systems cannot load what these commands
# make.
OLDEST_MACOS = 14
MACOS_FLAG = f"-mmacosx-version-min={OLDEST_MACOS}.0"
LIBRARY, METALLIB = "libmarlin_metal.dylib", "marlin.metallib"
# Fast math may assume that no value is NaN or infinite: samplers and norms must see both.
METAL_FLAGS = ("-std=metal3.1", "-O2", "-fno-fast-math", MACOS_FLAG)
OBJC_FLAGS = (
    *("-std=gnu11", "-O2", "-fno-objc-arc", "-fvisibility=hidden", MACOS_FLAG),
    *("-Wall", "-Wextra", "-Wshadow", "-Wno-deprecated-declarations"),
)
# A command-line program gets no Metal device unless CoreGraphics is linked too.
FRAMEWORKS = ("Metal", "Foundation", "CoreGraphics")
BYTES_A_LINE = 24

_OWN_INCLUDE = re.compile(r'^#include "([^"]+)"$')


def _build_script():
    """build.py, by its path: an installed package may have the name `build`."""
    spec = importlib.util.spec_from_file_location(
        "metal_shim_build", Path(__file__).with_name("build.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_build = _build_script()
BuildError = _build.BuildError


def joined_source(shaders):
    """Every .metal file of a folder as one source, each header of ours where it is first included.

    Raises:
        BuildError: the folder holds no shaders, or one includes what is not there.
    """
    included = set()
    files = sorted(shaders.glob("*.metal"))
    if not files:
        raise BuildError(f"no shaders: {shaders} holds no *.metal")
    return "\n".join(line for path in files for line in _resolved(path, included)) + "\n"


def _resolved(path, included):
    lines = [f"// ---- {path.name} ----"]
    for line in path.read_text(encoding="utf-8").splitlines():
        match = _OWN_INCLUDE.match(line)
        if match is None:
            lines.append(line)
        elif match[1] not in included:
            included.add(match[1])
            header = path.parent / match[1]
            if not header.is_file():
                raise BuildError(f"{path.name} includes {match[1]}, which is not in {path.parent}")
            lines += _resolved(header, included)
    return lines


def source_header(text):
    """C header that holds a text as marlin_shader_source, which ends with a zero byte."""
    raw = [*text.encode(), 0]
    rows = [raw[i : i + BYTES_A_LINE] for i in range(0, len(raw), BYTES_A_LINE)]
    body = ",\n".join("    " + ",".join(map(str, row)) for row in rows)
    return f"static const unsigned char marlin_shader_source[] = {{\n{body}}};\n"


def shim_sources(root):
    """Every source of libmarlin_metal."""
    folder = root / "metal_shim"
    patterns = ("metal/*.m", "metal/*.c", "common/*.c")
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))]


def shim_command(root, generated, target, compile_flags=(), link_flags=()):
    """Compiles and links the library; `generated` is the folder of shader_source.h, the flags are
    what whoever builds wants beside ours."""
    includes = (f"-I{root / 'metal_shim'}", f"-I{root / 'shaders'}", f"-I{generated}")
    frameworks = [word for name in FRAMEWORKS for word in ("-framework", name)]
    sources = map(str, shim_sources(root))
    link = ("-dynamiclib", "-install_name", f"@rpath/{LIBRARY}", *frameworks)
    flags = [*OBJC_FLAGS, *compile_flags, *includes]
    return ["xcrun", "clang", *flags, *sources, *link, *link_flags, "-o", str(target)]


def library_command(source, target):
    """Compiles the joined source to a .metallib."""
    metal = ("xcrun", "-sdk", "macosx", "metal")
    return [*metal, *METAL_FLAGS, str(source), "-o", str(target)]


def sdk_version():
    """The macOS SDK's version, such as "15.2"; "" if xcrun does not tell."""
    try:
        asked = subprocess.run(
            ("xcrun", "--sdk", "macosx", "--show-sdk-version"), capture_output=True, text=True
        )
    except OSError:
        return ""
    return asked.stdout.strip()


def is_too_old(sdk):
    """Whether an SDK of this version lacks what the Metal device needs; not if it is unknown."""
    major = sdk.partition(".")[0]
    return major.isdigit() and int(major) < OLDEST_MACOS


def build(root, output, sdk, environ):
    """Make what has changed, and put it into `output`. Returns the paths there.

    Raises:
        BuildError: a compiler refused.
    """
    cache = root / "build" / "native" / "metal"
    cache.mkdir(parents=True, exist_ok=True)
    text = joined_source(root / "shaders")
    flags = _build.words_of(environ, "CPPFLAGS", "CFLAGS"), _build.words_of(environ, "LDFLAGS")
    headers = [*(root / "metal_shim").rglob("*.h"), *(root / "shaders").glob("*.h")]
    with _build.alone(cache):
        source = cache / "marlin.metal"
        source.write_text(text, encoding="utf-8")
        (cache / "shader_source.h").write_text(source_header(text))
        inputs = [*shim_sources(root), *sorted(headers), source]

        def command_for(target):
            return shim_command(root, cache, target, *flags)

        made = {LIBRARY: _make(cache / LIBRARY, command_for, inputs, sdk)}
        if _runs(("xcrun", "-sdk", "macosx", "metal", "--version")):
            command = partial(library_command, source)
            made[METALLIB] = _make(cache / METALLIB, command, [source], sdk)
        else:
            (output / METALLIB).unlink(missing_ok=True)  # what an older source gave
        return [_build.publish(path, output, name) for name, path in made.items()]


def _make(place, command_for, inputs, sdk):
    """What a command makes of these inputs, in the cache beside `place`; older ones are dropped."""
    command = command_for(place)
    tool = command[: command.index("clang" if "clang" in command else "metal") + 1]
    version = subprocess.run([*tool, "--version"], capture_output=True, text=True).stdout
    key = _build.digest(
        command, version, sdk, [path.read_text(encoding="utf-8") for path in inputs]
    )
    made = place.with_name(f"{place.name}.{key}")
    if not made.exists():
        _run(command_for, made)
    for path in place.parent.glob(f"{place.name}.*"):
        if path != made:
            path.unlink(missing_ok=True)
    return made


def _run(command_for, made):
    unfinished = made.with_name(f"{made.name}.{os.getpid()}.partial")
    command = command_for(unfinished)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        unfinished.unlink(missing_ok=True)
        raise BuildError(f"{shlex.join(command)}\n{done.stderr}")
    sys.stderr.write(done.stderr)
    unfinished.replace(made)


def _runs(command):
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def main(argv=None):
    parser = argparse.ArgumentParser(description="Build libmarlin_metal.", allow_abbrev=False)
    default = ROOT / "marlin" / "device"
    parser.add_argument("--output", type=Path, default=default, help="folder for what is built")
    options = parser.parse_args(argv)
    output, sdk = options.output.resolve(), sdk_version()
    if is_too_old(sdk):
        for name in (LIBRARY, METALLIB):  # what a newer SDK gave
            (output / name).unlink(missing_ok=True)
        print(
            f"build_metal.py: without the Metal device: it needs the SDK of macOS {OLDEST_MACOS} "
            f"(Xcode 15), and this is {sdk}'s",
            file=sys.stderr,
        )
        return 0
    try:
        built = build(ROOT, output, sdk, os.environ)
    except BuildError as error:
        print(f"build_metal.py: {error}", file=sys.stderr)
        return 1
    print("\n".join(map(str, built)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
