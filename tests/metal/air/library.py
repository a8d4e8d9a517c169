"""Builds kernels of a .metallib for the CPU runtime: what Apple's compiler made of them, in our
threads, simdgroups and matrices.

Owns the way from AIR to this machine: LLVM compiles it as it is, once the target is named and a
function is added that loads the arguments. Threadgroup variables become variables of the library,
so one threadgroup runs at a time (MSL_THREADS=1). builtins.cpp has the functions that AIR calls.
"""

import re
import subprocess
from pathlib import Path

from msl import build
from msl.kernels import BUILTINS
from msl.source import INCLUDE_FOLDER

from air.metallib import arguments_of

FOLDER = Path(__file__).parent
CLANG = "clang-19"
TARGET = "x86_64-unknown-linux-gnu"
LAYOUT = "e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-i128:128-f80:128-n8:16:32:64-S128"
FLAGS = ["-O2", "-w", "-march=x86-64-v3", "-fPIC"]
CONSTANT = re.compile(
    r'^(@("?)([\w.$]+)\.MTL_FC_INIT_(\d+)_\w+\2) = internal.*?constant (i\d+|float|half) undef.*$',
    re.M,
)
BYTES = {"i8": 1, "i16": 2, "half": 2, "i32": 4, "float": 4}
CONSTRUCTORS = re.compile(
    r"^@llvm\.global_ctors = appending global \[\d+ x [^\]]*\] \[(.*)\]$", re.M
)
MATRIX = "air.simdgroup_matrix_8x8_multiply_accumulate"
MULTIPLY = re.compile(
    rf"^declare <64 x float> @({MATRIX}\.[\w.]+)\(<64 x (\w+)>[^,]*, <64 x (\w+)>[^,]*, "
    r"<64 x float>[^)]*\).*$",
    re.M,
)


def library(metallib, names, cache):
    """The path of a library for simt.Library with these kernels, built anew under `cache`."""
    linked = build.runtime(cache)
    folder = Path(cache) / "air"
    folder.mkdir(parents=True, exist_ok=True)
    objects, rows, text = [], [], ['#include "builtins.cpp"\n']
    constants = []
    for number, name in enumerate(names):
        module, found = _module(metallib.ir(name), name, f"air_{number}")
        constants += [(*constant, f"constant_{number}_{i}") for i, constant in enumerate(found)]
        source, target = folder / f"{number}.ll", folder / f"{number}.o"
        source.write_text(module)
        _run([CLANG, *FLAGS, f"--target={TARGET}", "-c", str(source), "-o", str(target)])
        objects.append(str(target))
        text.append(_entry(arguments_of(metallib.ir(name)), f"air_{number}"))
        count = len(arguments_of(metallib.ir(name)))
        rows.append(f'{{"{name}", "{name}", air_{number}_entry, air_{number}_args, {count}, 0}}')
    text.append(_tables(rows, constants))
    (folder / "kernels.cpp").write_text("".join(text))
    out = folder / "kernels.so"
    includes = ["-nostdinc", "-nostdinc++", f"-I{INCLUDE_FOLDER / 'msl'}", f"-I{FOLDER}"]
    links = [f"-L{linked.parent}", f"-l:{linked.name}", f"-Wl,-rpath,{linked.parent}", "-lm"]
    command = [build.CLANG, "-std=c++17", *FLAGS, "-shared", "-Wl,-z,defs", *includes]
    _run([*command, str(folder / "kernels.cpp"), *objects, "-o", str(out), *links])
    return out


def _run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]


def _module(ir, name, entry):
    """(the module for this machine with a function `entry` that takes an array of pointers,
    [(name, index, symbol, bytes)] of its function constants)."""
    ir = re.sub(r"^target triple.*$", f'target triple = "{TARGET}"', ir, flags=re.M)
    ir = re.sub(r"^target datalayout.*$", f'target datalayout = "{LAYOUT}"', ir, flags=re.M)
    listed = CONSTRUCTORS.search(ir)
    constructors = re.findall(r"ptr (@[\w.$]+)", listed[1]) if listed else []
    ir = CONSTRUCTORS.sub("", ir)
    constants = []
    for found in CONSTANT.finditer(ir):
        ir = ir.replace(found[0], f"{found[1]} = addrspace(2) global {found[5]} 0")
        own = re.sub(r"^_Z\d+", "", found[3])
        constants.append((own, int(found[4]), found[1].strip('@"'), BYTES[found[5]]))
    ir = MULTIPLY.sub(lambda found: _multiply(*found.groups()), ir)
    if MATRIX in ir:
        ir += "\ndeclare void @air_multiply_add(ptr, ptr, ptr, ptr)\n"
    return ir + _loader(ir, name, entry, constructors), constants


