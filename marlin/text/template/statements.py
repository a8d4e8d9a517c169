"""The statement half of the parser: a token list to one function of nodes.py.

Owns tags and how blocks nest. Tags that load other templates (include, import, extends) are
refused: a chat template stands alone.
"""

from marlin.text.template import nodes
from marlin.text.template.expressions import CONSTANTS, ExpressionParser
from marlin.text.template.lexer import tokenize

_EXTRA_NAMES = ("varargs", "kwargs")
_REFUSED_TAGS = ("include", "import", "from", "extends")


def parse(source):
    """Parse a template.

    Returns:
        the statement that it is.

    Raises:
        TemplateError: with the line, for what is not valid or breaks a limit.
    """
    return _TemplateParser(tokenize(source)).template()


class _TemplateParser(ExpressionParser):
    def __init__(self, tokens):
        super().__init__(tokens)
        self._num_loops = 0
        self._num_inner_tokens = 0
        self._tags = {
            "block": self._block,
            "break": self._loop_control,
            "continue": self._loop_control,
            "filter": self._filter_block,
            "for": self._for,
            "generation": self._generation,
            "if": self._if,
            "macro": self._macro,
            "print": self._print,
            "set": self._set,
            "with": self._with,
        }

    def template(self):
        body = self._body(1)
        if self.token.kind != "end":
            self.fail(f"unexpected tag {self.token.value!r}")
        return body

    def _body(self, line, *end_words):
        """Statements up to a tag that opens with an end word, which becomes the current token.

        `line` is that of the tag that opens the body.
        """
        self.deepen()
        start, num_outer = self.position, self._num_inner_tokens
        self._num_inner_tokens = 0
        parsed = []
        while self.token.kind != "end":
            token = self.advance()
            if token.kind == "data":
                parsed.append((token.line, nodes.writing(token.value)))
            elif token.kind == "begin_print":
                parsed.append((token.line, nodes.printing(self.tuple_or_expression())))
                self.expect_kind("end_print")
            elif self.at(*end_words):
                break
            else:
                parsed.append(self._statement())
        if end_words and self.token.kind == "end":
            self.fail(f"this block has no {' or '.join(end_words)}", line)
        num_tokens = self.position - start
        body = nodes.in_a_row(parsed, line, num_tokens - self._num_inner_tokens)
        self._num_inner_tokens = num_outer + num_tokens
        self.rise()
        return body

    def _statement(self):
        word = self.expect_kind("name")
        if word.value in _REFUSED_TAGS:
            self.fail(f"{word.value!r} is refused: a chat template stands alone", word.line)
        parse_tag = self._tags.get(word.value)
        if parse_tag is None:
            self.fail(f"unknown tag {word.value!r}", word.line)
        statement = parse_tag(word)
        self.expect_kind("end_tag")
        return word.line, statement

    def _block_body(self, *end_words):
        self.accept(":")
        line = self.expect_kind("end_tag").line
        return self._body(line, *end_words)

    def _closed_body(self, end_word):
        body = self._block_body(end_word)
        self.advance()
        return body

    def _if(self, word):
        branches, otherwise = [], None
        while True:
            test = self.tuple_or_expression(inline_if=False)
            branches.append((test, self._block_body("elif", "else", "endif")))
            closing = self.advance().value
            if closing == "else":
                otherwise = self._closed_body("endif")
            if closing != "elif":
                return nodes.first_true(branches, otherwise)

    def _for(self, word):
        assign = self._target(stop="in")
        self.expect("in")
        source = self.tuple_or_expression(inline_if=False)
        test = self._metered() if self.accept("if") else None
        self._num_loops += 1
        body = self._block_body("endfor", "else")
        self._num_loops -= 1
        otherwise = self._closed_body("endfor") if self.advance().value == "else" else None
        return nodes.for_each(assign, source, test, body, otherwise)

    def _loop_control(self, word):
        if not self._num_loops:
            self.fail(f"{word.value!r} outside a loop", word.line)
        return lambda scope, out: word.value

    def _set(self, word):
        start = self.position
        assign = self._target(with_namespace=True)
        if not self.at("="):
            filters = self._filter_chain()
            return nodes.captured(self._closed_body("endset"), filters, assign)
        target = [token.value for token in self.tokens[start : self.position]]
        start = self.advance() and self.position
        node, chain = self.tuple_or_expression(), self.chain
        if chain and (chain.start, chain.end) == (start, self.position):
            first = self.tokens[start : start + len(target) + 1]
            if [token.value for token in first] == [*target, chain.symbols[0]]:
                return nodes.growing(target[::2], assign, chain)
        return lambda scope, out: assign(scope, node(scope))

    def _filter_block(self, word):
        filters = [self.filter(), *self._filter_chain()]
        return nodes.captured(self._closed_body("endfilter"), filters)

    def _filter_chain(self):
        filters = []
        while self.accept("|"):
            filters.append(self.filter())
        return filters

    def _generation(self, word):
        return nodes.with_scope([], self._closed_body("endgeneration"))

    def _block(self, word):
        name = self.expect_kind("name").value
        self.accept("scoped")
        body = self._closed_body("endblock")
        self.accept(name)
        return nodes.with_scope([], body)

    def _with(self, word):
        bindings = []
        while self.token.kind != "end_tag" and not self.at(":"):
            if bindings:
                self.expect(",")
            assign = self._single_target()
            self.expect("=")
            bindings.append((assign, self.expression()))
        return nodes.with_scope(bindings, self._closed_body("endwith"))

    def _print(self, word):
        prints = [nodes.printing(self.expression())]
        while self.accept(","):
            prints.append(nodes.printing(self.expression()))
        return nodes.in_a_row([(word.line, each) for each in prints], word.line, 0)

    def _macro(self, word):
        name = self.expect_kind("name").value
        num_names = len(self.names)
        parameters = self._parameters()
        outer_loops, self._num_loops = self._num_loops, 0
        body = self._closed_body("endmacro")
        self._num_loops = outer_loops
        extras = set(_EXTRA_NAMES).intersection(self.names[num_names:])
        return nodes.defining(name, parameters, extras, body)

    def _parameters(self):
        self.expect("(")
        parameters = []
        while not self.at(")"):
            name = self.expect_kind("name").value
            default = self._metered() if self.accept("=") else None
            if default is None and parameters and parameters[-1][1] is not None:
                self.fail(f"parameter {name!r} without a default follows one with a default")
            parameters.append((name, default))
            if not self.at(")"):
                self.expect(",")
        self.advance()
        return parameters

    def _metered(self):
        """An expression that its statement evaluates any number of times, charged for each."""
        start = self.position
        node, num_tokens = self.expression(), self.position - start

        def evaluate(scope):
            scope.budget.spend(num_tokens)
            return node(scope)

        return evaluate

    def _target(self, stop=None, with_namespace=False):
        """What is assigned to, as a function of (scope, value)."""
        targets = [self._single_target(with_namespace)]
        is_tuple = False
        while self.accept(","):
            is_tuple = True
            if self.at("=", stop) or self.token.kind == "end_tag":
                break
            targets.append(self._single_target(with_namespace))
        return nodes.tuple_target(targets) if is_tuple else targets[0]

    def _single_target(self, with_namespace=False):
        if self.accept("("):
            self.deepen()
            target = self._target(stop=")", with_namespace=with_namespace)
            self.rise()
            self.expect(")")
            return target
        token = self.expect_kind("name")
        if token.value in CONSTANTS:
            self.fail(f"cannot assign to {token.value!r}", token.line)
        if with_namespace and self.accept("."):
            return nodes.member_target(token.value, self.expect_kind("name").value)
        return nodes.name_target(token.value)
