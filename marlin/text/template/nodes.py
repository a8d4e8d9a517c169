"""The expressions of a parsed template. Each node evaluates itself: evaluate(scope) -> value.

A node holds only what the parser gave it, so one parsed template serves any number of threads; all
that changes in a render is in its Scope and Budget. Evaluating raises FAULTS; statements turn them
into TemplateError with a line.
"""

from marlin.text.template.access import attribute, cut, item
from marlin.text.template.filters import FILTERS
from marlin.text.template.limits import Fault
from marlin.text.template.operators import ARITHMETIC, compare, signed
from marlin.text.template.tests import TESTS
from marlin.text.template.values import MISSING, Invocable, Undefined, iterate, kind_name


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


class Literal:
    __slots__ = ("_value",)

    def __init__(self, value):
        self._value = value

    def evaluate(self, scope):
        return self._value


class Metered:
    """An expression that its statement evaluates any number of times, charged for each."""

    __slots__ = ("_node", "_work")

    def __init__(self, node, num_tokens):
        self._node = node
        self._work = num_tokens

    def evaluate(self, scope):
        scope.budget.spend(self._work)
        return self._node.evaluate(scope)


class Name:
    __slots__ = ("name",)

    def __init__(self, name):
        self.name = name

    def evaluate(self, scope):
        return scope.find(self.name)


class ListDisplay:
    """[a, b], or a tuple for kind=tuple."""

    __slots__ = ("_kind", "nodes")

    def __init__(self, nodes, kind=list):
        self.nodes = nodes
        self._kind = kind

    def evaluate(self, scope):
        return self._kind([node.evaluate(scope) for node in self.nodes])


class DictDisplay:
    __slots__ = ("_pairs",)

    def __init__(self, pairs):
        self._pairs = pairs

    def evaluate(self, scope):
        entries = {}
        for key_node, value_node in self._pairs:
            key = key_node.evaluate(scope)
            scope.budget.key(key, entries)
            entries[key] = value_node.evaluate(scope)
        return entries


class Attribute:
    __slots__ = ("_name", "_operand")

    def __init__(self, operand, name):
        self._operand = operand
        self._name = name

    def evaluate(self, scope):
        return attribute(self._operand.evaluate(scope), self._name)


class Item:
    __slots__ = ("_key", "_operand")

    def __init__(self, operand, key):
        self._operand = operand
        self._key = key

    def evaluate(self, scope):
        return item(scope.budget, self._operand.evaluate(scope), self._key.evaluate(scope))


class Cut:
    """operand[start:stop:step]; each bound is a node or None."""

    __slots__ = ("_bounds", "_operand")

    def __init__(self, operand, bounds):
        self._operand = operand
        self._bounds = bounds

    def evaluate(self, scope):
        value = self._operand.evaluate(scope)
        bounds = [None if node is None else node.evaluate(scope) for node in self._bounds]
        return cut(scope.budget, value, slice(*bounds))


class Arguments:
    """What stands between the brackets of a call, a filter or a test."""

    __slots__ = ("_keywords", "_positional", "_star", "_star_star")

    def __init__(self, positional=(), keywords=(), star=None, star_star=None):
        self._positional = positional
        self._keywords = keywords
        self._star = star
        self._star_star = star_star

    def evaluate(self, scope):
        """Returns (list, dict)."""
        args = [node.evaluate(scope) for node in self._positional]
        kwargs = {name: node.evaluate(scope) for name, node in self._keywords}
        if self._star is not None:
            for value in iterate(self._star.evaluate(scope)):
                scope.budget.items(1)
                args.append(value)
        if self._star_star is not None:
            extra = self._star_star.evaluate(scope)
            if not isinstance(extra, dict):
                raise Fault(f"** needs a dict, not {kind_name(extra)}")
            scope.budget.items(len(extra))
            kwargs.update(extra)
        return args, kwargs


