#!/usr/bin/env python3
"""mslc: check, build, reflect and translate unmodified .metal files on Linux.

mslc.py check FILE             what Apple's compiler would refuse, and this repository's own rules;
                               exit status 1 if anything is printed
mslc.py build FILE -o OUT.so   a library for the CPU runtime (runtime/msl_rt.h)
mslc.py runtime -o OUT.so      the runtime itself, for programs that link it
mslc.py reflect FILE           kernels, their arguments and the function constants, as JSON
mslc.py cuda FILE -o OUT.ptx   PTX through NVRTC; -D MSL_FC_0=1 sets function constant 0
"""

import argparse
import dataclasses
import json
import shutil
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from msl import build, check, cuda
from msl.source import SourceError
from msl.unit import Unit


def run_check(options):
    """Print what was found; 1 if any of it counts."""
    found = check.check(options.file, options.include, options.define)
    hidden = [] if options.warnings else ["warning"]
    shown = [diagnostic for diagnostic in found if diagnostic.severity not in hidden]
    for diagnostic in shown:
        print(diagnostic)
    counting = [d for d in shown if d.severity == "error" or not options.errors_only]
    return 1 if any(d.severity != "warning" for d in counting) else 0


def run_build(options):
    output = Path(options.output or Path(options.file).with_suffix(".so"))
    library = build.library(
        options.file,
        options.cache or output.parent,
        options.include,
        options.define,
        options.only,
        options.optimize,
        options.sanitize,
        options.races,
    )
    shutil.copyfile(library, output)
    return 0


def run_runtime(options):
    output = Path(options.output)
    built = build.runtime(options.cache or output.parent, options.sanitize)
    shutil.copyfile(built, output)
    return 0


def run_reflect(options):
    unit = Unit(options.file, build.CLANG, options.include, options.define)
    kernels = [
        {
            "name": entry.host_name,
            "function": entry.kernel.name,
            "max_threads": entry.kernel.max_threads,
            "arguments": [dataclasses.asdict(a) for a in entry.kernel.arguments],
        }
        for entry in unit.selected(options.only)
    ]
    constants = [constant._asdict() for constant in unit.constants]
    json.dump({"kernels": kernels, "function_constants": constants}, sys.stdout, indent=1)
    print()
    return 0


def run_cuda(options):
    translated = cuda.translate(options.file, options.include, options.define, options.only)
    output = Path(options.output or Path(options.file).with_suffix(".ptx"))
    Path(f"{output}.cu").write_text(translated.text)
    image = cuda.compile_text(translated.text, options.arch, translated.defines)
    output.write_bytes(image.ptx)
    Path(f"{output}.cubin").write_bytes(image.cubin)
    print(f"{len(translated.kernels)} kernels: PTX {len(image.ptx)} bytes")
    return 0


def arguments(argv=None):
    parser = argparse.ArgumentParser(prog="mslc", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    sourced = argparse.ArgumentParser(add_help=False)
    sourced.add_argument("file")
    sourced.add_argument("-I", dest="include", action="append", default=[], metavar="FOLDER")
    sourced.add_argument("-D", dest="define", action="append", default=[], metavar="NAME=VALUE")
    sourced.add_argument("--only", metavar="REGEX", help="kernels to take, by host name")
    built = argparse.ArgumentParser(add_help=False)
    built.add_argument("-o", dest="output", metavar="FILE")
    built.add_argument("--cache", metavar="FOLDER", help="intermediate files; default: beside -o")
    built.add_argument("--sanitize", metavar="LIST", help="for -fsanitize=")
    command = commands.add_parser("check", parents=[sourced])
    command.add_argument("-w", dest="warnings", action="store_true", help="print warnings too")
    command.add_argument(
        "--errors-only", action="store_true", help="style and unchecked findings do not count"
    )
    command.set_defaults(run=run_check)
    command = commands.add_parser("build", parents=[sourced, built])
    command.add_argument("-O", dest="optimize", default="2")
    command.add_argument("--races", action="store_true", help="stop at the first race; slow")
    command.set_defaults(run=run_build)
    command = commands.add_parser("runtime", parents=[built])
    command.set_defaults(run=run_runtime)
    command = commands.add_parser("reflect", parents=[sourced])
    command.set_defaults(run=run_reflect)
    command = commands.add_parser("cuda", parents=[sourced])
    command.add_argument("-o", dest="output", metavar="FILE")
    command.add_argument("--arch", default="sm_90")
    command.set_defaults(run=run_cuda)
    return parser.parse_args(argv)


def main(argv=None):
    options = arguments(argv)
    try:
        return options.run(options)
    except SourceError as error:
        print(str(error).rstrip(), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
