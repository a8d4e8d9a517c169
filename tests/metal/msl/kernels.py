"""A kernel's signature: its arguments, and Metal's rules for what may be one.

Owns the built-in values that a kernel may ask for and the table of arguments that the runtime and
the CUDA entry points are generated from. Knows nothing of function bodies.
"""

import ast
import operator
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from msl.source import ADDRESS_SPACES

# In the order of the MSL_* enumerators in include/msl/args.h; those up to
# threads_per_grid and the last three have a value for each axis.
BUILTINS = (
    "thread_position_in_grid",
    "threadgroup_position_in_grid",
    "thread_position_in_threadgroup",
    "threads_per_threadgroup",
    "threadgroups_per_grid",
    "threads_per_grid",
    "thread_index_in_threadgroup",
    "thread_index_in_simdgroup",
    "simdgroup_index_in_threadgroup",
    "simdgroups_per_threadgroup",
    "threads_per_simdgroup",
    "dispatch_threads_per_threadgroup",
    "thread_index_in_quadgroup",
    "quadgroup_index_in_threadgroup",
    "grid_size",
    "grid_origin",
)
# All of these in one signature must have the same number of components (MSL 3.1, table 5.8).
SAME_COMPONENTS = {*BUILTINS[:6], "dispatch_threads_per_threadgroup"}
BUILTINS_WITH_AXES = {*SAME_COMPONENTS, "grid_size", "grid_origin"}
BUILTIN_TYPE = re.compile(
    r"(?:const )?(?:metal::)?(uint|ushort|ulong|int|short|uint32_t|uint16_t)([23]?)"
)
SIGNED_OR_WIDE = ("int", "short", "ulong")
# Metal has 31 buffer slots a function.
LAST_BUFFER_INDEX = 30
ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


@dataclass
class Argument:
    """One kernel parameter. `kind` is buffer, threadgroup or builtin; `index` is its slot or its
    place in BUILTINS; `optional` says that a function constant may leave it out."""

    name: str
    kind: str
    index: int
    type: str
    space: str | None = None
    is_const: bool = False
    optional: bool = False


@dataclass
class Kernel:
    """One kernel function (or template of one). `max_threads` is the attribute's expression."""

    name: str
    token: object
    is_template: bool
    template_parameters: list
    max_threads: str
    arguments: list = field(default_factory=list)


class Parameter(NamedTuple):
    """A parameter as written: `words` are the tokens' texts before its attributes."""

    low: int
    name: str
    type: str
    words: list
    attributes: list

    def space(self):
        return next((word for word in self.words if word in ADDRESS_SPACES), None)

    def is_indirect(self):
        return "*" in self.words or "&" in self.words

    def is_const(self):
        return "const" in self.words or self.space() == "constant"


def integer(expression):
    """The value of an integer expression such as `3` or `BASE + 2` with its macros resolved.

    Raises:
        ValueError: it is anything else.
    """
    plain = re.sub(r"\b(0[xX][0-9a-fA-F]+|\d+)[uUlL]*\b", r"\1", expression)
    try:
        return _integer(ast.parse(plain, mode="eval").body)
    except SyntaxError as error:
        raise ValueError(expression) from error


def _integer(node):
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        return ARITHMETIC[type(node.op)](_integer(node.left), _integer(node.right))
    raise ValueError(ast.dump(node))