def _multiply(name, left, right):
    """The definition of a product of matrices, by the first two elements of each."""
    lines = [
        f"define internal <64 x float> @{name}"
        f"(<64 x {left}> %a, <64 x {right}> %b, <64 x float> %c) {{"
    ]
    lines += [f"  %{m}p = alloca [2 x float]" for m in "abcd"]
    for matrix, kind in (("a", left), ("b", right), ("c", "float")):
        for i in range(2):
            one = f"%{matrix}{i}"
            lines.append(f"  {one} = extractelement <64 x {kind}> %{matrix}, i32 {i}")
            if kind != "float":
                lines.append(f"  {one}w = fpext {kind} {one} to float")
                one += "w"
            lines.append(f"  {one}q = getelementptr float, ptr %{matrix}p, i64 {i}")
            lines.append(f"  store float {one}, ptr {one}q")
    lines.append("  call void @air_multiply_add(ptr %ap, ptr %bp, ptr %cp, ptr %dp)")
    lines += ["  %d0 = load float, ptr %dp", "  %dq = getelementptr float, ptr %dp, i64 1"]
    lines += ["  %d1 = load float, ptr %dq"]
    lines += ["  %one = insertelement <64 x float> %c, float %d0, i32 0"]
    lines += ["  %two = insertelement <64 x float> %one, float %d1, i32 1"]
    return "\n".join([*lines, "  ret <64 x float> %two", "}"])


def _loader(ir, name, entry, constructors):
    """A function that loads a kernel's arguments from an array of pointers and calls it."""
    head = re.search(rf'^define [^@]*@"?{re.escape(name)}"?\((.*)\) .*\{{$', ir, re.M)[1]
    kind = re.compile(r"(ptr(?: addrspace\(\d\))?|<\d+ x i\d+>|i\d+)")
    parts = re.split(r", (?=ptr|i\d|<\d)", head) if head.strip() else []
    lines = [f"  call void {constructor}()" for constructor in constructors]
    given = []
    for i, part in enumerate(parts):
        type_name = kind.match(part.strip())[1]
        lines.append(f"  %s{i} = getelementptr ptr, ptr %args, i64 {i}")
        lines.append(f"  %p{i} = load ptr, ptr %s{i}")
        if "addrspace" in type_name:
            lines.append(f"  %v{i} = addrspacecast ptr %p{i} to {type_name}")
        elif type_name == "ptr":
            lines.append(f"  %v{i} = bitcast ptr %p{i} to ptr")
        else:
            lines.append(f"  %v{i} = load {type_name}, ptr %p{i}, align 4")
        given.append(f"{type_name} %v{i}")
    lines += [f'  call void @"{name}"({", ".join(given)})', "  ret void"]
    body = "\n".join(lines)
    return f"\ndefine void @{entry}(ptr %args) {{\n{body}\n}}\n"


def _entry(arguments, entry):
    """C++ that runs one thread of a kernel, and the table of its arguments."""
    rows, lines = [], []
    for i, argument in enumerate(arguments):
        if argument.kind != "builtin":
            kind = "MSL_ARG_BUFFER" if argument.kind == "buffer" else "MSL_ARG_THREADGROUP"
            sizes = f"{argument.size}, 1, 0, {int(argument.is_read)}, 1"
            rows.append(f'{{{kind}, {argument.index}, "{argument.name}", {sizes}}}')
            lines.append(f"    p[{i}] = args[{i}];")
            continue
        number = BUILTINS.index(argument.index)
        rows.append(f'{{MSL_ARG_BUILTIN, {number}, "{argument.name}", 4, 4, 0, 1, 0}}')
        word = "ushort" if argument.type.startswith("ushort") else "uint"
        lines.append(f"    {word} b{i}[4];")
        lines.append(f"    {{ unsigned v[4] = {{0}}; msl_builtin({number}, v);")
        lines.append(f"      for (int j = 0; j < 4; ++j) b{i}[j] = v[j]; }}")
        lines.append(f"    p[{i}] = b{i};")
    body = "\n".join(lines)
    return f"""extern "C" void {entry}(void **);
static const msl_arg {entry}_args[] = {{{", ".join(rows)}}};
static void {entry}_entry(void *const *args)
{{
    void *p[{len(arguments)}];
{body}
    {entry}(p);
}}
"""


def _tables(rows, constants):
    """C++ of the module that the runtime looks for."""
    declared = "".join(
        f'extern "C" unsigned char {own}[] __asm__("{symbol}");\n'
        f"static unsigned char {own}_defined;\n"
        for _, _, symbol, _, own in constants
    )
    listed = [
        f'{{"{name}", {index}, (void *){own}, {size}, &{own}_defined}}'
        for name, index, _, size, own in constants
    ]
    return f"""{declared}
static const msl_kernel *kernel_at(int i)
{{
    static const msl_kernel all[] = {{{", ".join(rows)}}};
    return &all[i];
}}
static const msl_fconst constants[] = {{{", ".join(listed) or "{}"}}};
extern "C" __attribute__((visibility("default"))) const msl_module msl_this_module = {{
    kernel_at, {len(rows)}, constants, {len(listed)}, 0}};
"""
