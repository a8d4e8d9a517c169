"""What a template may hold: plain JSON values and the interpreter's own objects.

Plain values are None, bool, int, float, str, list, tuple, dict (exactly these types), ranges and
dict views. An object of the interpreter lists the members that a template can read. This file knows
no expression, filter or method.
"""

from collections.abc import Sized

from marlin.errors import TemplateError
from marlin.text.template.limits import MAX_VALUE_DEPTH, Fault

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

    def __bool__(self):
        return False

    def __len__(self):
        return 0

    def __iter__(self):
        return iter(())

    def __reversed__(self):
        return iter(())

    def __str__(self):
        return ""

    def __repr__(self):
        return "Undefined"

    __lt__ = __le__ = __gt__ = __ge__ = __abs__ = __int__ = __float__ = __index__ = __round__ = fail


class Safe(str):
    """Text that the filters safe and escape give: what + adds to it is escaped, as by jinja2's
    Markup. Most other filters make plain text of it, and it has no methods here."""

    __slots__ = ()


# The end of a Joined takes text up to this length, so that it has few parts however it grew.
TAIL_CHARS = 512


class Joined:
    """Text made of two parts, put together when it is looked at and not before.

    A template that builds its output in a variable, a piece at a time, so copies each piece once
    and not once for every piece after it. Only what a `set` stores can be one, and only the left
    side of ~ and + and a print read it as it is: everything else reads whole().

    Args:
        head: str or Joined.
        tail: str.
    """

    __slots__ = ("_head", "_tail", "num_chars")

    def __init__(self, head, tail):
        self._head = head
        self._tail = tail
        self.num_chars = (len(head) if isinstance(head, str) else head.num_chars) + len(tail)

    def plus(self, text):
        if len(self._tail) + len(text) <= TAIL_CHARS:
            return Joined(self._head, self._tail + text)
        return Joined(self, text)

    def text(self, budget):
        if not isinstance(self._head, str) or self._tail:
            budget.chars(self.num_chars)
            parts, each = [], self
            while isinstance(each, Joined):
                parts.append(each._tail)
                each = each._head
            parts.append(each)
            self._head, self._tail = "".join(reversed(parts)), ""
        return self._head


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

    def member(self, name):
        return MISSING

    def __repr__(self):
        return f"<{type(self).__name__.lower()}>"


class Invocable(Owned):
    """An Owned that a template can call: invoke(budget, args, kwargs)."""

    __slots__ = ()

    def invoke(self, budget, args, kwargs):
        raise NotImplementedError


class Function(Invocable):
    """A global function or a bound method: implementation(budget, *bound, *args, **kwargs)."""

    __slots__ = ("_bound", "_implementation")

    def __init__(self, implementation, *bound):
        self._implementation = implementation
        self._bound = bound

    def invoke(self, budget, args, kwargs):
        return self._implementation(budget, *self._bound, *args, **kwargs)


class Namespace(Owned):
    """namespace(...): the one object whose members a template can set."""

    __slots__ = ("_members",)

    def __init__(self, members):
        self._members = {}
        for name, value in members.items():
            self.set(name, value)

    def member(self, name):
        return self._members.get(name, MISSING)

    def set(self, name, value):
        if not isinstance(name, str):
            raise Fault(f"a namespace has names, not {kind_name(name)} keys")
        if name.startswith("_"):
            raise Fault(f"a namespace has no room for {name!r}: names must not start with '_'")
        self._members[name] = value


