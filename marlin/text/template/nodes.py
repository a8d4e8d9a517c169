"""What a parsed template is: functions of a Scope, and what they are made of.

An expression gives a value. A statement is called with (scope, out) as well, `out` a list of
strings, and gives None, or BREAK or CONTINUE on its way to the loop it concerns. Owns scoping,
loops and macros.

A node holds only what the parser gave it, so one parsed template serves any number of threads; all
that changes in a render is in its Scope and Budget. Expressions raise FAULTS; statements make
TemplateErrors with a line of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from marlin.text.template.limits import BODY_WORK, FAULTS, ITEMS, TEXT, Budget, Fault, located
from marlin.text.template.operators import appended, compare, fold, signed
from marlin.text.template.values import (
    MISSING,
    Function,
    Growing,
    Loop,
    Namespace,
    Undefined,
    iterate,
    kind_name,
    listing,
    to_text,
)

BREAK, CONTINUE = "break", "continue"


class Scope:
    """The names a piece of a template sees: its own, then those of `parent`.

    Attributes:
        names: dict of this level; only a set, a for or a macro call adds to it.
        parent: the enclosing Scope, or None.
        budget: Budget of the render.
    """

    __slots__ = ("budget", "names", "parent")

    def __init__(self, names: dict[str, Any], parent: "Scope | None", budget: Budget):
        self.names = names
        self.parent = parent
        self.budget = budget

    def child(self, names):
        return Scope(names, self, self.budget)

    def find(self, name):
        scope: Scope | None = self
        while scope is not None:
            value = scope.names.get(name, MISSING)
            if value is not MISSING:
                return value.text(self.budget) if type(value) is Growing else value
            scope = scope.parent
        return Undefined(f"{name!r} is undefined")


Node = Callable[[Scope], Any]


class Chain(NamedTuple):
    """`first symbol node symbol node ...` of the tokens [start, end).

    Flat, so that a sum of a thousand terms nests no deeper than one of two.
    """

    start: int
    end: int
    first: Node
    symbols: list[str]
    nodes: list[Node]

    def evaluate(self, scope):
        left = self.first(scope)
        return fold(scope.budget, left, self.symbols, [node(scope) for node in self.nodes])


def constant(value):
    return lambda scope: value


def without_else(scope):
    return Undefined("the condition of an inline if is false, and it has no else")


def conditional(test, then, otherwise):
    return lambda scope: then(scope) if test(scope) else otherwise(scope)


def deciding(nodes, stop_at):
    def evaluate(scope):
        for node in nodes:
            value = node(scope)
            if bool(value) is stop_at:
                break
        return value

    return evaluate


def compared(first, rest):
    """Whether each neighbouring pair compares true."""

    def evaluate(scope):
        left = first(scope)
        for symbol, node in rest:
            right = node(scope)
            if not compare(scope.budget, symbol, left, right):
                return False
            left = right
        return True

    return evaluate


def with_signs(signs, operand):
    def evaluate(scope):
        value = operand(scope)
        for sign in signs:
            value = signed(scope.budget, sign, value)
        return value

    return evaluate


def dict_of(pairs):
    def evaluate(scope):
        entries = {}
        for key_node, value_node in pairs:
            key = key_node(scope)
            scope.budget.key(key, entries)
            entries[key] = value_node(scope)
        return entries

    return evaluate


def no_arguments(scope):
    return (), {}


def bound(positional, keywords, stars):
    def evaluate(scope):
        args = [node(scope) for node in positional]
        kwargs = {name: node(scope) for name, node in keywords}
        if "*" in stars:
            for value in iterate(stars["*"](scope)):
                scope.budget.take(ITEMS, 1)
                args.append(value)
        if "**" in stars:
            extra = stars["**"](scope)
            if not isinstance(extra, dict):
                raise Fault(f"** needs a dict, not {kind_name(extra)}")
            scope.budget.take(ITEMS, len(extra))
            kwargs.update(extra)
        return args, kwargs

    return evaluate


def call(callee, arguments):
    def evaluate(scope):
        function = callee(scope)
        if not isinstance(function, Function):
            if type(function) is Undefined:
                function.fail()
            raise Fault(f"{kind_name(function)} cannot be called")
        args, kwargs = arguments(scope)
        return function.call(scope.budget, args, kwargs)

    return evaluate


def applied(table, kind, name, arguments):
    """A filter or test as a function of (scope, value)."""
    function = table.get(name)

    def apply(scope, value):
        if function is None:
            raise Fault(f"no {kind} named {name!r}")
        args, kwargs = arguments(scope)
        return function(scope.budget, value, *args, **kwargs)

    return apply


def piped(node, apply):
    return lambda scope: apply(scope, node(scope))


def text_of(body, scope):
    """What a statement writes, as one string, and its signal."""
    out: list[str] = []
    signal = body(scope, out)
    scope.budget.take(TEXT, sum(map(len, out)))
    return "".join(out), signal


def in_a_row(statements, line, num_tokens):
    """Statements with their lines; `num_tokens` is what running them once executes, without the
    bodies inside."""

    def execute(scope, out):
        at = line
        try:
            scope.budget.spend(num_tokens + BODY_WORK)
            for at, statement in statements:  # noqa: B007  (where a fault is)
                signal = statement(scope, out)
                if signal is not None:
                    return signal
        except FAULTS as fault:
            raise located(at, fault) from fault
        return None

    return execute


def writing(text):
    def execute(scope, out):
        scope.budget.write(text)
        out.append(text)

    return execute


def printing(node):
    def execute(scope, out):
        text = to_text(scope.budget, node(scope))
        scope.budget.write(text)
        out.append(text)

    return execute


def name_target(name):
    def assign(scope, value):
        scope.names[name] = value

    return assign


def member_target(name, member):
    def assign(scope, value):
        namespace = scope.find(name)
        if not isinstance(namespace, Namespace):
            raise Fault(f"cannot set {member!r} of {name!r}: it is not a namespace")
        namespace.set(member, value)

    return assign


def tuple_target(targets):
    def assign(scope, value):
        values = listing(scope.budget, value)
        if len(values) != len(targets):
            raise Fault(f"cannot unpack {len(values)} values into {len(targets)} names")
        for target, part in zip(targets, values, strict=True):
            target(scope, part)

    return assign


def growing(names, assign, chain):
    """`set x = x ~ ...`, where `names` say x: puts more to the end of what x holds."""

    def execute(scope, out):
        entries = scope.names
        if len(names) > 1:
            owner = scope.find(names[0])
            entries = owner.members if type(owner) is Namespace else {}
        grown = entries.get(names[-1])
        left = None if type(grown) is Growing else chain.first(scope)
        num_chars = 0 if left is not None else grown.num_chars
        values = [node(scope) for node in chain.nodes]
        if left is None:
            texts = appended(scope.budget, chain.symbols, values)
            # A call among the values may have set x as well.
            is_same = entries.get(names[-1]) is grown and grown.num_chars == num_chars
            if is_same and texts is not None:
                return grown.add(scope.budget, "".join(texts))
            left = grown.text(scope.budget)[:num_chars]
        value = fold(scope.budget, left, chain.symbols, values)
        return assign(scope, Growing(value) if type(value) is str else value)

    return execute


def captured(body, filters, assign=None):
    """A body whose text goes through filters, then to a target, or to the output."""

    def execute(scope, out):
        inner = scope.child({})
        value, signal = text_of(body, inner)
        if signal is not None:
            return signal
        for apply in filters:
            value = apply(inner, value)
        if assign is not None:
            return assign(scope, value)
        return printing(lambda _scope: value)(scope, out)

    return execute


def first_true(branches, otherwise):
    def execute(scope, out):
        for test, body in branches:
            if test(scope):
                return body(scope, out)
        return None if otherwise is None else otherwise(scope, out)

    return execute


def for_each(assign, source, test, body, otherwise):
    """for target in source if test: body else: otherwise. Each iteration has a scope of its own."""

    def kept(scope, items):
        for item in items:
            scope.budget.spend(BODY_WORK)
            inner = scope.child({})
            assign(inner, item)
            if test(inner):
                yield item

    def execute(scope, out):
        items = source(scope)
        iterate(items)
        loop = Loop(items if test is None else kept(scope, items))
        item = loop.advance()
        if item is MISSING and otherwise is not None:
            return otherwise(scope.child({}), out)
        while item is not MISSING:
            inner = scope.child({"loop": loop})
            assign(inner, item)
            if body(inner, out) == BREAK:
                break
            item = loop.advance()
        return None

    return execute


def with_scope(bindings, body):
    """A scope of its own, with names bound to values of the outer scope."""

    def execute(scope, out):
        inner = scope.child({})
        for assign, node in bindings:
            assign(inner, node(scope))
        return body(inner, out)

    return execute


def defining(name, parameters, extras, body):
    """A macro. `parameters` are (name, default node or None) pairs; `extras` says which of
    "varargs" and "kwargs" the body names."""
    members = {"name": name, "arguments": tuple(parameter for parameter, _ in parameters)}

    def bind(scope, args, kwargs):
        for index, (parameter, default) in enumerate(parameters):
            if index < len(args):
                value = args[index]
            elif parameter in kwargs:
                value = kwargs.pop(parameter)
            elif default is not None:
                value = default(scope)
            else:
                value = Undefined(f"parameter {parameter!r} was not given")
            scope.names[parameter] = value
        rest = {"varargs": tuple(args[len(parameters) :]), "kwargs": kwargs}
        for extra, values in rest.items():
            if extra in extras:
                scope.names[extra] = values
            elif values:
                raise Fault(f"macro {name!r} does not take {extra}: {len(values)} too many")

    def execute(scope, out):
        def call(budget, /, *args, **kwargs):
            inner = scope.child({})
            budget.enter_call()
            bind(inner, args, kwargs)
            text, _ = text_of(body, inner)
            budget.call_depth -= 1
            return text

        scope.names[name] = Function(call, members=members)

    return execute
