"""One .metal file, read: its kernels and constants, and its text for each backend.

Owns the registration that makes kernels visible to the CPU runtime and the entry points that make
them visible to CUDA. Compiling the text is check.py's, build.py's and cuda.py's business.
"""

import json
import re
from typing import NamedTuple

from msl import lexical
from msl.declarations import DeclarationReader
from msl.kernels import Kernel
from msl.source import SourceError, SourceText, preprocess

ARGUMENT_KINDS = {
    "buffer": "MSL_ARG_BUFFER",
    "threadgroup": "MSL_ARG_THREADGROUP",
    "builtin": "MSL_ARG_BUILTIN",
}
# CUDA declares these outside any namespace: a call must say that it means metal's.
MATH_NAMES = set(
    """abs acos acosh asin asinh atan atan2 atanh ceil clamp copysign cos cosh cospi exp exp10 exp2
    fabs fdim floor fma fmax fmin fmod frexp isfinite isinf isnan ldexp log log10 log2 max min modf
    nextafter pow powr rint round rsqrt signbit sin sinh sinpi sqrt tan tanh tanpi trunc""".split()
)
MAX_THREADS = 1024  # a threadgroup, on every Apple GPU; also CUDA's limit of a block


class EntryPoint(NamedTuple):
    """A kernel that a host can look up: `expression` names the function, or f<float> of f."""

    host_name: str
    expression: str
    kernel: Kernel
    token: object


def identifier(name):
    return re.sub(r"\W", "_", name)


