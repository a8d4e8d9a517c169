"""What a translation unit declares: kernels, their instantiations, function constants, and the
overloads that differ in address space only.

Owns the walk over namespaces and declarations; signatures are kernels.py's business, statements
bodies.py's.
"""

import json
from dataclasses import dataclass
from typing import NamedTuple

from msl import bodies
from msl.kernels import Kernel, KernelReader
from msl.source import ADDRESS_SPACES, SourceError

CLASS_WORDS = ("struct", "class", "union", "enum")
SAME_BODY = "overloads that differ in address space only have different bodies"


class Instantiation(NamedTuple):
    """`template [[host_name("f32")]] kernel void f<float>(...)`: expression f<float> of f."""

    host_name: str
    expression: str
    kernel: str
    token: object


class FunctionConstant(NamedTuple):
    name: str
    index: str
    type: str


@dataclass
class Declaration:
    """Token indices of one declaration: `head` follows template<...>, `end` is its `;` or the `{`
    of its body, `paren` opens the parameters, `operator` is the keyword, `equals` the first `=`."""

    start: int
    head: int
    is_template: bool
    is_instantiation: bool
    end: int = 0
    paren: int | None = None
    equals: int | None = None
    operator: int | None = None
    is_class: bool = False

    def is_function(self):
        if self.paren is None:
            return False
        return self.equals is None or self.paren < self.equals


