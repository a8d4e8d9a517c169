"""What a template may hold: plain JSON values and the interpreter's own objects.

Plain values are None, bool, int, float, str, list, tuple, dict (exactly these types), ranges and
dict views. An object of the interpreter lists the members that a template can read. This file knows
no expression, filter or method.
"""

from collections.abc import Sized
from typing import Any

from marlin.errors import TemplateError
from marlin.text.template.limits import ITEMS, MAX_VALUE_DEPTH, TEXT, Budget, Fault, levels

MISSING = object()


class Undefined:
    """What is not there. It prints as nothing, is false and empty; any other use fails."""

    __slots__ = ("reason",)

    def __init__(self, reason):
        self.reason = reason

    def fail(self, *_operands):
        raise Fault(self.reason)

    def __eq__(self, other):
        return type(other) is Undefined

    def __hash__(self):
        return hash(Undefined)

    def __len__(self):
        return 0

    def __iter__(self):
        return iter(())

    def __str__(self):
        return ""

    def __repr__(self):
        return "Undefined"

    __reversed__ = __iter__
    __lt__ = __le__ = __gt__ = __ge__ = __abs__ = __int__ = __float__ = __index__ = __round__ = fail


class Safe(str):
    """Text that the filters safe and escape give: what + adds to it is escaped, as by jinja2's
    Markup. Most other filters make plain text of it, and it has no methods here."""

    __slots__ = ()


def alike(value, text):
    """text, as safe as the value that it was made of."""
    return Safe(text) if type(value) is Safe else text


class Growing:
    """A variable's text that `{% set x = x ~ ... %}` builds, a piece at a time.

    Each piece is copied once and not once for every piece after it. Lives in the names of a Scope
    or a Namespace alone, where reading the variable puts it together: no value is ever one.
    """

    __slots__ = ("_parts", "num_chars")

    def __init__(self, text):
        self._parts = [text]
        self.num_chars = len(text)

    def add(self, budget, text):
        budget.check(TEXT, self.num_chars + len(text))
        budget.scan(len(text))
        self._parts.append(text)
        self.num_chars += len(text)

    def text(self, budget):
        if len(self._parts) > 1:
            budget.take(TEXT, self.num_chars)
            self._parts = ["".join(self._parts)]
        return self._parts[0]


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

    def written(self, body):
        """What a statement writes, as one string, and its signal (statements.py)."""
        out: list[str] = []
        signal = body(self, out)
        self.budget.take(TEXT, sum(map(len, out)))
        return "".join(out), signal


class Stream:
    """What a lazy filter gives: walked once, without a length, and true even when empty."""

    __slots__ = ("_items",)

    def __init__(self, items):
        self._items = iter(items)

    def __iter__(self):
        return self._items

    def __repr__(self):
        return "<stream>"


class Owned:
    """An object of the interpreter. `member` gives what `object.name` reads, or MISSING."""

    __slots__ = ()

    def member(self, budget, name):
        return MISSING

    def __repr__(self):
        return f"<{type(self).__name__.lower()}>"


class Function(Owned):
    """What a template can call: a global function, a bound method or a macro.

    Args:
        implementation: called with (budget, *bound, *args, **kwargs).
        members: what a template can read of it.
    """

    __slots__ = ("_bound", "_implementation", "_members")

    def __init__(self, implementation, *bound, members=None):
        self._implementation = implementation
        self._bound = bound
        self._members = members

    def call(self, budget, args, kwargs):
        return self._implementation(budget, *self._bound, *args, **kwargs)

    def member(self, budget, name):
        return (self._members or {}).get(name, MISSING)


def bind(macro, parameters, extras, scope, args, kwargs):
    """Give a macro's scope its arguments; `extras` says which of "varargs" and "kwargs" the body
    names."""
    for index, (name, default) in enumerate(parameters):
        if index < len(args):
            value = args[index]
        elif name in kwargs:
            value = kwargs.pop(name)
        elif default is not None:
            value = default(scope)
        else:
            value = Undefined(f"parameter {name!r} was not given")
        scope.names[name] = value
    for extra, rest in (("varargs", args[len(parameters) :]), ("kwargs", kwargs)):
        if extra in extras:
            scope.names[extra] = rest
        elif rest:
            raise Fault(f"macro {macro!r} does not take {extra}: {len(rest)} too many")


class Namespace(Owned):
    """namespace(...): the one object whose members a template can set."""

    __slots__ = ("members",)

    def __init__(self, members):
        self.members = {}
        for name, value in members.items():
            self.set(name, value)

    def member(self, budget, name):
        value = self.members.get(name, MISSING)
        return value.text(budget) if type(value) is Growing else value

    def set(self, name, value):
        if not isinstance(name, str):
            raise Fault(f"a namespace has names, not {kind_name(name)} keys")
        if name.startswith("_"):
            raise Fault(f"a namespace has no room for {name!r}: names must not start with '_'")
        self.members[name] = value