class Unit:
    """Reads `path`; findings are in `diagnostics`.

    Raises:
        SourceError: the file cannot be preprocessed or its brackets do not pair.
    """

    def __init__(self, path, compiler, includes=(), defines=()):
        self.path = str(path)
        self.source = SourceText(preprocess(path, compiler, includes, defines))
        declarations = DeclarationReader(self.source)
        self.kernels = declarations.kernels
        self.constants = declarations.constants
        self._instantiations = declarations.instantiations
        self._duplicates = declarations.duplicates
        self._type_names = declarations.type_names
        lexical.check_tokens(self.source, declarations.type_names)
        if self.kernels and not self.source.includes_a_header():
            token = next(iter(self.kernels.values())).token
            message = "no <metal_stdlib> is included: Apple's compiler knows no half4 without it"
            self.source.report(token, message)
        self.entry_points = self._entry_points()

    @property
    def diagnostics(self):
        return self.source.diagnostics

    def _entry_points(self):
        plain = [kernel for kernel in self.kernels.values() if not kernel.is_template]
        found = [EntryPoint(k.name.split("::")[-1], k.name, k, k.token) for k in plain]
        for instantiation in self._instantiations:
            kernel = self.kernels.get(instantiation.kernel)
            if kernel is None:
                message = f"instantiation of an unknown kernel '{instantiation.kernel}'"
                self.source.report(instantiation.token, message)
                continue
            found.append(
                EntryPoint(
                    instantiation.host_name, instantiation.expression, kernel, instantiation.token
                )
            )
        names = set()
        for entry in found:
            if entry.host_name in names:
                message = f"two kernels have the host name '{entry.host_name}'"
                self.source.report(entry.token, message)
            names.add(entry.host_name)
        used = {entry.kernel.name for entry in found}
        for name in set(self.kernels) - used:
            message = f"kernel template '{name}' is never instantiated: its body is half checked"
            self.source.report(self.kernels[name].token, message, "style")
        return found

    def selected(self, only=None):
        """The entry points whose host name matches the regular expression `only`."""
        return [e for e in self.entry_points if not only or re.search(only, e.host_name)]

    def refuse_errors(self):
        """Raises SourceError if reading the file found errors."""
        errors = [str(found) for found in self.diagnostics if found.severity == "error"]
        if errors:
            raise SourceError("\n".join(errors))

    def check_text(self):
        """C++ for clang with address spaces."""
        lexical.construct_through_names(self.source, self._type_names)
        return '#include "msl.h"\n' + self.source.written()

    def cpu_text(self, only=None):
        """C++ for the CPU runtime, with the table that msl_library_open() reads."""
        self._erase_duplicates()
        return '#include "msl.h"\n' + self.source.written() + self._registration(only)

    def cuda_text(self, only=None):
        """CUDA C++; each kernel is `msl_NAME(const __grid_constant__ msl_launch)`."""
        self._erase_duplicates()
        self._respell_for_cuda()
        entries = [self._cuda_attributes(only)]
        entries += [self._cuda_entry(entry) for entry in self.selected(only)]
        return "".join(['#include "msl.h"\n', self.source.written(), *entries])

    def _erase_duplicates(self):
        for low, high in self._duplicates:
            self.source.erase(low, high)

    def _attribute_rows(self, kernel):
        rows = (
            f'{{{ARGUMENT_KINDS[a.kind]}, {a.index}, "{a.name}", {int(a.optional)}}}'
            for a in kernel.arguments
        )
        return ", ".join(rows) or "{}"

    def _attribute_tables(self, only):
        kernels = {entry.kernel.name: entry.kernel for entry in self.selected(only)}
        return "".join(
            f"static constexpr msl::attr at_{identifier(name)}[] = "
            f"{{{self._attribute_rows(kernel)}}};\n"
            for name, kernel in kernels.items()
        )

    def _registration(self, only):
        entries, constants = self.selected(only), self.constants
        rows = "".join(self._kernel_row(entry) for entry in entries)
        constant_rows = ", ".join(
            f'{{"{c.name}", (int)({c.index}), (void *)&{c.name}, sizeof({c.name}), '
            f"&msl_fcdef_{c.name}}}"
            for c in constants
        )
        return f"""
# 1 "<registration>"
namespace msl_reg {{
{self._attribute_tables(only)}
static const msl_kernel *kernel_at(int i) {{
    static const msl_kernel all[] = {{
{rows}        {{}}}};
    return &all[i];
}}
static const msl_fconst fconsts[] = {{{constant_rows or "{}"}}};
}}
extern "C" __attribute__((visibility("default"))) const msl_module msl_this_module = {{
    msl_reg::kernel_at, {len(entries)}, msl_reg::fconsts, {len(constants)}, MSL_RACES}};
"""

    def _kernel_row(self, entry):
        kernel = entry.kernel
        table = f"at_{identifier(kernel.name)}"
        bound = f"msl::bind<decltype(&{entry.expression}), &{entry.expression}, {table}>"
        threads = self._max_threads(entry)
        return (
            f'        {{{json.dumps(entry.host_name)}, "{kernel.name}", &{bound}::entry, '
            f"{bound}::table, {len(kernel.arguments)}, (int)({threads})}},\n"
        )

    @staticmethod
    def _max_threads(entry):
        """The attribute's expression, which may name the kernel's template parameters."""
        kernel, expression = entry.kernel, entry.expression
        threads = kernel.max_threads
        if not kernel.template_parameters or "<" not in expression:
            return threads
        arguments, depth, current = [], 0, ""
        for character in expression[expression.index("<") + 1 : expression.rindex(">")]:
            if character == "," and depth == 0:
                arguments.append(current)
                current = ""
                continue
            depth += (character in "<(") - (character in ">)")
            current += character
        for name, value in zip(kernel.template_parameters, [*arguments, current], strict=False):
            threads = re.sub(rf"\b{name}\b", f"({value})", threads)
        return threads

    def _respell_for_cuda(self):
        """Address spaces and `kernel` are words of CUDA's own or none at all: they go."""
        tokens = self.source.tokens
        for index, token in enumerate(tokens):
            if token.kind != "name" or token.out != token.text:
                continue
            if token.text in ("device", "threadgroup", "thread", "kernel"):
                token.out = ""
            elif token.text == "constant":
                token.out = "const"
            elif token.text in MATH_NAMES and self.source.text(index + 1) == "(":
                before = tokens[index - 1]
                declares = before.kind == "name" and before.text not in ("return", "else")
                if before.text not in ("::", ".", "->") and not declares:
                    token.out = "metal::" + token.text

    def _cuda_attributes(self, only):
        return f'\n# 1 "<entries>"\n{self._attribute_tables(only)}'

    def _cuda_entry(self, entry):
        kernel, expression = entry.kernel, entry.expression
        slots = []
        for place, argument in enumerate(kernel.arguments):
            if argument.kind == "buffer":
                index = argument.index
                address = f"MSL_CONSTANT_SLOT == {index} ? (void *)a.content : a.buffer[{index}]"
                slots.append(f"    p[{place}] = {address};\n")
            elif argument.kind == "threadgroup":
                offset = f"a.tg_offset[{argument.index}]"
                slots.append(f"    p[{place}] = (void *)(msl_dynamic + {offset});\n")
        limit = int(kernel.max_threads) if kernel.max_threads.isdigit() else 0
        table = f"at_{identifier(kernel.name)}"
        return f"""\
extern "C" __global__ void MSL_LAUNCH_BOUNDS({limit or MAX_THREADS})
msl_{identifier(entry.host_name)}(const __grid_constant__ msl_launch a) {{
    extern __shared__ __align__(16) char msl_dynamic[];
    (void)msl_dynamic;
    void *p[{max(1, len(kernel.arguments))}] = {{}};
{"".join(slots)}    msl::bind<decltype(&{expression}), &{expression}, {table}>::entry(p);
}}
"""
