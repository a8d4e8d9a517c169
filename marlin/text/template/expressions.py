"""The expression half of the parser: tokens to the nodes of nodes.py.

Owns precedence. From loosest to tightest: inline if, or, and, not, comparisons and `in`, + -, ~, *
/ // %, **, signs; then calls, subscripts, filters and `is` tests. All binary operators group to the
left, ** included, as in jinja2.
"""

from typing import NoReturn

from marlin.text.template import nodes
from marlin.text.template.limits import MAX_NESTING, located

_COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
_PRECEDENCE = {"+": 1, "-": 1, "~": 2, "*": 3, "/": 3, "//": 3, "%": 3, "**": 4}
# Each in Python's spelling, too.
CONSTANTS = {"true": True, "false": False, "none": None}
CONSTANTS |= {str(value): value for value in CONSTANTS.values()}
_CLOSING = ("end_print", "end_tag", "end")


class ExpressionParser:
    """Walks a token list.

    Attributes:
        token: the current one.
        num_tokens: taken so far; statements charge their bodies by it.
        names: every name that an expression has mentioned, in order.
    """

    def __init__(self, tokens):
        self._tokens = iter(tokens)
        self.token = next(self._tokens)
        self._ahead = next(self._tokens, self.token)
        self._depth = 0
        self.num_tokens = 0
        self.names = []

    def advance(self):
        """The current token, stepping past it."""
        token = self.token
        self.token = self._ahead
        self._ahead = next(self._tokens, self._ahead)
        self.num_tokens += 1
        return token

    def fail(self, message, line=None) -> NoReturn:
        raise located(line or self.token.line, message)

    def at(self, *values):
        """Whether the current token is one of these operators or words."""
        return self.token.kind in ("operator", "name") and self.token.value in values

    def accept(self, value):
        if self.at(value):
            return self.advance()
        return None

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
        node = self._or()
        while inline_if and self.accept("if"):
            test = self._or()
            otherwise = self.expression() if self.accept("else") else None
            node = nodes.Conditional(test, node, otherwise)
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
            return nodes.ListDisplay(items, tuple)
        if not items:
            self.fail(f"expected an expression, found {self.found()}")
        return items[0]

    def _or(self):
        operands = [self._and()]
        while self.accept("or"):
            operands.append(self._and())
        return operands[0] if len(operands) == 1 else nodes.Choice(operands, stop_at=True)

    def _and(self):
        operands = [self._not()]
        while self.accept("and"):
            operands.append(self._not())
        return operands[0] if len(operands) == 1 else nodes.Choice(operands, stop_at=False)

    def _not(self):
        num_nots = 0
        while self.accept("not"):
            num_nots += 1
        node = self._comparison()
        for _ in range(min(num_nots, 2 - num_nots % 2)):
            node = nodes.Not(node)
        return node

    def _comparison(self):
        first = self._arithmetic(1)
        rest = []
        while True:
            if self.at(*_COMPARISONS, "in"):
                symbol = self.advance().value
            elif self.at("not") and self._ahead.kind == "name" and self._ahead.value == "in":
                self.advance()
                self.advance()
                symbol = "not in"
            else:
                return nodes.Comparison(first, rest) if rest else first
            rest.append((symbol, self._arithmetic(1)))

    def _arithmetic(self, floor):
        left, level = self._signed(), None
        while self.token.kind == "operator":
            precedence = _PRECEDENCE.get(self.token.value, 0)
            if precedence < floor:
                break
            symbol = self.advance().value
            right = self._arithmetic(precedence + 1)
            if precedence != level:
                left, level = nodes.Arithmetic(left, []), precedence
            left.rest.append((symbol, right))
        return left

    def _signed(self):
        signs = []
        while self.at("-", "+"):
            signs.append(self.advance().value)
        node = self._postfix(self.primary())
        if signs:
            node = nodes.Signed(signs, node)
        return self._filtered(node)

    def primary(self):
        token = self.token
        if token.kind == "name":
            self.advance()
            if token.value in CONSTANTS:
                return nodes.Literal(CONSTANTS[token.value])
            self.names.append(token.value)
            return nodes.Name(token.value)
        if token.kind == "string":
            parts = []
            while self.token.kind == "string":
                parts.append(self.advance().value)
            return nodes.Literal("".join(parts))
        if token.kind == "number":
            return nodes.Literal(self.advance().value)
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
            return nodes.ListDisplay(items)
        if self.accept("{"):
            return nodes.DictDisplay(self._listed("}", self._pair))
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
                node = nodes.Call(node, self.arguments())
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
            return nodes.Item(node, nodes.Literal(self.advance().value))
        return nodes.Attribute(node, self.expect_kind("name").value)

    def _subscript(self, node):
        if self.at("]"):
            self.fail("expected a subscript, found ']'")
        start = None
        if not self.at(":"):
            start = self.tuple_or_expression(stop="]")
            if self.accept("]"):
                return nodes.Item(node, start)
        bounds = [start]
        while self.accept(":"):
            bounds.append(None if self.at(":", "]") else self.expression())
        self.expect("]")
        if len(bounds) > 3:
            self.fail("a slice has at most three parts")
        return nodes.Cut(node, bounds + [None] * (3 - len(bounds)))

    def _filtered(self, node):
        num_steps = 0
        while self.at("|", "is", "("):
            num_steps = self._count_step(num_steps)
            if self.at("|"):
                node = self.filter(node)
            elif self.at("("):
                node = nodes.Call(node, self.arguments())
            else:
                node = self._test(node)
        return node

    def filter(self, node):
        """`| name(arguments)` applied to a node, or to nothing yet when that is None."""
        self.expect("|")
        return self.filter_name(node)

    def filter_name(self, node):
        name = self._dotted_name()
        arguments = self.arguments() if self.at("(") else nodes.Arguments()
        return nodes.Filter(node, name, arguments)

    def _dotted_name(self):
        name = self.expect_kind("name").value
        while self.accept("."):
            name += "." + self.expect_kind("name").value
        return name

    def _test(self, node):
        self.expect("is")
        is_negated = self.accept("not")
        name = self._dotted_name()
        arguments = nodes.Arguments()
        if self.at("("):
            arguments = self.arguments()
        elif self.token.kind in ("name", "string", "number") or self.at("[", "{"):
            if self.at("is"):
                self.fail("tests cannot be chained: use 'and'")
            if not self.at("else", "or", "and"):
                arguments = nodes.Arguments([self._postfix(self.primary())])
        test = nodes.Test(node, name, arguments)
        return nodes.Not(test) if is_negated else test

    def arguments(self):
        """`(a, b, name=c, *d, **e)`."""
        self.expect("(")
        positional, keywords, stars = [], [], {}
        while not self.at(")"):
            star = self.accept("*") or self.accept("**")
            if star:
                if star.value in stars or "**" in stars:
                    self.fail("misplaced * in a call")
                stars[star.value] = self.expression()
            elif self._ahead.kind == "operator" and self._ahead.value == "=" and "**" not in stars:
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
        return nodes.Arguments(positional, keywords, stars.get("*"), stars.get("**"))