class KernelReader:
    """Reads one kernel's parameters; findings go to the source's diagnostics."""

    def __init__(self, source, kernel):
        self.source, self.kernel = source, kernel
        self.slots_used = set()
        self.components = {}  # "", "2" or "3": the first grid-like builtin written so

    def read(self, paren):
        """Fill the kernel's arguments from the parameter list whose `(` is at `paren`."""
        for low, high in self.source.split_at_commas(paren + 1, self.source.partner[paren]):
            parameter = self._parameter(low, high)
            argument = self._argument(parameter)
            if argument is not None:
                self.kernel.arguments.append(argument)
        if len(self.components) > 1:
            (first, _), (second, token) = list(self.components.values())[:2]
            message = f"'{first}' and '{second}' must have the same number of components"
            self.source.report(token, message)

    def _parameter(self, low, high):
        source = self.source
        attributes = source.attributes(low, high)
        stop = next((k for k in range(low, high) if source.is_attribute(k)), high)
        words = [token.text for token in source.tokens[low:stop]]
        if "[" in words and "*" not in words and "&" not in words:  # T x[2] is a pointer
            bracket = low + words.index("[")
            name = source.text(bracket - 1)
            source.tokens[bracket - 1].out = "*" + name
            source.erase(bracket, source.partner[bracket] + 1)
            type_name = source.joined(low, bracket - 1) + "*"
            return Parameter(low, name, type_name, words[: bracket - low - 1] + ["*"], attributes)
        named = [k for k in range(low, stop) if source.tokens[k].kind == "name"]
        name = source.text(named[-1]) if named else "?"
        end = stop - 1 if words and words[-1] == name else stop
        return Parameter(low, name, source.joined(low, end), words, attributes)

    def _argument(self, parameter):
        report, token = self.source.report, self.source.tokens[parameter.low]
        if parameter.is_indirect() and parameter.space() is None:
            what = "pointer or reference type must have explicit address space qualifier"
            report(token, f"kernel parameter '{parameter.name}': {what}")
        kinds = ("buffer", "threadgroup", *BUILTINS)
        kind = next((a for a in parameter.attributes if a.name in kinds), None)
        if kind is None:
            return self._unnumbered(parameter, token)
        if kind.name in BUILTINS:
            return self._builtin(parameter, kind, token)
        return self._slot(parameter, kind, token)

    def _unnumbered(self, parameter, token):
        name = parameter.name
        if not parameter.is_indirect():
            message = "invalid type for input declaration in a kernel function"
            self.source.report(token, f"{message}: '{name}' has no attribute")
            return None
        # Apple's compiler numbers it; a reader should not have to.
        message = f"kernel parameter '{name}' has no attribute such as [[buffer(n)]]"
        self.source.report(token, message, "style")
        kind = "threadgroup" if parameter.space() == "threadgroup" else "buffer"
        index = max([index for used, index in self.slots_used if used == kind], default=-1) + 1
        self.slots_used.add((kind, index))
        return self._made(parameter, kind, index)

    def _builtin(self, parameter, kind, token):
        report, written = self.source.report, parameter.type
        if parameter.is_indirect():
            report(token, f"'{kind.name}' cannot be a pointer or reference")
        match = BUILTIN_TYPE.fullmatch(written)
        if not match:
            allowed = "uint, uint2, uint3, ushort, ushort2 or ushort3"
            report(token, f"'{kind.name}' must be of type {allowed}, not '{written}'")
        else:
            if match[1] in SIGNED_OR_WIDE:
                message = f"'{kind.name}' must be unsigned 16 or 32 bit, not '{written}'"
                report(token, message)
            if match[2] and kind.name not in BUILTINS_WITH_AXES:
                report(token, f"'{kind.name}' is a scalar, not '{written}'")
            if kind.name in SAME_COMPONENTS:
                self.components.setdefault(match[2], (kind.name, token))
        index = BUILTINS.index(kind.name)
        return Argument(parameter.name, "builtin", index, written)

    def _slot(self, parameter, kind, token):
        report = self.source.report
        written = self.source.joined(*kind.arguments) if kind.arguments else ""
        try:
            index = integer(written)
        except ValueError:
            report(kind.token, f"cannot evaluate index '{written}'")
            index = -1
        if kind.name == "buffer":
            self._check_buffer(parameter, kind, index, token)
        elif parameter.space() != "threadgroup" or not parameter.is_indirect():
            what = f"[[threadgroup]] parameter '{parameter.name}'"
            report(token, f"{what} must be a pointer into the threadgroup address space")
        optional = any(a.name == "function_constant" for a in parameter.attributes)
        if (kind.name, index) in self.slots_used and not optional:
            report(kind.token, f"{kind.name} index {index} is used more than once")
        self.slots_used.add((kind.name, index))
        return self._made(parameter, kind.name, index, optional)

    def _check_buffer(self, parameter, kind, index, token):
        report, what = self.source.report, f"[[buffer]] parameter '{parameter.name}'"
        if index > LAST_BUFFER_INDEX:
            message = "buffer index is out of bounds: must be between 0 and"
            report(kind.token, f"{message} {LAST_BUFFER_INDEX}")
        if not parameter.is_indirect():
            report(token, f"{what} must be a pointer or a reference")
        elif parameter.space() not in ("device", "constant"):
            report(token, f"{what} must be in the device or constant address space")

    @staticmethod
    def _made(parameter, kind, index, optional=False):
        space, is_const = parameter.space(), parameter.is_const()
        return Argument(parameter.name, kind, index, parameter.type, space, is_const, optional)
