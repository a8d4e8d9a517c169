"""The strict check: what Apple's compiler would refuse, found without it.

Three looks at a file: the rules that reading it enforces (unit.py), clang with real address spaces
and builtin vectors (include/msl/check.h), and what only the compiled code shows: recursion, casts
between address spaces, bytes of threadgroup memory.
"""

import graphlib
import re
import subprocess
import tempfile
from pathlib import Path

from msl.build import CLANG, MACHINE_FLAGS, QUIET
from msl.source import INCLUDE_FOLDER, Diagnostic, SourceError
from msl.unit import Unit

MAX_THREADGROUP_BYTES = 32768
MESSAGE = re.compile(r"(.+?):(\d+):(?:\d+:)? (?:fatal )?(error|warning|note): (.*)")
CHECK_FLAGS = [
    "-std=c++14",
    "-DMSL_CHECK=1",
    "-nostdinc",
    "-nostdinc++",
    "-isystem",
    str(INCLUDE_FOLDER / "msl"),
    "-ferror-limit=0",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-caret-diagnostics",
    *MACHINE_FLAGS,
    "-Wall",
    "-Wextra",
    "-Wconversion",
    # Legal in Metal and common in kernels: integers narrowed on the way to a smaller index type.
    "-Wno-sign-conversion",
    "-Wno-implicit-int-conversion",
    "-Wno-implicit-int-float-conversion",
    "-Wno-shorten-64-to-32",
    "-Wno-undefined-internal",
    "-Wno-undefined-inline",
    "-Wno-unused-template",
    "-Wno-c++17-extensions",
    "-Wdouble-promotion",
    "-Werror=vla-cxx-extension",
    "-Werror=return-type",
    "-Werror=uninitialized",
    *QUIET,
]
# Apple's clang copies whole structs between address spaces; plain C++ has no such constructor.
STRUCT_COPY = re.compile(
    r"no matching constructor for initialization of|no viable overloaded '='|no viable conversion"
)
CAST_FROM_SPACE = re.compile(
    r"(no matching conversion for static_cast from|right hand operand to ->\* has .* type)"
    r" '[^']*__(global|local|constant)"
)
# Clang has no cast between its two 16-bit floating-point types; Metal has.
CAST_OF_16_BITS = re.compile(r"cast from .*(_Float16.* to .*__bf16|__bf16.* to .*_Float16)")
# Plain C++ has no members for an object in an address space.
MATRIX_IN_SPACE = re.compile(r"__(global|local|constant) [^']*matrix<")
TO_BFLOAT = re.compile(r"implicit conversion .* to '[^']*(bfloat|__bf16)")
TO_DOUBLE = re.compile(r"to .(const )?double'")
LOCATION = re.compile(r"<?(?:([^\s<>:,]+\.[\w+]+|<[^>]*>):(\d+):\d+|line:(\d+):\d+|col:\d+)")


def check(path, includes=(), defines=()):
    """Every Diagnostic of a file, in the order of its lines."""
    try:
        unit = Unit(path, CLANG, includes, defines)
    except SourceError as error:
        return _read_messages(str(error)) or [Diagnostic(str(path), 0, "error", str(error))]
    found = list(unit.diagnostics)
    flags = CHECK_FLAGS + [f"-D{define}" for define in defines if define.startswith("MSL_")]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "checked.cpp"
        source.write_text(unit.check_text())
        code, messages = _compile(flags, source)
        found += messages
        if code is not None:
            found += _look_at_code(unit, code)
            found += _look_at_casts(flags, source)
    return sorted(dict.fromkeys(found), key=lambda diagnostic: diagnostic[:2])


def _run(*command):
    return subprocess.run(command, capture_output=True, text=True)


def _read_messages(text):
    matches = (MESSAGE.match(line) for line in text.splitlines())
    return [Diagnostic(m[1], int(m[2]), m[3], m[4]) for m in matches if m and m[3] == "error"]


