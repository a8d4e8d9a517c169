"""The statements of a parsed template. Each executes itself: execute(scope, out), `out` a list of
strings.

Owns scoping, loops and macros, and gives every error its line. Like expressions, statements never
change. `execute` returns None, or BREAK or CONTINUE on its way to the loop it concerns.
"""

from marlin.text.template.limits import BODY_WORK, FAULTS, Fault, located
from marlin.text.template.values import (
    MISSING,
    Invocable,
    Loop,
    Namespace,
    Undefined,
    iterate,
    listing,
    to_text,
)

BREAK, CONTINUE = "break", "continue"


class Body:
    """Statements in a row.

    Attributes:
        line: line of the tag that opens the body.
        work: units that running it once costs, without the bodies inside.
    """

    __slots__ = ("_line", "_statements", "_work")

    def __init__(self, statements, line, num_tokens):
        self._statements = statements
        self._line = line
        self._work = num_tokens + BODY_WORK

    def execute(self, scope, out):
        line = self._line
        try:
            scope.budget.spend(self._work)
            for statement in self._statements:
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


class Statement:
    """Base: `line` is where the statement starts."""

    __slots__ = ("line",)

    def __init__(self, line):
        self.line = line


class Data(Statement):
    __slots__ = ("_text",)

    def __init__(self, line, text):
        super().__init__(line)
        self._text = text

    def execute(self, scope, out):
        scope.budget.write(self._text)
        out.append(self._text)


class Print(Statement):
    __slots__ = ("_node",)

    def __init__(self, line, node):
        super().__init__(line)
        self._node = node

    def execute(self, scope, out):
        text = to_text(scope.budget, self._node.evaluate(scope))
        scope.budget.write(text)
        out.append(text)


class NameTarget:
    __slots__ = ("_name",)

    def __init__(self, name):
        self._name = name

    def assign(self, scope, value):
        scope.names[self._name] = value


class NamespaceTarget:
    __slots__ = ("_member", "_name")

    def __init__(self, name, member):
        self._name = name
        self._member = member

    def assign(self, scope, value):
        namespace = scope.find(self._name)
        if not isinstance(namespace, Namespace):
            raise Fault(f"cannot set {self._member!r} of {self._name!r}: it is not a namespace")
        namespace.set(self._member, value)


class TupleTarget:
    __slots__ = ("_targets",)

    def __init__(self, targets):
        self._targets = targets

    def assign(self, scope, value):
        values = listing(scope.budget, value)
        if len(values) != len(self._targets):
            raise Fault(f"cannot unpack {len(values)} values into {len(self._targets)} names")
        for target, part in zip(self._targets, values, strict=True):
            target.assign(scope, part)


class Set(Statement):
    __slots__ = ("_node", "_target")

    def __init__(self, line, target, node):
        super().__init__(line)
        self._target = target
        self._node = node

    def execute(self, scope, out):
        self._target.assign(scope, self._node.evaluate(scope))


class Captured(Statement):
    """A body whose text goes through filters, then to `target`, or to the output for None."""

    __slots__ = ("_body", "_filters", "_target")

    def __init__(self, line, body, filters, target=None):
        super().__init__(line)
        self._body = body
        self._filters = filters
        self._target = target

    def execute(self, scope, out):
        inner = scope.child({})
        value, signal = self._body.text(inner)
        if signal is not None:
            return signal
        for each in self._filters:
            value = each.apply(inner, value)
        if self._target is not None:
            self._target.assign(scope, value)
            return None
        text = to_text(scope.budget, value)
        scope.budget.write(text)
        out.append(text)
        return None


class If(Statement):
    """branches: (test node, Body) pairs, tried in order; otherwise: Body or None."""

    __slots__ = ("_branches", "_otherwise")

    def __init__(self, line, branches, otherwise):
        super().__init__(line)
        self._branches = branches
        self._otherwise = otherwise

    def execute(self, scope, out):
        for test, body in self._branches:
            if test.evaluate(scope):
                return body.execute(scope, out)
        return None if self._otherwise is None else self._otherwise.execute(scope, out)


