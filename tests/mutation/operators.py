"""Mutants of a Python source: one small change each, in the text, by the syntax tree.

Knows no tests and runs nothing. Docstrings, annotations and imports are left alone.
"""

import ast
from typing import NamedTuple

_COMPARISONS = {
    ast.Lt: ("<=", ">"), ast.LtE: ("<", ">"), ast.Gt: (">=", "<"), ast.GtE: (">", "<"),
    ast.Eq: ("!=",), ast.NotEq: ("==",), ast.Is: ("is not",), ast.IsNot: ("is",),
    ast.In: ("not in",), ast.NotIn: ("in",),
}  # fmt: skip
_ARITHMETIC = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "//", ast.FloorDiv: "*", ast.Div: "*", ast.Mod: "*",
    ast.Pow: "*", ast.LShift: ">>", ast.RShift: "<<", ast.BitAnd: "|", ast.BitOr: "&",
    ast.BitXor: "|",
}  # fmt: skip
_OTHER_ERROR = "ZeroDivisionError"
_NOTHING = ("None", "False")  # None instead of either is the same to an `if`


class Mutant(NamedTuple):
    """A change of `source[start:end]` (bytes) of a file, and the lines whose tests may see it."""

    path: str
    line: int
    operator: str
    start: int
    end: int
    new: str
    lines: tuple  # of the statement that changes; of a function's head: its whole body
    at_import: bool  # runs while the module is imported