class Call:
    __slots__ = ("_arguments", "_callee")

    def __init__(self, callee, arguments):
        self._callee = callee
        self._arguments = arguments

    def evaluate(self, scope):
        callee = self._callee.evaluate(scope)
        if not isinstance(callee, Invocable):
            if type(callee) is Undefined:
                callee.fail()
            raise Fault(f"{kind_name(callee)} cannot be called")
        args, kwargs = self._arguments.evaluate(scope)
        return callee.invoke(scope.budget, args, kwargs)


class Filter:
    __slots__ = ("_arguments", "_function", "_name", "_operand")

    def __init__(self, operand, name, arguments):
        self._operand = operand
        self._name = name
        self._function = FILTERS.get(name)
        self._arguments = arguments

    def evaluate(self, scope):
        return self.apply(scope, self._operand.evaluate(scope))

    def apply(self, scope, value):
        if self._function is None:
            raise Fault(f"no filter named {self._name!r}")
        args, kwargs = self._arguments.evaluate(scope)
        return self._function(scope.budget, value, *args, **kwargs)


class Test:
    __slots__ = ("_arguments", "_function", "_name", "_operand")

    def __init__(self, operand, name, arguments):
        self._operand = operand
        self._name = name
        self._function = TESTS.get(name)
        self._arguments = arguments

    def evaluate(self, scope):
        if self._function is None:
            raise Fault(f"no test named {self._name!r}")
        value = self._operand.evaluate(scope)
        args, kwargs = self._arguments.evaluate(scope)
        return self._function(scope.budget, value, *args, **kwargs)


class Arithmetic:
    """first op operand op operand ..., operators of one precedence, left to right.

    A flat node, so that a sum of a thousand terms nests no deeper than one of two.
    """

    __slots__ = ("_first", "rest")

    def __init__(self, first, rest):
        self._first = first
        self.rest = rest

    def evaluate(self, scope):
        value = self._first.evaluate(scope)
        for symbol, node in self.rest:
            value = ARITHMETIC[symbol](scope.budget, value, node.evaluate(scope))
        return value


class Signed:
    """Signs before an operand, the innermost last."""

    __slots__ = ("_operand", "_signs")

    def __init__(self, signs, operand):
        self._signs = signs
        self._operand = operand

    def evaluate(self, scope):
        value = self._operand.evaluate(scope)
        for sign in reversed(self._signs):
            value = signed(scope.budget, sign, value)
        return value


class Comparison:
    """first op operand op operand ...: true when each neighbouring pair compares true."""

    __slots__ = ("_first", "_rest")

    def __init__(self, first, rest):
        self._first = first
        self._rest = rest

    def evaluate(self, scope):
        left = self._first.evaluate(scope)
        for symbol, node in self._rest:
            right = node.evaluate(scope)
            if not compare(scope.budget, symbol, left, right):
                return False
            left = right
        return True


class Not:
    __slots__ = ("_operand",)

    def __init__(self, operand):
        self._operand = operand

    def evaluate(self, scope):
        return not self._operand.evaluate(scope)


class Choice:
    """a or b or c (stop_at=True), a and b and c (stop_at=False): the value that decides."""

    __slots__ = ("_nodes", "_stop_at")

    def __init__(self, nodes, stop_at):
        self._nodes = nodes
        self._stop_at = stop_at

    def evaluate(self, scope):
        for node in self._nodes:
            value = node.evaluate(scope)
            if bool(value) is self._stop_at:
                break
        return value


class Conditional:
    """then if test else otherwise; without an else, an Undefined."""

    __slots__ = ("_otherwise", "_test", "_then")

    def __init__(self, test, then, otherwise):
        self._test = test
        self._then = then
        self._otherwise = otherwise

    def evaluate(self, scope):
        if self._test.evaluate(scope):
            return self._then.evaluate(scope)
        if self._otherwise is None:
            return Undefined("the condition of an inline if is false, and it has no else")
        return self._otherwise.evaluate(scope)