class Loop(Owned):
    """The `loop` variable of a for block; it also drives the walk.

    Items are taken one at a time, so that a filter sees what the body did, and one ahead only when
    asked.
    """

    __slots__ = (
        "_after",
        "_before",
        "_changed",
        "_current",
        "_items",
        "_length",
        "_source",
        "index0",
    )

    def __init__(self, source):
        self._source = source
        self._items = iter(source)
        self._length = None
        self._before = self._current = self._after = self._changed = MISSING
        self.index0 = -1

    def advance(self):
        """The next item, or MISSING at the end."""
        item = self._peek()
        if item is not MISSING:
            self._after = MISSING
            self._before, self._current = self._current, item
            self.index0 += 1
        return item

    def member(self, name):
        getter = self.MEMBERS.get(name)
        return MISSING if getter is None else getter(self)

    def _peek(self):
        if self._after is MISSING:
            self._after = next(self._items, MISSING)
        return self._after

    def _num_items(self):
        if self._length is None:
            if isinstance(self._source, Sized):
                self._length = len(self._source)
            else:
                rest = list(self._items)
                self._items = iter(rest)
                self._length = len(rest) + self.index0 + 1 + (self._after is not MISSING)
        return self._length

    def _previous(self):
        return Undefined("there is no previous item") if self.index0 == 0 else self._before

    def _next(self):
        item = self._peek()
        return Undefined("there is no next item") if item is MISSING else item

    def _cycle(self, _budget, *values):
        if not values:
            raise Fault("loop.cycle() needs values")
        return values[self.index0 % len(values)]

    def _has_changed(self, budget, *values):
        budget.weigh(values)
        if self._changed == values:
            return False
        self._changed = values
        return True

    MEMBERS = {
        "index": lambda loop: loop.index0 + 1,
        "index0": lambda loop: loop.index0,
        "revindex": lambda loop: loop._num_items() - loop.index0,
        "revindex0": lambda loop: loop._num_items() - loop.index0 - 1,
        "first": lambda loop: loop.index0 == 0,
        "last": lambda loop: loop._peek() is MISSING,
        "length": _num_items,
        "depth": lambda loop: 1,
        "depth0": lambda loop: 0,
        "previtem": _previous,
        "nextitem": _next,
        "cycle": lambda loop: Function(loop._cycle),
        "changed": lambda loop: Function(loop._has_changed),
    }


_KEYS, _VALUES, _ITEMS = type({}.keys()), type({}.values()), type({}.items())
_SEQUENCES = (str, list, tuple, range)
_ITERABLES = (*_SEQUENCES, dict, _KEYS, _VALUES, _ITEMS, Stream, Undefined)
_WEIGHED = (int, *_ITERABLES)
_KIND_NAMES = {type(None): "none", bool: "boolean", int: "integer", float: "number", str: "string"}


def kind_name(value):
    """The kind of a value in a template author's words."""
    return _KIND_NAMES.get(type(value)) or type(value).__name__.lower()


def iterate(value):
    """A Python iterator over what a template may walk; Fault for anything else."""
    if not isinstance(value, _ITERABLES):
        raise Fault(f"{kind_name(value)} is not iterable")
    return iter(value)


def is_iterable(value):
    return isinstance(value, _ITERABLES)


def is_sequence(value):
    return isinstance(value, (*_SEQUENCES, dict, Undefined))


def listing(budget, value):
    """A new list of what `value` walks over."""
    items = iterate(value)
    if not isinstance(value, Stream):
        budget.items(len(value))
        return list(items)
    taken = []
    for item in items:
        taken.append(item)
        budget.items(1)
    return taken


def whole(budget, value):
    """value, put together if it is a Joined."""
    return value.text(budget) if type(value) is Joined else value


def to_text(budget, value):
    """The string that printing `value` writes."""
    if isinstance(value, str):
        return value
    if type(value) is Joined:
        return value.text(budget)
    if isinstance(value, _WEIGHED):
        budget.printed(value)
    return str(value)


def check_variables(variables):
    """Refuse what is not a plain value, so that no foreign object's code runs inside a render.

    Raises:
        TemplateError: names the variable; also for values nested deeper than MAX_VALUE_DEPTH.
    """
    for name, value in variables.items():
        level, depth = [value], 0
        while level:
            depth += 1
            if depth > MAX_VALUE_DEPTH:
                raise TemplateError(
                    f"template variable {name!r} is nested more than {MAX_VALUE_DEPTH} deep"
                )
            level = _children(name, level)


def _children(name, level):
    below = []
    for value in level:
        kind = type(value)
        if kind is dict:
            below.extend(value)
            below.extend(value.values())
        elif kind is list or kind is tuple:
            below.extend(value)
        elif kind is not str and kind not in _KIND_NAMES:
            raise TemplateError(
                f"template variable {name!r} holds a {kind.__name__}, not a JSON value"
            )
    return below
