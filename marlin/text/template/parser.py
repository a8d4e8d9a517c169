"""The statement half of the parser: a token list to a Body.

Owns tags and how blocks nest. Tags that load other templates (include, import, extends) are
refused: a chat template stands alone.
"""

from marlin.text.template import nodes, statements
from marlin.text.template.expressions import CONSTANTS, ExpressionParser
from marlin.text.template.lexer import tokenize

_EXTRA_NAMES = ("varargs", "kwargs")
_REFUSED_TAGS = ("include", "import", "from", "extends")


def parse(source):
    """Parse a template.

    Returns:
        statements.Body of the whole.

    Raises:
        TemplateError: with the line, for what is not valid or breaks a limit.
    """
    return _TemplateParser(tokenize(source)).template()


class _TemplateParser(ExpressionParser):
    def __init__(self, tokens):
        super().__init__(tokens)
        self._num_loops = 0
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
        outer_tokens, self.num_tokens = self.num_tokens, 0
        parsed: list[statements.Statement] = []
        while self.token.kind != "end":
            token = self.advance()
            if token.kind == "data":
                parsed.append(statements.Data(token.line, token.value))
            elif token.kind == "begin_print":
                parsed.append(statements.Print(token.line, self.tuple_or_expression()))
                self.expect_kind("end_print")
            elif self.at(*end_words):
                break
            else:
                parsed.append(self._statement())
        if end_words and self.token.kind == "end":
            self.fail(f"this block has no {' or '.join(end_words)}", line)
        body = statements.Body(parsed, line, self.num_tokens)
        self.num_tokens = outer_tokens
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
        return statement

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
                return statements.If(word.line, branches, otherwise)

    def _for(self, word):
        target = self._target(stop="in")
        self.expect("in")
        source = self.tuple_or_expression(inline_if=False)
        test = self._metered() if self.accept("if") else None
        self._num_loops += 1
        body = self._block_body("endfor", "else")
        self._num_loops -= 1
        otherwise = self._closed_body("endfor") if self.advance().value == "else" else None
        return statements.For(word.line, target, source, test, body, otherwise)

    def _loop_control(self, word):
        if not self._num_loops:
            self.fail(f"{word.value!r} outside a loop", word.line)
        return statements.LoopControl(word.line, word.value)

    def _set(self, word):
        target = self._target(with_namespace=True)
        if self.accept("="):
            return statements.Set(word.line, target, self.tuple_or_expression())
        filters = self._filter_chain()
        return statements.Captured(word.line, self._closed_body("endset"), filters, target)

    def _filter_block(self, word):
        filters = [self.filter_name(None), *self._filter_chain()]
        return statements.Captured(word.line, self._closed_body("endfilter"), filters)

    def _filter_chain(self):
        filters = []
        while self.at("|"):
            filters.append(self.filter(None))
        return filters

    def _generation(self, word):
        return statements.With(word.line, [], self._closed_body("endgeneration"))

    def _block(self, word):
        name = self.expect_kind("name").value
        self.accept("scoped")
        body = self._closed_body("endblock")
        self.accept(name)
        return statements.With(word.line, [], body)

    def _with(self, word):
        bindings = []
        while self.token.kind != "end_tag" and not self.at(":"):
            if bindings:
                self.expect(",")
            target = self._single_target()
            self.expect("=")
            bindings.append((target, self.expression()))
        return statements.With(word.line, bindings, self._closed_body("endwith"))

    def _print(self, word):
        items = [self.expression()]
        while self.accept(","):
            items.append(self.expression())
        joined = nodes.Arithmetic(nodes.Literal(""), [("~", item) for item in items])
        return statements.Print(word.line, joined)

    def _macro(self, word):
        name = self.expect_kind("name").value
        names_before = len(self.names)
        parameters = self._parameters()
        outer_loops, self._num_loops = self._num_loops, 0
        body = self._closed_body("endmacro")
        self._num_loops = outer_loops
        mentioned = set(self.names[names_before:])
        extras = tuple(extra for extra in _EXTRA_NAMES if extra in mentioned)
        return statements.DefineMacro(word.line, name, parameters, extras, body)

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
        tokens_before = self.num_tokens
        node = self.expression()
        return nodes.Metered(node, self.num_tokens - tokens_before)

    def _target(self, stop=None, with_namespace=False):
        targets = [self._single_target(with_namespace)]
        is_tuple = False
        while self.accept(","):
            is_tuple = True
            if self.at("=", stop) or self.token.kind == "end_tag":
                break
            targets.append(self._single_target(with_namespace))
        return statements.TupleTarget(targets) if is_tuple else targets[0]

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
            return statements.NamespaceTarget(token.value, self.expect_kind("name").value)
        return statements.NameTarget(token.value)