class DeclarationReader:
    """Reads a SourceText once, from its first token to its last."""

    def __init__(self, source):
        self.source = source
        self.kernels = {}  # qualified name: Kernel
        self.instantiations = []
        self.constants = []
        # Names that stand for a type: `typename T`, `typedef ... T`, `using T =`.
        self.type_names = set()
        # Token ranges that a build without address spaces leaves out: C++ would see them twice.
        self.duplicates = []
        self._seen = {}  # (namespaces, head without address spaces): body without them
        self._walk(0, len(source), ())

    def _walk(self, index, end, namespaces):
        source = self.source
        while index < end:
            text, following = source.text(index), source.text(index + 1)
            if text == ";":
                index += 1
            elif text == "namespace" or (text == "inline" and following == "namespace"):
                index = self._namespace(index, namespaces)
            elif text == "extern" and source.text(index + 2) == "{":
                self._walk(index + 3, source.partner[index + 2], namespaces)
                index = source.partner[index + 2] + 1
            else:
                index = self._declaration(index, end, namespaces)

    def _namespace(self, index, namespaces):
        source, brace = self.source, index
        while source.text(brace) not in ("{", ";", "=", ""):
            brace += 1
        if source.text(brace) == "{":
            name = source.text(brace - 1)
            inner = namespaces if name == "namespace" else (*namespaces, name)
            self._walk(brace + 1, source.partner[brace], inner)
            return source.partner[brace] + 1
        while source.text(brace) not in (";", ""):
            brace += 1
        return brace + 1

    def _declaration(self, index, end, namespaces):
        declaration = self._read(index, end)
        if declaration.end >= end:
            return end
        after = declaration.end
        if self.source.text(declaration.end) == "{":
            after = self.source.partner[declaration.end]
        self._classify(declaration, namespaces)
        return after + 1

    def _read(self, start, end):
        source, head, is_template, is_instantiation = self.source, start, False, False
        if source.text(start) == "#":
            token = source.tokens[start]
            raise SourceError(f"{token.file}:{token.line}: error: expected a declaration")
        while source.text(head) == "template" and source.text(head + 1) == "<":
            close = source.angle_end(head + 1)
            if close is None:
                token = source.tokens[head]
                raise SourceError(f"{token.file}:{token.line}: error: expected '>'")
            is_template, head = True, close + 1
        if source.text(head) == "template":
            is_instantiation, head = True, head + 1
        declaration = Declaration(start, head, is_template, is_instantiation)
        declaration.end = self._end(declaration, end)
        return declaration

    def _end(self, declaration, end):
        """Walk to the `;` or the body's `{`, noting what lies on the way."""
        source, index = self.source, declaration.head
        while index < end:
            text, following = source.text(index), source.text(index + 1)
            if text in ("__attribute__", "alignas", "decltype") and following == "(":
                index = source.partner[index + 1] + 1
            elif text == "operator":
                index = self._operator(declaration, index)
            elif text == ";" or (text == "{" and not self._is_initializer(declaration)):
                return index
            elif text in ("(", "[", "{"):
                if text == "(" and declaration.paren is None and declaration.equals is None:
                    declaration.paren = index
                index = source.partner[index] + 1
            elif text == "<" and source.tokens[index - 1].kind == "name":
                close = source.angle_end(index)
                index = (index if close is None else close) + 1
            else:
                if text == "=" and declaration.equals is None:
                    declaration.equals = index
                if text in CLASS_WORDS and declaration.paren is None:
                    declaration.is_class = True
                index += 1
        return end

    @staticmethod
    def _is_initializer(declaration):
        is_class_body = declaration.is_class and declaration.paren is None
        return declaration.equals is not None or is_class_body

    def _operator(self, declaration, index):
        if declaration.paren is None:
            declaration.operator = index
        index += 1
        while self.source.text(index) not in ("(", ""):
            index += 1
        is_call_operator = self.source.text(index + 1) == ")" and self.source.text(index + 2) == "("
        return index + 2 if is_call_operator else index

    def _note_type_names(self, declaration):
        source, head = self.source, declaration.head
        for index in range(declaration.start, head):
            if source.text(index) in ("typename", "class"):
                self.type_names.add(source.text(index + 1))
        if source.text(head) == "typedef" and source.text(declaration.end - 1) != ")":
            self.type_names.add(source.text(declaration.end - 1))
        if source.text(head) == "using" and source.text(head + 2) == "=":
            self.type_names.add(source.text(head + 1))

    def _classify(self, declaration, namespaces):
        source, start, end = self.source, declaration.start, declaration.end
        self._note_type_names(declaration)
        attributes = source.attributes(start, declaration.paren or end)
        words = {source.text(k) for k in range(declaration.head, declaration.paren or end)}
        if source.text(declaration.head) in ("using", "typedef", "static_assert", "friend"):
            return
        if declaration.is_function():
            self._function(declaration, namespaces, attributes, "kernel" in words)
        elif declaration.is_instantiation and "kernel" in words:
            self._instantiation(declaration, namespaces, attributes, end)
        elif any(attribute.name == "function_constant" for attribute in attributes):
            self._function_constant(start, end, attributes)
        elif declaration.is_class and declaration.paren is None:
            self._class(declaration, namespaces)
        elif not declaration.is_instantiation and not declaration.is_template:
            self._variable(declaration, words)

    def _variable(self, declaration, words):
        token = self.source.tokens[declaration.head]
        if declaration.end <= declaration.head + 1 or token.text == "extern":
            return
        if token.in_user_file and "constant" not in words:
            message = "program scope variable must reside in constant address space"
            self.source.report(token, message)

    def _function(self, declaration, namespaces, attributes, is_kernel):
        source, paren, end = self.source, declaration.paren, declaration.end
        name = paren - 1
        if declaration.operator is not None and declaration.operator < paren:
            name = declaration.operator
        if source.text(name) in (">", ">>"):  # f<float>(...)
            name = source.angle_start(name) - 1
        if declaration.is_instantiation:
            if is_kernel:
                self._instantiation(declaration, namespaces, attributes, paren)
            return
        if source.text(end) != "{":
            if source.tokens[name].kind == "name" and not is_kernel:
                bodies.check_parameters(source, paren + 1, source.partner[paren])
            return
        if is_kernel:
            self._kernel(declaration, namespaces, attributes, name)
        else:
            bodies.check_parameters(source, paren + 1, source.partner[paren])
        bodies.check_body(source, end, is_kernel)
        self._note_overload(declaration.start, end, source.partner[end] + 1, namespaces)

    def _kernel(self, declaration, namespaces, attributes, name):
        source, token = self.source, self.source.tokens[name]
        words = {source.text(k) for k in range(declaration.head, declaration.paren)}
        if "void" not in words:
            source.report(token, f"kernel '{token.text}' must return void")
        limits = [a for a in attributes if a.name == "max_total_threads_per_threadgroup"]
        kernel = Kernel(
            name="::".join((*namespaces, token.text)),
            token=token,
            is_template=declaration.is_template,
            template_parameters=self._template_parameters(declaration),
            max_threads=source.joined(*limits[0].arguments) if limits else "0",
        )
        KernelReader(source, kernel).read(declaration.paren)
        if kernel.name in self.kernels:
            source.report(token, f"redefinition of kernel '{kernel.name}'")
        self.kernels[kernel.name] = kernel

    def _template_parameters(self, declaration):
        if not declaration.is_template:
            return []
        source, names = self.source, []
        angle = declaration.start + 1
        for low, high in source.split_at_commas(angle + 1, source.angle_end(angle)):
            words = [source.text(k) for k in range(low, high)]
            words = words[: words.index("=")] if "=" in words else words
            names.append(words[-1])
        return names

    def _instantiation(self, declaration, namespaces, attributes, stop):
        """`stop` follows the expression f<float>; the registration table instantiates it."""
        source, token = self.source, self.source.tokens[declaration.start]
        name = stop - 1
        if source.text(name) in (">", ">>"):
            name = source.angle_start(name) - 1
        host_names = [a for a in attributes if a.name == "host_name" and a.arguments]
        expression = source.joined(name, stop)
        host_name = expression
        if host_names:
            texts = [source.text(k) for k in range(*host_names[0].arguments)]
            host_name = "".join(json.loads(text) for text in texts)
        else:
            message = f"instantiation of kernel '{expression}' has no [[host_name]]"
            source.report(token, message, "style")
        qualified = "::".join((*namespaces, source.text(name)))
        expression = "::".join((*namespaces, expression))
        self.instantiations.append(Instantiation(host_name, expression, qualified, token))
        self._erase_attributes(declaration.start, name)
        self.duplicates.append((declaration.start, declaration.end))

    def _erase_attributes(self, low, high):
        kept = set(self.source.without_attributes(low, high))
        for index in range(low, high):
            if index not in kept:
                self.source.erase(index, index + 1)

    def _function_constant(self, low, high, attributes):
        source = self.source
        index = next(a for a in attributes if a.name == "function_constant").arguments
        plain = source.without_attributes(low, high)
        words = [source.text(k) for k in plain]
        if "=" in words:
            source.report(source.tokens[low], "a function constant must not be initialized")
            return
        if "constant" not in words:
            message = "a function constant must be declared 'constant'"
            source.report(source.tokens[low], message)
        storage = ("constant", "const", "static", "extern", "constexpr")
        type_name = " ".join(word for word in words[:-1] if word not in storage)
        constant = FunctionConstant(words[-1], source.joined(*index) if index else "", type_name)
        self.constants.append(constant)
        source.erase(low, high)
        made = f"MSL_FUNCTION_CONSTANT({constant.index}, {constant.name}, {constant.type})"
        source.tokens[low].out = made

    def _class(self, declaration, namespaces):
        source, end = self.source, declaration.end
        brace = next((k for k in range(declaration.head, end) if source.text(k) == "{"), None)
        if brace is None:
            return
        bodies.check_body(source, brace, False, is_class=True)
        bodies.keep_thread_members(source, brace)
        words = {source.text(k) for k in range(declaration.start, brace)}
        if words & ADDRESS_SPACES:
            self._note_overload(declaration.start, brace, end + 1, namespaces)
        else:
            self._seen.setdefault((namespaces, self._spaceless(declaration.start, brace)), "")

    def _spaceless(self, low, high):
        texts = (self.source.text(k) for k in range(low, high))
        return " ".join(text for text in texts if text not in ADDRESS_SPACES)

    def _note_overload(self, start, brace, end, namespaces):
        """Where address spaces are erased, one of several overloads is enough."""
        key = (namespaces, self._spaceless(start, brace))
        body = self._spaceless(brace, self.source.partner[brace] + 1)
        has_space = any(self.source.text(k) in ADDRESS_SPACES for k in range(start, brace))
        if key not in self._seen or not has_space:
            self._seen[key] = body
            return
        if self._seen[key] not in (body, ""):
            token = self.source.tokens[start]
            self.source.report(
                token, f"{SAME_BODY}: the CPU and CUDA builds use the first", "style"
            )
        self.duplicates.append((start, end))