class For(Statement):
    """for target in source if test: body else: otherwise. Each iteration has a scope of its own."""

    __slots__ = ("_body", "_otherwise", "_source", "_target", "_test")

    def __init__(self, line, target, source, test, body, otherwise):
        super().__init__(line)
        self._target = target
        self._source = source
        self._test = test
        self._body = body
        self._otherwise = otherwise

    def execute(self, scope, out):
        source = self._source.evaluate(scope)
        iterate(source)
        loop = Loop(source if self._test is None else self._kept(scope, source))
        item = loop.advance()
        if item is MISSING and self._otherwise is not None:
            return self._otherwise.execute(scope.child({}), out)
        while item is not MISSING:
            inner = scope.child({"loop": loop})
            self._target.assign(inner, item)
            if self._body.execute(inner, out) == BREAK:
                break
            item = loop.advance()
        return None

    def _kept(self, scope, source):
        for item in iterate(source):
            scope.budget.spend(BODY_WORK)
            inner = scope.child({})
            self._target.assign(inner, item)
            if self._test.evaluate(inner):
                yield item


class LoopControl(Statement):
    __slots__ = ("_signal",)

    def __init__(self, line, signal):
        super().__init__(line)
        self._signal = signal

    def execute(self, scope, out):
        return self._signal


class With(Statement):
    """A scope of its own, with names bound to values of the outer scope."""

    __slots__ = ("_bindings", "_body")

    def __init__(self, line, bindings, body):
        super().__init__(line)
        self._bindings = bindings
        self._body = body

    def execute(self, scope, out):
        inner = scope.child({})
        for target, node in self._bindings:
            target.assign(inner, node.evaluate(scope))
        return self._body.execute(inner, out)


class Signature:
    """A macro's parameters.

    Attributes:
        parameters: (name, default node or None) pairs.
        extras: which of "varargs" and "kwargs" the body names.
        body: Body.
    """

    __slots__ = ("body", "extras", "name", "parameters")

    def __init__(self, name, parameters, extras, body):
        self.name = name
        self.parameters = parameters
        self.extras = extras
        self.body = body


class Macro(Invocable):
    """A Signature with the scope that its body sees."""

    __slots__ = ("_scope", "_signature")

    def __init__(self, signature, scope):
        self._signature = signature
        self._scope = scope

    def member(self, name):
        if name == "name":
            return self._signature.name
        if name == "arguments":
            return tuple(name for name, _ in self._signature.parameters)
        return MISSING

    def invoke(self, budget, args, kwargs):
        scope = self._scope.child({})
        budget.enter_call()
        self._bind(scope, args, dict(kwargs))
        text, _ = self._signature.body.text(scope)
        budget.leave_call()
        return text

    def _bind(self, scope, args, kwargs):
        signature = self._signature
        for index, (name, default) in enumerate(signature.parameters):
            if index < len(args):
                value = args[index]
            elif name in kwargs:
                value = kwargs.pop(name)
            elif default is not None:
                value = default.evaluate(scope)
            else:
                value = Undefined(f"parameter {name!r} was not given")
            scope.names[name] = value
        rest = tuple(args[len(signature.parameters) :])
        for name, extra in (("varargs", rest), ("kwargs", kwargs)):
            if name in signature.extras:
                scope.names[name] = extra
            elif extra:
                what = "so many arguments" if extra is rest else f"argument {next(iter(extra))!r}"
                raise Fault(f"macro {signature.name!r} does not take {what}")


class DefineMacro(Statement):
    __slots__ = ("_signature",)

    def __init__(self, line, signature):
        super().__init__(line)
        self._signature = signature

    def execute(self, scope, out):
        scope.names[self._signature.name] = Macro(self._signature, scope)
