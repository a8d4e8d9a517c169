"""The expression half of the parser: tokens to the functions of nodes.py.

Owns precedence. From loosest to tightest: inline if, or, and, not, comparisons and `in`, + -, ~, *
/ // %, **, signs; then calls, subscripts, filters and `is` tests. All binary operators group to the
left, ** included, as in jinja2.
"""

from typing import NoReturn

from marlin.text.template import nodes
from marlin.text.template.filters import FILTERS
from marlin.text.template.limits import MAX_NESTING, located
from marlin.text.template.methods import attribute, cut, item
from marlin.text.template.tests import TESTS

_COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
_PRECEDENCE = {"+": 1, "-": 1, "~": 2, "*": 3, "/": 3, "//": 3, "%": 3, "**": 4}
# Each in Python's spelling, too.
CONSTANTS = {"true": True, "false": False, "none": None}
CONSTANTS |= {str(value): value for value in CONSTANTS.values()}
_CLOSING = ("end_print", "end_tag", "end")


class ExpressionParser:
    """Walks a token list.

    Attributes:
        tokens: all of them.
        position: of the current one.
        token: the current one.
        names: every name that an expression has mentioned, in order.
        chain: the last Chain that was parsed.
    """

    def __init__(self, tokens):
        self.tokens = tokens
        self.position = 0
        self.token = tokens[0]
        self.names = []
        self.chain: nodes.Chain | None = None
        self._depth = 0

    def advance(self):
        """The current token, stepping past it."""
        token = self.token
        self.position = min(self.position + 1, len(self.tokens) - 1)
        self.token = self.tokens[self.position]
        return token

    def _is_ahead(self, kind, value):
        ahead = self.tokens[min(self.position + 1, len(self.tokens) - 1)]
        return ahead.kind == kind and ahead.value == value

    def fail(self, message, line=None) -> NoReturn:
        raise located(line or self.token.line, message)

    def at(self, *values):
        """Whether the current token is one of these operators or words."""
        return self.token.kind in ("operator", "name") and self.token.value in values

    def accept(self, value):
        return self.advance() if self.at(value) else None

    def expect(self, value):
        if not self.at(value):
            self.fail(f"expected {value!r}, found {self.found()}")
        return self.advance()

    def expect_kind(self, kind):
        if self.token.kind != kind:
            self.fail(f"expected {kind.replace('_', ' of ')}, found {self.found()}")
        return self.advance()

    def found(self):
        if self.token.kind in _CLOSING:
            return self.token.kind.replace("_", " of ")
        return repr(self.token.value)[:60]

    def deepen(self):
        self._depth += 1
        if self._depth > MAX_NESTING:
            self.fail(f"nesting limit: brackets or blocks more than {MAX_NESTING} deep")

    def rise(self):
        self._depth -= 1

    def expression(self, inline_if=True):
        """One expression; `inline_if=False` leaves a following `if` alone."""
        self.deepen()
        node = self._choice("or", "and")
        while inline_if and self.accept("if"):
            test = self._choice("or", "and")
            otherwise = self.expression() if self.accept("else") else nodes.without_else
            node = nodes.conditional(test, node, otherwise)
        self.rise()
        return node

    def tuple_or_expression(self, inline_if=True, stop=None, allow_empty=False):
        """One expression, or several with commas between: a tuple. The word `stop` ends it."""
        items, is_tuple = [], False
        while not (self.token.kind in _CLOSING or self.at(")") or (stop and self.at(stop))):
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
        choices = [self._choice(*tighter) if tighter else self._not()]
        while self.accept(word):
            choices.append(self._choice(*tighter) if tighter else self._not())
        return choices[0] if len(choices) == 1 else nodes.deciding(choices, word == "or")

    def _not(self):
        num_nots = 0
        while self.accept("not"):
            num_nots += 1
        node = self._comparison()
        if not num_nots:
            return node
        return lambda scope: bool(node(scope)) is (num_nots % 2 == 0)

    def _comparison(self):
        first = self._arithmetic()
        rest = []
        while self.at(*_COMPARISONS, "in") or (self.at("not") and self._is_ahead("name", "in")):
            symbol = self.advance().value
            if symbol == "not":
                self.advance()
                symbol = "not in"
            rest.append((symbol, self._arithmetic()))
        return nodes.compared(first, rest) if rest else first

    def _arithmetic(self, floor=1):
        start, first = self.position, self._signed()
        symbols, operands = [], []
        while self.token.kind == "operator":
            precedence = _PRECEDENCE.get(self.token.value, 0)
            if precedence < floor:
                break
            symbols.append(self.advance().value)
            operands.append(self._arithmetic(precedence + 1))
        if not operands:
            return first
        self.chain = nodes.Chain(start, self.position, first, symbols, operands)
        return self.chain.evaluate

    def _signed(self):
        signs = []
        while self.at("-", "+"):
            signs.append(self.advance().value)
        node = self._postfix(self._primary())
        return self._filtered(nodes.with_signs(signs[::-1], node) if signs else node)

    def _primary(self):
        token = self.token
        if token.kind == "name":
            name = self.advance().value
            if name in CONSTANTS:
                return nodes.constant(CONSTANTS[name])
            self.names.append(name)
            return lambda scope: scope.find(name)
        if token.kind == "string":
            parts = []
            while self.token.kind == "string":
                parts.append(self.advance().value)
            return nodes.constant("".join(parts))
        if token.kind == "number":
            return nodes.constant(self.advance().value)
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
        if self.accept("{"):
            return nodes.dict_of(self._listed("}", self._pair))
        return self.fail(f"expected an expression, found {self.found()}")

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

    def _postfix(self, node):
        num_steps = 0
        while self.at(".", "[", "("):
            num_steps = self._count_step(num_steps)
            if self.at("("):
                node = nodes.call(node, self.arguments())
            elif self.advance().value == "[":
                node = self._subscript(node)
            else:
                node = self._member(node)
        return node

    def _count_step(self, num_steps):
        if num_steps >= MAX_NESTING:
            self.fail(f"nesting limit: more than {MAX_NESTING} calls or filters in a row")
        return num_steps + 1

    def _member(self, node):
        if self.token.kind == "number" and isinstance(self.token.value, int):
            key = self.advance().value
            return lambda scope: item(scope.budget, node(scope), key)
        name = self.expect_kind("name").value
        return lambda scope: attribute(scope.budget, node(scope), name)

    def _subscript(self, node):
        if self.at("]"):
            self.fail("expected a subscript, found ']'")
        start = nodes.constant(None)
        if not self.at(":"):
            start = self.tuple_or_expression(stop="]")
            if self.accept("]"):
                return lambda scope: item(scope.budget, node(scope), start(scope))
        bounds = [start]
        while self.accept(":"):
            bounds.append(nodes.constant(None) if self.at(":", "]") else self.expression())
        self.expect("]")
        if len(bounds) > 3:
            self.fail("a slice has at most three parts")
        return lambda scope: cut(
            scope.budget, node(scope), slice(*[bound(scope) for bound in bounds])
        )

    def _filtered(self, node):
        num_steps = 0
        while self.at("|", "is", "("):
            num_steps = self._count_step(num_steps)
            if self.at("("):
                node = nodes.call(node, self.arguments())
            elif self.accept("|"):
                node = nodes.piped(node, self.filter())
            else:
                node = self._test(node)
        return node

    def filter(self):
        """`name(arguments)` as a function of (scope, value)."""
        name = self._dotted_name()
        arguments = self.arguments() if self.at("(") else nodes.no_arguments
        return nodes.applied(FILTERS, "filter", name, arguments)

    def _dotted_name(self):
        name = self.expect_kind("name").value
        while self.accept("."):
            name += "." + self.expect_kind("name").value
        return name

    def _test(self, node):
        self.expect("is")
        is_negated = self.accept("not")
        name = self._dotted_name()
        arguments = nodes.no_arguments
        if self.at("("):
            arguments = self.arguments()
        elif self.token.kind in ("name", "string", "number") or self.at("[", "{"):
            if self.at("is"):
                self.fail("tests cannot be chained: use 'and'")
            if not self.at("else", "or", "and"):
                arguments = nodes.bound([self._postfix(self._primary())], [], {})
        test = nodes.piped(node, nodes.applied(TESTS, "test", name, arguments))
        return (lambda scope: not test(scope)) if is_negated else test

    def arguments(self):
        """`(a, b, name=c, *d, **e)` as a function of the scope that gives (list, dict)."""
        self.expect("(")
        positional, keywords, stars = [], [], {}
        while not self.at(")"):
            star = self.accept("*") or self.accept("**")
            if star:
                if star.value in stars or "**" in stars:
                    self.fail("misplaced * in a call")
                stars[star.value] = self.expression()
            elif self._is_ahead("operator", "=") and "**" not in stars:
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
        return nodes.bound(positional, keywords, stars)
