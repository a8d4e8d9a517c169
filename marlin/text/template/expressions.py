"""The expression half of the parser: tokens to functions of a Scope that give a value.

Owns precedence. From loosest to tightest: inline if, or, and, not, comparisons and `in`, + -, ~, *
/ // %, **, signs; then calls, subscripts, filters and `is` tests. All binary operators group to the
left, ** included, as in jinja2.

A function holds only what its tokens say, so one parsed template serves any number of threads; all
that changes in a render is in its Scope and Budget. It raises FAULTS, which statements give a line.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from marlin.text.template.filters import FILTERS, TESTS
from marlin.text.template.lexer import TokenReader
from marlin.text.template.limits import ITEMS, MAX_NESTING, Fault
from marlin.text.template.methods import attribute, cut, item
from marlin.text.template.operators import compare, fold, signed
from marlin.text.template.values import Function, Scope, Undefined, iterate, kind_name

Node = Callable[[Scope], Any]

_COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
_PRECEDENCE = {"+": 1, "-": 1, "~": 2, "*": 3, "/": 3, "//": 3, "%": 3, "**": 4}
# Each in Python's spelling, too.
CONSTANTS = {"true": True, "false": False, "none": None}
CONSTANTS |= {str(value): value for value in CONSTANTS.values()}


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


def _constant(value):
    return lambda scope: value


class ExpressionParser(TokenReader):
    """
    Attributes:
        names: every name that an expression has mentioned, in order.
        chain: the last Chain that was parsed.
    """

    def __init__(self, tokens):
        super().__init__(tokens)
        self.names = []
        self.chain: Chain | None = None
        self._steps_by_opener = {
            "(": self._called,
            ".": self._member,
            "[": self._subscript,
            "|": self._filtered,
            "is": self._tested,
        }

    def expression(self, inline_if=True):
        """One expression; `inline_if=False` leaves a following `if` alone."""
        self.deepen()
        node = self._choice("or", "and")
        while inline_if and self.accept("if"):
            node = self._conditional(node)
        self.rise()
        return node

    def _conditional(self, then):
        test = self._choice("or", "and")
        if self.accept("else"):
            otherwise = self.expression()
            return lambda scope: then(scope) if test(scope) else otherwise(scope)
        missing = Undefined("the condition of an inline if is false, and it has no else")
        return lambda scope: then(scope) if test(scope) else missing

    def tuple_or_expression(self, inline_if=True, stop=None, allow_empty=False):
        """One expression, or several with commas between: a tuple. The word `stop` ends it."""
        items, is_tuple = [], False
        while not (self.at_end() or self.at(")") or (stop and self.at(stop))):
            items.append(self.expression(inline_if))
            if not self.accept(","):
                break
            is_tuple = True
        if is_tuple or (allow_empty and not items):
            return lambda scope: tuple([node(scope) for node in items])
        if not items:
            self.fail(f"expected an expression, found {self.found()}")
        return items[0]

    def _choice(self, word, *tighter):
        """a or b or c, a and b and c: the value that decides."""
        nodes = [self._choice(*tighter) if tighter else self._not()]
        while self.accept(word):
            nodes.append(self._choice(*tighter) if tighter else self._not())
        if len(nodes) == 1:
            return nodes[0]

        def evaluate(scope):
            for node in nodes:
                value = node(scope)
                if bool(value) is (word == "or"):
                    break
            return value

        return evaluate

    def _not(self):
        num_nots = 0
        while self.accept("not"):
            num_nots += 1
        node = self._comparison()
        if not num_nots:
            return node
        return lambda scope: bool(node(scope)) is (num_nots % 2 == 0)

    def _comparison(self):
        """Whether each neighbouring pair of a < b < c compares true."""
        first, rest = self._arithmetic(), []
        while self.at(*_COMPARISONS, "in") or (self.at("not") and self.is_ahead("name", "in")):
            symbol = self.advance().value
            if symbol == "not":
                self.advance()
                symbol = "not in"
            rest.append((symbol, self._arithmetic()))
        if not rest:
            return first

        def evaluate(scope):
            left = first(scope)
            for symbol, node in rest:
                right = node(scope)
                if not compare(scope.budget, symbol, left, right):
                    return False
                left = right
            return True

        return evaluate

    def _arithmetic(self, floor=1):
        start, first = self.position, self._signed()
        symbols, nodes = [], []
        while self.token.kind == "operator":
            precedence = _PRECEDENCE.get(self.token.value, 0)
            if precedence < floor:
                break
            symbols.append(self.advance().value)
            nodes.append(self._arithmetic(precedence + 1))
        if not nodes:
            return first
        self.chain = Chain(start, self.position, first, symbols, nodes)
        return self.chain.evaluate

    def _signed(self):
        signs = []
        while self.at("-", "+"):
            signs.insert(0, self.advance().value)
        operand = self._steps(self._primary(), "(", ".", "[")
        if not signs:
            return self._steps(operand, "(", "|", "is")

        def evaluate(scope):
            value = operand(scope)
            for sign in signs:
                value = signed(scope.budget, sign, value)
            return value

        return self._steps(evaluate, "(", "|", "is")

    def _primary(self):
        if self.token.kind == "name":
            name = self.advance().value
            if name in CONSTANTS:
                return _constant(CONSTANTS[name])
            self.names.append(name)
            return lambda scope: scope.find(name)
        if self.token.kind == "string":
            parts = []
            while self.token.kind == "string":
                parts.append(self.advance().value)
            return _constant("".join(parts))
        if self.token.kind == "number":
            return _constant(self.advance().value)
        return self._display()

    def _display(self):
        if self.accept("("):
            self.deepen()
            node = self.tuple_or_expression(allow_empty=True)
            self.rise()
            self.expect(")")
            return node
        if self.accept("["):
            items = self._listed("]", self.expression)
            return lambda scope: [node(scope) for node in items]
        if not self.accept("{"):
            self.fail(f"expected an expression, found {self.found()}")
        pairs = self._listed("}", self._pair)

        def evaluate(scope):
            entries = {}
            for key_node, value_node in pairs:
                key = key_node(scope)
                scope.budget.key(key, entries)
                entries[key] = value_node(scope)
            return entries

        return evaluate

    def _listed(self, closing, parse_item):
        items = []
        while not self.at(closing):
            items.append(parse_item())
            if not self.at(closing):
                self.expect(",")
        self.advance()
        return items

    def _pair(self):
        key = self.expression()
        self.expect(":")
        return key, self.expression()

    def _steps(self, node, *openers):
        """What follows an operand, from left to right, as far as it opens with one of these."""
        num_steps = 0
        while self.at(*openers):
            if num_steps == MAX_NESTING:
                self.fail(f"nesting limit: more than {MAX_NESTING} calls or filters in a row")
            num_steps += 1
            node = self._steps_by_opener[self.token.value](node)
        return node

    def _called(self, callee):
        arguments = self._arguments()

        def evaluate(scope):
            function = callee(scope)
            if not isinstance(function, Function):
                if type(function) is Undefined:
                    function.fail()
                raise Fault(f"{kind_name(function)} cannot be called")
            args, kwargs = arguments(scope)
            return function.call(scope.budget, args, kwargs)

        return evaluate

    def _member(self, node):
        self.advance()
        if self.token.kind == "number" and isinstance(self.token.value, int):
            key = self.advance().value
            return lambda scope: item(scope.budget, node(scope), key)
        name = self.expect_kind("name").value
        return lambda scope: attribute(scope.budget, node(scope), name)

    def _subscript(self, node):
        self.advance()
        if self.at("]"):
            self.fail("expected a subscript, found ']'")
        start = _constant(None)
        if not self.at(":"):
            start = self.tuple_or_expression(stop="]")
            if self.accept("]"):
                return lambda scope: item(scope.budget, node(scope), start(scope))
        bounds = [start]
        while self.accept(":"):
            bounds.append(_constant(None) if self.at(":", "]") else self.expression())
        self.expect("]")
        if len(bounds) > 3:
            self.fail("a slice has at most three parts")

        def evaluate(scope):
            value = node(scope)
            return cut(scope.budget, value, slice(*[bound(scope) for bound in bounds]))

        return evaluate

    def _filtered(self, node):
        self.advance()
        apply = self.filter()
        return lambda scope: apply(scope, node(scope))

    def filter(self):
        """`name(arguments)` as a function of (scope, value)."""
        name = self._dotted_name()
        arguments = self._arguments() if self.at("(") else _constant(((), {}))
        return self._applied(FILTERS, "filter", name, arguments)

    def _applied(self, table, kind, name, arguments):
        function = table.get(name)

        def apply(scope, value):
            if function is None:
                raise Fault(f"no {kind} named {name!r}")
            args, kwargs = arguments(scope)
            return function(scope.budget, value, *args, **kwargs)

        return apply

    def _dotted_name(self):
        name = self.expect_kind("name").value
        while self.accept("."):
            name += "." + self.expect_kind("name").value
        return name

    def _tested(self, node):
        self.advance()
        is_wanted = not self.accept("not")
        name = self._dotted_name()
        arguments = _constant(((), {}))
        if self.at("("):
            arguments = self._arguments()
        elif self.token.kind in ("name", "string", "number") or self.at("[", "{"):
            if self.at("is"):
                self.fail("tests cannot be chained: use 'and'")
            if not self.at("else", "or", "and"):
                argument = self._steps(self._primary(), "(", ".", "[")
                arguments = lambda scope: ((argument(scope),), {})  # noqa: E731
        apply = self._applied(TESTS, "test", name, arguments)
        return lambda scope: bool(apply(scope, node(scope))) is is_wanted

    def _arguments(self):
        """`(a, b, name=c, *d, **e)` as a function of the scope that gives (list, dict)."""
        self.expect("(")
        positional, keywords, stars = [], [], {}
        while not self.at(")"):
            star = self.accept("*") or self.accept("**")
            if star:
                if star.value in stars or "**" in stars:
                    self.fail("misplaced * in a call")
                stars[star.value] = self.expression()
            elif self.is_ahead("operator", "=") and "**" not in stars:
                name = self.expect_kind("name").value
                self.advance()
                keywords.append((name, self.expression()))
            elif keywords or stars:
                self.fail("positional argument after a keyword argument")
            else:
                positional.append(self.expression())
            if not self.at(")"):
                self.expect(",")
        self.advance()
        return _evaluated(positional, keywords, stars)


def _evaluated(positional, keywords, stars):
    if not keywords and not stars:
        return lambda scope: ([node(scope) for node in positional], {})

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