def _compile(flags, source):
    """LLVM's textual IR, None if clang refused the file, and its messages, judged."""
    to_ir = ["-S", "-emit-llvm", "-O0", "-Xclang", "-disable-llvm-passes"]
    result = _run(CLANG, *flags, *to_ir, str(source), "-o", "-")
    messages = []  # (match, its notes' matches)
    for line in result.stderr.splitlines():
        match = MESSAGE.match(line)
        if match and match[3] == "note" and messages:
            messages[-1][1].append(match)
        elif match and match[3] != "note":
            messages.append((match, []))
    judged = (_judge(match, notes) for match, notes in messages)
    code = result.stdout if result.returncode == 0 else None
    return code, [diagnostic for diagnostic in judged if diagnostic]


def _judge(match, notes):
    severity, message = match[3], match[4]
    implicit = any(re.search("implicit (copy|move)", note[4]) for note in notes)
    if STRUCT_COPY.search(message) and implicit:
        severity = "unchecked"
        message = f"struct copied across address spaces: not checked here ({message})"
    elif any(gap.search(message) for gap in (CAST_FROM_SPACE, CAST_OF_16_BITS, MATRIX_IN_SPACE)):
        severity = "unchecked"
    elif "-Wdouble-promotion" in message:
        if not TO_DOUBLE.search(message):
            return None  # half or bfloat to float: exact, and what Metal does
        severity = "error"
    elif TO_BFLOAT.search(message):
        severity = "error"  # never implicit in Metal
    place = next((m for m in (match, *notes) if not m[1].startswith(str(INCLUDE_FOLDER))), match)
    return Diagnostic(place[1], int(place[2]), severity, message)


def _look_at_code(unit, code):
    if cycle := recursion(code):
        path = " -> ".join(_demangled(name) for name in cycle)
        message = f"recursion is not supported in Metal: {path}"
        yield Diagnostic(unit.path, 0, "error", message)
    for function, size in threadgroup_bytes(code).items():
        if size > MAX_THREADGROUP_BYTES:
            kernel = _demangled(f"_Z{function}").partition("(")[0]
            message = f"{kernel}: {size} bytes of threadgroup memory"
            limit = f"the limit is {MAX_THREADGROUP_BYTES}"
            yield Diagnostic(unit.path, 0, "error", f"{message}, {limit}")


def _look_at_casts(flags, source):
    dump = ["-w", "-fsyntax-only", "-Xclang", "-ast-dump", "-fno-color-diagnostics"]
    for file, line, type_name in space_casts(_run(CLANG, *flags, *dump, str(source)).stdout):
        if not file.startswith(str(INCLUDE_FOLDER)):
            message = f"cast to {type_name} converts between mismatching address spaces"
            yield Diagnostic(file, line, "error", message)


def space_casts(tree):
    """(file, line, type) of every address-space conversion in clang's dump of the syntax tree.

    A location in the dump names only what differs from the one before it.
    """
    file, line = "", 0
    for text in tree.splitlines():
        head, first = text.split("'", 1)[0], None
        for match in LOCATION.finditer(head):
            if match[1]:
                file, line = match[1], int(match[2])
            elif match[3]:
                line = int(match[3])
            first = first or (file, line)
        if "<AddressSpaceConversion>" in text and "Cast" in head:
            yield *(first or (file, line)), re.search(r"'([^']*)'", text)[1]


def recursion(ir):
    """A cycle of the call graph of LLVM's textual IR, as mangled names from caller to callee; []
    when there is none."""
    calls, current = {}, None
    for line in ir.splitlines():
        start = re.match(r"define .*?@(\"?[\w.$]+\"?)\(", line)
        if start:
            current = calls.setdefault(start[1], [])
        elif line.startswith("}"):
            current = None
        elif current is not None:
            call = re.search(r"\b(?:call|invoke)\b.*?@(\"?[\w.$]+\"?)\(", line)
            if call:
                current.append(call[1])
    try:
        graphlib.TopologicalSorter(calls).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []


def _demangled(name):
    return _run("c++filt", "-p", name).stdout.strip() or name


def threadgroup_bytes(ir):
    """{mangled function: bytes of its threadgroup variables}, which check.h declares as static
    arrays msl_tg_NAME of char."""
    total = {}
    variable = re.compile(r"@_ZZ(\w+)E\d+msl_tg_\w+ = .*\[(\d+) x i8\]")
    for function, size in variable.findall(ir):
        total[function] = total.get(function, 0) + int(size)
    return total
