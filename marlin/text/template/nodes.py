"""The expressions of a parsed template. Each node evaluates itself: evaluate(scope) -> value.

A node holds only what the parser gave it, so one parsed template serves any number of threads; all
that changes in a render is in its Scope and Budget. Evaluating raises FAULTS; statements turn them
into TemplateError with a line.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from marlin.text.template.access import attribute, cut, item
from marlin.text.template.filters import FILTERS
from marlin.text.template.limits import Fault
from marlin.text.template.operators import ARITHMETIC, JOINING, compare, signed
from marlin.text.template.tests import TESTS
from marlin.text.template.values import MISSING, Invocable, Undefined, iterate, kind_name, whole


class Scope:
    """The names a piece of a template sees: its own, then those of `parent`.

    Attributes:
        names: dict of this level; only a set, a for or a macro call adds to it.
        parent: the enclosing Scope, or None.
        budget: Budget of the render.
    """

    __slots__ = ("budget", "names", "parent")

    def __init__(self, names, parent, budget):
        self.names = names
        self.parent = parent
        self.budget = budget

    def child(self, names):
        return Scope(names, self, self.budget)

    def find(self, name):
        scope = self
        while scope is not None:
            value = scope.names.get(name, MISSING)
            if value is not MISSING:
                return value
            scope = scope.parent
        return Undefined(f"{name!r} is undefined")


class Node(Protocol):
    """Base of the expressions; what each holds, the parser gave it in this order."""

    def evaluate(self, scope: Scope) -> Any: ...


def read(node: Node, scope: Scope) -> Any:
    """A node's value for what can take a Joined as it is; evaluate() makes one whole."""
    if isinstance(node, (Name, Attribute, Item, Arithmetic)):
        return node.joined(scope)
    return node.evaluate(scope)


class Literal(NamedTuple):
    value: Any

    def evaluate(self, scope):
        return self.value


class Metered(NamedTuple):
    """An expression that its statement evaluates any number of times, charged for each."""

    node: Node
    num_tokens: int

    def evaluate(self, scope):
        scope.budget.spend(self.num_tokens)
        return self.node.evaluate(scope)


class Name(NamedTuple):
    name: str

    def evaluate(self, scope):
        return whole(scope.budget, scope.find(self.name))

    def joined(self, scope):
        return scope.find(self.name)


class ListDisplay(NamedTuple):
    """[a, b], or a tuple for kind=tuple."""

    nodes: list[Node]
    kind: type = list

    def evaluate(self, scope):
        return self.kind([node.evaluate(scope) for node in self.nodes])


class DictDisplay(NamedTuple):
    pairs: list[tuple[Node, Node]]

    def evaluate(self, scope):
        entries = {}
        for key_node, value_node in self.pairs:
            key = key_node.evaluate(scope)
            scope.budget.key(key, entries)
            entries[key] = value_node.evaluate(scope)
        return entries


class Attribute(NamedTuple):
    operand: Node
    name: str

    def evaluate(self, scope):
        return whole(scope.budget, self.joined(scope))

    def joined(self, scope):
        return attribute(self.operand.evaluate(scope), self.name)


class Item(NamedTuple):
    operand: Node
    key: Node

    def evaluate(self, scope):
        return whole(scope.budget, self.joined(scope))

    def joined(self, scope):
        return item(scope.budget, self.operand.evaluate(scope), self.key.evaluate(scope))


class Cut(NamedTuple):
    """operand[start:stop:step]; each bound is a node or None."""

    operand: Node
    bounds: list[Node | None]

    def evaluate(self, scope):
        value = self.operand.evaluate(scope)
        bounds = [None if node is None else node.evaluate(scope) for node in self.bounds]
        return cut(scope.budget, value, slice(*bounds))


