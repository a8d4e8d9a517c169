"""The statements of a parsed template. Each executes itself: execute(scope, out), `out` a list of
strings.

Owns scoping, loops and macros, and gives every error its line. Like expressions, statements never
change. `execute` returns None, or BREAK or CONTINUE on its way to the loop it concerns.
"""

from typing import NamedTuple

from marlin.text.template.limits import BODY_WORK, FAULTS, Fault, located
from marlin.text.template.nodes import Filter, Node, read
from marlin.text.template.values import (
    MISSING,
    Invocable,
    Loop,
    Namespace,
    Undefined,
    iterate,
    listing,
    to_text,
    whole,
)

BREAK, CONTINUE = "break", "continue"


class Body(NamedTuple):
    """Statements in a row.

    Attributes:
        line: line of the tag that opens the body.
        num_tokens: that running it once executes, without the bodies inside.
    """

    statements: list["Statement"]
    line: int
    num_tokens: int

    def execute(self, scope, out):
        line = self.line
        try:
            scope.budget.spend(self.num_tokens + BODY_WORK)
            for statement in self.statements:
                line = statement.line
                signal = statement.execute(scope, out)
                if signal is not None:
                    return signal
        except FAULTS as fault:
            raise located(line, fault) from fault
        return None

    def text(self, scope):
        """What the body writes, as one string, and its signal."""
        out: list[str] = []
        signal = self.execute(scope, out)
        scope.budget.chars(sum(map(len, out)))
        return "".join(out), signal


class Data(NamedTuple):
    line: int
    text: str

    def execute(self, scope, out):
        scope.budget.write(self.text)
        out.append(self.text)


class Print(NamedTuple):
    line: int
    node: Node

    def execute(self, scope, out):
        text = to_text(scope.budget, read(self.node, scope))
        scope.budget.write(text)
        out.append(text)


class NameTarget(NamedTuple):
    name: str

    def assign(self, scope, value):
        scope.names[self.name] = value


class NamespaceTarget(NamedTuple):
    name: str
    member: str

    def assign(self, scope, value):
        namespace = scope.find(self.name)
        if not isinstance(namespace, Namespace):
            raise Fault(f"cannot set {self.member!r} of {self.name!r}: it is not a namespace")
        namespace.set(self.member, value)


class TupleTarget(NamedTuple):
    targets: list["Target"]

    def assign(self, scope, value):
        values = listing(scope.budget, whole(scope.budget, value))
        if len(values) != len(self.targets):
            raise Fault(f"cannot unpack {len(values)} values into {len(self.targets)} names")
        for target, part in zip(self.targets, values, strict=True):
            target.assign(scope, part)


Target = NameTarget | NamespaceTarget | TupleTarget


class Set(NamedTuple):
    line: int
    target: Target
    node: Node

    def execute(self, scope, out):
        self.target.assign(scope, read(self.node, scope))


class Captured(NamedTuple):
    """A body whose text goes through filters, then to `target`, or to the output for None."""

    line: int
    body: Body
    filters: list[Filter]
    target: Target | None = None

    def execute(self, scope, out):
        inner = scope.child({})
        value, signal = self.body.text(inner)
        if signal is not None:
            return signal
        for each in self.filters:
            value = each.apply(inner, value)
        if self.target is not None:
            self.target.assign(scope, value)
            return None
        text = to_text(scope.budget, value)
        scope.budget.write(text)
        out.append(text)
        return None


class If(NamedTuple):
    """branches: (test node, Body) pairs, tried in order; otherwise: Body or None."""

    line: int
    branches: list[tuple[Node, Body]]
    otherwise: Body | None

    def execute(self, scope, out):
        for test, body in self.branches:
            if test.evaluate(scope):
                return body.execute(scope, out)
        return None if self.otherwise is None else self.otherwise.execute(scope, out)


class For(NamedTuple):
    """for target in source if test: body else: otherwise. Each iteration has a scope of its own."""

    line: int
    target: Target
    source: Node
    test: Node | None
    body: Body
    otherwise: Body | None

    def execute(self, scope, out):
        source = self.source.evaluate(scope)
        iterate(source)
        loop = Loop(source if self.test is None else self._kept(scope, source, self.test))
        item = loop.advance()
        if item is MISSING and self.otherwise is not None:
            return self.otherwise.execute(scope.child({}), out)
        while item is not MISSING:
            inner = scope.child({"loop": loop})
            self.target.assign(inner, item)
            if self.body.execute(inner, out) == BREAK:
                break
            item = loop.advance()
        return None

    def _kept(self, scope, source, test):
        for item in iterate(source):
            scope.budget.spend(BODY_WORK)
            inner = scope.child({})
            self.target.assign(inner, item)
            if test.evaluate(inner):
                yield item


class LoopControl(NamedTuple):
    line: int
    signal: str

    def execute(self, scope, out):
        return self.signal


class With(NamedTuple):
    """A scope of its own, with names bound to values of the outer scope."""

    line: int
    bindings: list[tuple[Target, Node]]
    body: Body

    def execute(self, scope, out):
        inner = scope.child({})
        for target, node in self.bindings:
            target.assign(inner, node.evaluate(scope))
        return self.body.execute(inner, out)


class DefineMacro(NamedTuple):
    """A macro's name and parameters.

    Attributes:
        parameters: (name, default node or None) pairs.
        extras: which of "varargs" and "kwargs" the body names.
    """

    line: int
    name: str
    parameters: list[tuple[str, Node | None]]
    extras: tuple[str, ...]
    body: Body

    def execute(self, scope, out):
        scope.names[self.name] = Macro(self, scope)


# `line` is where each starts.
Statement = Data | Print | Set | Captured | If | For | LoopControl | With | DefineMacro


class Macro(Invocable):
    """A macro with the scope that its body sees."""

    __slots__ = ("_definition", "_scope")

    def __init__(self, definition, scope):
        self._definition = definition
        self._scope = scope

    def member(self, name):
        if name == "name":
            return self._definition.name
        if name == "arguments":
            return tuple(name for name, _ in self._definition.parameters)
        return MISSING

    def invoke(self, budget, args, kwargs):
        scope = self._scope.child({})
        budget.enter_call()
        self._bind(scope, args, dict(kwargs))
        text, _ = self._definition.body.text(scope)
        budget.leave_call()
        return text

    def _bind(self, scope, args, kwargs):
        definition = self._definition
        for index, (name, default) in enumerate(definition.parameters):
            if index < len(args):
                value = args[index]
            elif name in kwargs:
                value = kwargs.pop(name)
            elif default is not None:
                value = default.evaluate(scope)
            else:
                value = Undefined(f"parameter {name!r} was not given")
            scope.names[name] = value
        rest = tuple(args[len(definition.parameters) :])
        for name, extra in (("varargs", rest), ("kwargs", kwargs)):
            if name in definition.extras:
                scope.names[name] = extra
            elif extra:
                what = "so many arguments" if extra is rest else f"argument {next(iter(extra))!r}"
                raise Fault(f"macro {definition.name!r} does not take {what}")
