"""Builds libmarlin_metal.dylib and, where Xcode's `metal` compiler is, marlin.metallib. On a Mac.

Owns how the shaders become one source, how that source gets into the library, and the two command
lines. build.py runs this file as a program on a Mac; off one, tests call its functions:

    python3 metal_shim/build_metal.py [--output DIR]

The library compiles the source that it holds when no marlin.metallib lies beside it, so the
command-line tools are enough.
"""

import argparse
import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# MSL 3.1 is macOS 14's; older systems cannot load what these commands make.
MACOS_FLAG = "-mmacosx-version-min=14.0"
# These are the CPU device's too.
SHARED_SOURCES = ("buffers.c", "kernel_checks.c", "records.c")
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


class BuildError(Exception):
    """A compiler refused; the text holds the command and all that it printed."""


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
    for line in path.read_text().splitlines():
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
    own = sorted(folder.glob("metal_*.c"))
    return [folder / "metal.m", *own, *(folder / name for name in SHARED_SOURCES)]


def shim_command(root, generated, target):
    """Compiles and links the library; `generated` is the folder of shader_source.h."""
    includes = (f"-I{root / 'metal_shim'}", f"-I{root / 'shaders'}", f"-I{generated}")
    frameworks = [word for name in FRAMEWORKS for word in ("-framework", name)]
    sources = map(str, shim_sources(root))
    link = ("-dynamiclib", "-install_name", "@rpath/libmarlin_metal.dylib", *frameworks)
    return ["xcrun", "clang", *OBJC_FLAGS, *includes, *sources, *link, "-o", str(target)]


def library_command(source, target):
    """Compiles the joined source to a .metallib."""
    metal = ("xcrun", "-sdk", "macosx", "metal")
    return [*metal, *METAL_FLAGS, str(source), "-o", str(target)]


def build(root, output):
    """Make what has changed, and put it into `output`. Returns the paths there.

    Raises:
        BuildError: a compiler refused.
    """
    cache = root / "build" / "native" / "metal"
    cache.mkdir(parents=True, exist_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    source = cache / "marlin.metal"
    text = joined_source(root / "shaders")
    source.write_text(text)
    (cache / "shader_source.h").write_text(source_header(text))
    headers = [*(root / "metal_shim").glob("*.h"), *(root / "shaders").glob("*.h")]
    library = output / "libmarlin_metal.dylib"
    inputs = [*shim_sources(root), *sorted(headers), source]
    _make(lambda target: shim_command(root, cache, target), library, inputs, cache)
    metallib = output / "marlin.metallib"
    if not _runs(("xcrun", "-sdk", "macosx", "metal", "--version")):
        metallib.unlink(missing_ok=True)  # what an older source gave
        return [library]
    _make(lambda target: library_command(source, target), metallib, [source], cache)
    return [library, metallib]


def _make(command_for, target, inputs, cache):
    """Run a command unless it gave `target` from the same inputs; replace the file by renaming."""
    unfinished = cache / f"{target.name}.partial"
    command = command_for(unfinished)
    tool = command[: command.index("clang" if "clang" in command else "metal") + 1]
    version = subprocess.run([*tool, "--version"], capture_output=True, text=True).stdout
    parts = [command, version, *(path.read_text() for path in inputs)]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    note = cache / f"{target.name}.key"
    if target.exists() and note.exists() and note.read_text() == key:
        return
    done = subprocess.run(command, capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(command)}\n{done.stderr}")
    shutil.move(unfinished, target.with_name(f".{target.name}.partial"))
    target.with_name(f".{target.name}.partial").replace(target)
    note.write_text(key)


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
    try:
        built = build(ROOT, options.output.resolve())
    except BuildError as error:
        print(f"build_metal.py: {error}", file=sys.stderr)
        return 1
    print("\n".join(map(str, built)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