class Arguments(NamedTuple):
    """What stands between the brackets of a call, a filter or a test."""

    positional: Sequence[Node] = ()
    keywords: Sequence[tuple[str, Node]] = ()
    star: Node | None = None
    star_star: Node | None = None

    def evaluate(self, scope):
        """Returns (list, dict)."""
        args = [node.evaluate(scope) for node in self.positional]
        kwargs = {name: node.evaluate(scope) for name, node in self.keywords}
        if self.star is not None:
            for value in iterate(self.star.evaluate(scope)):
                scope.budget.items(1)
                args.append(value)
        if self.star_star is not None:
            extra = self.star_star.evaluate(scope)
            if not isinstance(extra, dict):
                raise Fault(f"** needs a dict, not {kind_name(extra)}")
            scope.budget.items(len(extra))
            kwargs.update(extra)
        return args, kwargs


class Call(NamedTuple):
    callee: Node
    arguments: Arguments

    def evaluate(self, scope):
        callee = self.callee.evaluate(scope)
        if not isinstance(callee, Invocable):
            if type(callee) is Undefined:
                callee.fail()
            raise Fault(f"{kind_name(callee)} cannot be called")
        args, kwargs = self.arguments.evaluate(scope)
        return callee.invoke(scope.budget, args, kwargs)


class Filter(NamedTuple):
    operand: Node
    name: str
    arguments: Arguments

    def evaluate(self, scope):
        return self.apply(scope, self.operand.evaluate(scope))

    def apply(self, scope, value):
        function = FILTERS.get(self.name)
        if function is None:
            raise Fault(f"no filter named {self.name!r}")
        args, kwargs = self.arguments.evaluate(scope)
        return function(scope.budget, value, *args, **kwargs)


class Test(NamedTuple):
    operand: Node
    name: str
    arguments: Arguments

    def evaluate(self, scope):
        function = TESTS.get(self.name)
        if function is None:
            raise Fault(f"no test named {self.name!r}")
        value = self.operand.evaluate(scope)
        args, kwargs = self.arguments.evaluate(scope)
        return function(scope.budget, value, *args, **kwargs)


class Arithmetic(NamedTuple):
    """first op operand op operand ..., operators of one precedence, left to right.

    A flat node, so that a sum of a thousand terms nests no deeper than one of two.
    """

    first: Node
    rest: list[tuple[str, Node]]

    def evaluate(self, scope):
        return whole(scope.budget, self.joined(scope))

    def joined(self, scope):
        value = read(self.first, scope)
        for symbol, node in self.rest:
            if symbol not in JOINING:
                value = whole(scope.budget, value)
            value = ARITHMETIC[symbol](scope.budget, value, node.evaluate(scope))
        return value


class Signed(NamedTuple):
    """Signs before an operand, the innermost last."""

    signs: list[str]
    operand: Node

    def evaluate(self, scope):
        value = self.operand.evaluate(scope)
        for sign in reversed(self.signs):
            value = signed(scope.budget, sign, value)
        return value


class Comparison(NamedTuple):
    """first op operand op operand ...: true when each neighbouring pair compares true."""

    first: Node
    rest: list[tuple[str, Node]]

    def evaluate(self, scope):
        left = self.first.evaluate(scope)
        for symbol, node in self.rest:
            right = node.evaluate(scope)
            if not compare(scope.budget, symbol, left, right):
                return False
            left = right
        return True


class Not(NamedTuple):
    operand: Node

    def evaluate(self, scope):
        return not self.operand.evaluate(scope)


class Choice(NamedTuple):
    """a or b or c (stop_at=True), a and b and c (stop_at=False): the value that decides."""

    nodes: list[Node]
    stop_at: bool

    def evaluate(self, scope):
        for node in self.nodes:
            value = node.evaluate(scope)
            if bool(value) is self.stop_at:
                break
        return value


class Conditional(NamedTuple):
    """then if test else otherwise; without an else, an Undefined."""

    test: Node
    then: Node
    otherwise: Node | None

    def evaluate(self, scope):
        if self.test.evaluate(scope):
            return self.then.evaluate(scope)
        if self.otherwise is None:
            return Undefined("the condition of an inline if is false, and it has no else")
        return self.otherwise.evaluate(scope)