class _Finder(ast.NodeVisitor):
    def __init__(self, path, source):
        self.path = path
        self.source = source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.found = []
        self.statement = None
        self.function = None

    def text(self, node):
        start, end = self.span(node)
        return self.source[start:end].decode()

    def span(self, node):
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def add(self, operator, node, new):
        start, end = self.span(node)
        if self.source[start:end].decode() == new:
            return
        first = last = self.statement
        body = getattr(self.statement, "body", None)
        low, high = first.lineno, last.end_lineno
        if isinstance(body, list) and not isinstance(self.statement, _SCOPES):
            high = max(low, body[0].lineno - 1)  # an if's or a loop's head alone
        elif isinstance(self.statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            low = body[0].lineno
        lines = tuple(range(low, high + 1))
        self.found.append(
            Mutant(self.path, node.lineno, operator, start, end, new, lines, self.function is None)
        )

    def visit(self, node):
        if not isinstance(node, ast.stmt):
            return super().visit(node)
        outer, self.statement = self.statement, node
        super().visit(node)
        self.statement = outer
        return None

    def _scope(self, node):
        if isinstance(node, ast.ClassDef):
            for child in node.body:
                self.visit(child)
            return
        outer, self.function = self.function, node
        arguments = node.args
        for default in [*arguments.defaults, *filter(None, arguments.kw_defaults)]:
            self.visit(default)
        for child in node.body:
            self.visit(child)
        self.function = outer

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _scope

    def visit_Import(self, node):
        pass

    visit_ImportFrom = visit_Global = visit_Nonlocal = visit_Import

    def visit_AnnAssign(self, node):
        if node.value is not None:
            if self.function is not None and self.text(node.value) not in _NOTHING:
                self.add("removed statement", node, f"{self.text(node.target)} = None")
            self.visit(node.value)

    def visit_Expr(self, node):
        if isinstance(node.value, ast.Constant):
            return
        self.add("removed call", node, "pass")
        self.generic_visit(node)

    def visit_Assign(self, node):
        if self.function is not None and self.text(node.value) not in _NOTHING:
            target = f"{self.text(node.targets[0])} = "
            if not isinstance(node.targets[0], ast.Tuple):
                self.add("removed assignment", node, target + "None")
        self.visit(node.value)

    def visit_AugAssign(self, node):
        self.add("removed statement", node, "pass")
        self.visit(node.value)

    def visit_Return(self, node):
        falsy = (None, "None", "False", "0", "0.0", '""', "[]", "{}")
        if (node.value and self.text(node.value)) not in falsy:
            self.add("return value", node, "return None")
        self.generic_visit(node)

    def visit_Raise(self, node):
        self.add("removed raise", node, "pass")
        if isinstance(node.exc, ast.Call):
            self.add("other exception", node.exc.func, _OTHER_ERROR)
        self.generic_visit(node)

    def visit_Break(self, node):
        self.add("removed break", node, "pass")

    def visit_Continue(self, node):
        self.add("removed continue", node, "pass")

    def visit_If(self, node):
        self._condition(node.test)
        self.generic_visit(node)

    visit_While = visit_IfExp = visit_If

    def _condition(self, test):
        self.add("negated condition", test, f"(not ({self.text(test)}))")

    def visit_ExceptHandler(self, node):
        self.statement = node  # who comes here, not who tries
        if node.type is not None:
            self.add("other exception", node.type, _OTHER_ERROR)
        for child in node.body:
            self.visit(child)

    def visit_With(self, node):
        for item in node.items:
            if self.text(item.context_expr).endswith("lock"):
                new = '__import__("contextlib").nullcontext()'
                self.add("removed lock", item.context_expr, new)
        self.generic_visit(node)

    def visit_Compare(self, node):
        if len(node.ops) == 1:
            left, right = self.text(node.left), self.text(node.comparators[0])
            for operator in _COMPARISONS[type(node.ops[0])]:
                self.add("comparison", node, f"({left} {operator} {right})")
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        texts = [self.text(value) for value in node.values]
        word = " and " if isinstance(node.op, ast.And) else " or "
        other = " or " if word == " and " else " and "
        self.add("and/or", node, f"({other.join(texts)})")
        for left_out in range(len(texts)):
            kept = texts[:left_out] + texts[left_out + 1 :]
            self.add("removed clause", node, f"({word.join(kept)})")
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        if isinstance(node.op, ast.Not):
            self.add("removed not", node, f"({self.text(node.operand)})")
        self.generic_visit(node)

    def visit_BinOp(self, node):
        text = isinstance(node.left, (ast.JoinedStr, ast.List)) or (
            isinstance(node.left, ast.Constant) and isinstance(node.left.value, (str, bytes))
        )
        if not text:
            new = _ARITHMETIC.get(type(node.op))
            if new:
                left, right = self.text(node.left), self.text(node.right)
                self.add("arithmetic", node, f"({left} {new} {right})")
        self.generic_visit(node)

    def visit_Constant(self, node):
        value = node.value
        if isinstance(value, bool):
            self.add("constant", node, str(not value))
        elif isinstance(value, int):
            self.add("constant", node, f"{value + 1}")
            self.add("constant", node, f"{value - 1}" if value > 0 else "2")
        elif isinstance(value, float):
            self.add("constant", node, repr(value * 8 + 0.5))
        elif isinstance(value, str) and value.isidentifier():  # a key, not prose
            self.add("constant", node, repr(value + "_"))

    def visit_JoinedStr(self, node):
        """Its words are prose or framing; what stands in braces is code, but has no true place."""

    def visit_Call(self, node):
        plain = [value for value in node.args if not isinstance(value, ast.Starred)]
        commutes = self.text(node.func) in ("min", "max")
        if len(plain) >= 2 and plain == node.args and not commutes:
            first, second = self.text(node.args[0]), self.text(node.args[1])
            rest = [self.text(value) for value in node.args[2:]]
            rest += [self.text(value) for value in node.keywords]
            swapped = ", ".join([second, first, *rest])
            self.add("swapped arguments", node, f"{self.text(node.func)}({swapped})")
        for left_out in node.keywords:
            if left_out.arg is None:
                continue
            kept = [self.text(value) for value in [*node.args, *node.keywords]]
            kept.remove(self.text(left_out))
            new = f"{self.text(node.func)}({', '.join(kept)})"
            self.add("removed argument", node, new)
        self.generic_visit(node)

    def visit_arguments(self, node):
        pass


_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def mutants(path, source):
    """Every mutant of a file, in the order of the text; a few do not compile.

    Args:
        path: as the mutants shall carry it.
        source: bytes, UTF-8.
    """
    finder = _Finder(path, source)
    finder.visit(ast.parse(source))
    return finder.found


def apply(mutant, source):
    """The source, bytes, with a mutant's change."""
    return source[: mutant.start] + mutant.new.encode() + source[mutant.end :]


def compiles(source):
    """Whether that is Python."""
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True