class Loop(Owned):
    """The `loop` variable of a for block; it also drives the walk.

    Items are taken one at a time, so that a filter sees what the body did, and one ahead only when
    asked.
    """

    __slots__ = ("_after", "_before", "_changed", "_current", "_items", "_length", "_source", "at")

    def __init__(self, source):
        self._source = source
        self._items = iter(source)
        self._length = None
        self._before = self._current = self._after = self._changed = MISSING
        self.at = -1

    def advance(self):
        """The next item, or MISSING at the end."""
        self._before, self._current = self._current, self._peek()
        self._after = MISSING
        self.at += 1
        return self._current

    def member(self, budget, name):
        read = self.MEMBERS.get(name)
        return MISSING if read is None else read(self)

    def _peek(self):
        if self._after is MISSING:
            self._after = next(self._items, MISSING)
        return self._after

    def _num_items(self):
        if self._length is None and isinstance(self._source, Sized):
            self._length = len(self._source)
        elif self._length is None:
            rest = list(self._items)
            self._items = iter(rest)
            self._length = len(rest) + self.at + 1 + (self._after is not MISSING)
        return self._length

    def _cycle(self, _budget, *values):
        return values[self.at % len(values)]

    def _has_changed(self, budget, *values):
        budget.weigh(values)
        is_same = self._changed == values
        self._changed = values
        return not is_same

    MEMBERS = {
        "index": lambda loop: loop.at + 1,
        "index0": lambda loop: loop.at,
        "revindex": lambda loop: loop._num_items() - loop.at,
        "revindex0": lambda loop: loop._num_items() - loop.at - 1,
        "first": lambda loop: loop.at == 0,
        "last": lambda loop: loop._peek() is MISSING,
        "length": _num_items,
        "depth": lambda loop: 1,
        "depth0": lambda loop: 0,
        "previtem": lambda loop: _or_undefined(loop._before, "there is no previous item"),
        "nextitem": lambda loop: _or_undefined(loop._peek(), "there is no next item"),
        "cycle": lambda loop: Function(loop._cycle),
        "changed": lambda loop: Function(loop._has_changed),
    }


def _or_undefined(value, reason):
    return Undefined(reason) if value is MISSING else value


NUMBERS = (bool, int, float)
SEQUENCES = (str, list, tuple, range)
KEYS, VALUES, ENTRIES = type({}.keys()), type({}.values()), type({}.items())
# What Python walks to the bottom when it compares, hashes or prints it.
CONTAINERS = (list, tuple, dict, KEYS, VALUES, ENTRIES)
ITERABLES = (*SEQUENCES, dict, KEYS, VALUES, ENTRIES, Stream, Undefined)
_WEIGHED = (int, *ITERABLES)
_KIND_NAMES = {type(None): "none", bool: "boolean", int: "integer", float: "number", str: "string"}

_PLAIN = {*_KIND_NAMES, list, tuple, dict}


def kind_name(value):
    """The kind of a value in a template author's words."""
    return _KIND_NAMES.get(type(value)) or type(value).__name__.lower()


def iterate(value):
    """A Python iterator over what a template may walk; Fault for anything else."""
    if not isinstance(value, ITERABLES):
        raise Fault(f"{kind_name(value)} is not iterable")
    return iter(value)


def listing(budget, value):
    """A new list of what `value` walks over."""
    items = iterate(value)
    if not isinstance(value, Stream):
        budget.take(ITEMS, len(value))
        return list(items)
    taken = []
    for item in items:
        taken.append(item)
        budget.take(ITEMS, 1)
    return taken


def to_text(budget, value):
    """The string that printing `value` writes."""
    if isinstance(value, str):
        return value
    if isinstance(value, _WEIGHED):
        budget.printed(value)
    return str(value)


def check_variables(variables):
    """Refuse what is not a plain value, so that no foreign object's code runs inside a render.

    Raises:
        TemplateError: names the variable; also for values nested deeper than MAX_VALUE_DEPTH.
    """
    for name, value in variables.items():
        for depth, level in levels(value):
            if depth > MAX_VALUE_DEPTH:
                raise TemplateError(
                    f"template variable {name!r} is nested more than {MAX_VALUE_DEPTH} deep"
                )
            for kind in set(map(type, level)) - _PLAIN:
                raise TemplateError(
                    f"template variable {name!r} holds a {kind.__name__}, not a JSON value"
                )
