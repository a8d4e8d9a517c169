"""The statement half of the parser: tokens to functions that write a template's text.

Owns tags, how blocks nest, loops and macros, and gives every error its line. A statement is a
function of (scope, out), `out` a list of strings; it gives None, or the word break or continue on
its way to the loop it concerns. Tags that load other templates (include, import, extends) are
refused: a chat template stands alone.
"""

from marlin.text.template.expressions import CONSTANTS, ExpressionParser
from marlin.text.template.lexer import tokenize
from marlin.text.template.limits import BODY_WORK, FAULTS, Fault, located
from marlin.text.template.operators import appended, fold
from marlin.text.template.values import (
    MISSING,
    Function,
    Growing,
    Loop,
    Namespace,
    bind,
    iterate,
    listing,
    to_text,
)

_REFUSED_TAGS = ("include", "import", "from", "extends")


def parse(source):
    """Parse a template.

    Returns:
        the statement that it is.

    Raises:
        TemplateError: with the line, for what is not valid or breaks a limit.
    """
    return _TemplateParser(tokenize(source)).body(1)


def _data(text):
    def execute(scope, out):
        scope.budget.write(text)
        out.append(text)

    return execute


def _writing(node):
    """A statement that writes the text of what an expression gives."""

    def execute(scope, out):
        text = to_text(scope.budget, node(scope))
        scope.budget.write(text)
        out.append(text)

    return execute


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
            "generation": self._block,
            "if": self._if,
            "macro": self._macro,
            "print": self._print,
            "set": self._set,
            "with": self._with,
        }

    def body(self, line, *end_words):
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
                parsed.append((token.line, _data(token.value)))
            elif token.kind == "begin_print":
                parsed.append((token.line, _writing(self.tuple_or_expression())))
                self.expect_kind("end_print")
            elif self.at(*end_words):
                break
            else:
                parsed.append((self.token.line, self._statement()))
        if end_words and self.token.kind == "end":
            self.fail(f"this block has no {' or '.join(end_words)}", line)
        num_tokens = self.position - start
        work = num_tokens - self._num_inner_tokens + BODY_WORK
        self._num_inner_tokens = num_outer + num_tokens
        self.rise()

        def execute(scope, out):
            at = line
            try:
                scope.budget.spend(work)
                for at, statement in parsed:  # noqa: B007  (where a fault is)
                    signal = statement(scope, out)
                    if signal is not None:
                        return signal
            except FAULTS as fault:
                raise located(at, fault) from fault
            return None

        return execute

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
        return self.body(line, *end_words)

    def _closed_body(self, end_word):
        body = self._block_body(end_word)
        self.advance()
        return body

    def _if(self, word):
        branches, closing = [], "elif"
        while closing == "elif":
            test = self.tuple_or_expression(inline_if=False)
            branches.append((test, self._block_body("elif", "else", "endif")))
            closing = self.advance().value
        if closing == "else":
            branches.append((lambda scope: True, self._closed_body("endif")))

        def execute(scope, out):
            for test, body in branches:
                if test(scope):
                    return body(scope, out)
            return None

        return execute

    def _for(self, word):
        """for target in source if test: body else: otherwise."""
        assign = self._target(stop="in")
        self.expect("in")
        source = self.tuple_or_expression(inline_if=False)
        passing = self._passing(assign) if self.accept("if") else None
        self._num_loops += 1
        body = self._block_body("endfor", "else")
        self._num_loops -= 1
        otherwise = self._closed_body("endfor") if self.advance().value == "else" else None

        def execute(scope, out):
            items = source(scope)
            iterate(items)
            loop = Loop(passing(scope, items) if passing else items)
            item = loop.advance()
            if item is MISSING and otherwise is not None:
                return otherwise(scope.child({}), out)
            while item is not MISSING:
                inner = scope.child({"loop": loop})
                assign(inner, item)
                if body(inner, out) == "break":
                    break
                item = loop.advance()
            return None

        return execute

    def _passing(self, assign):
        """The items that pass a loop's test, each looked at when it is asked for."""
        test = self._metered()

        def passing(scope, items):
            for item in items:
                scope.budget.spend(BODY_WORK)
                inner = scope.child({})
                assign(inner, item)
                if test(inner):
                    yield item

        return passing

    def _loop_control(self, word):
        if not self._num_loops:
            self.fail(f"{word.value!r} outside a loop", word.line)
        return lambda scope, out: word.value

    def _set(self, word):
        start = self.position
        assign = self._target(with_namespace=True)
        if not self.at("="):
            filters = self._filter_chain([])
            return self._captured(self._closed_body("endset"), filters, assign)
        target = [token.value for token in self.tokens[start : self.position]]
        start = self.advance() and self.position
        node, chain = self.tuple_or_expression(), self.chain
        if chain and (chain.start, chain.end) == (start, self.position):
            first = self.tokens[start : start + len(target) + 1]
            if [token.value for token in first] == [*target, chain.symbols[0]]:
                return self._growing(target[::2], assign, chain)
        return lambda scope, out: assign(scope, node(scope))

    def _growing(self, names, assign, chain):
        """`set x = x ~ ...`, where `names` say x: puts more to the end of what x holds."""

        def execute(scope, out):
            entries = scope.names
            if len(names) > 1:
                owner = scope.find(names[0])
                entries = owner.members if type(owner) is Namespace else {}
            grown = entries.get(names[-1])
            if type(grown) is not Growing:
                grown, left = None, chain.first(scope)
            num_chars = grown.num_chars if grown else 0
            values = [node(scope) for node in chain.nodes]
            if grown:
                texts = appended(scope.budget, chain.symbols, values)
                # A call among the values may have set x as well.
                is_same = entries.get(names[-1]) is grown and grown.num_chars == num_chars
                if is_same and texts is not None:
                    return grown.add(scope.budget, "".join(texts))
                left = grown.text(scope.budget)[:num_chars]
            value = fold(scope.budget, left, chain.symbols, values)
            return assign(scope, Growing(value) if type(value) is str else value)

        return execute

    def _captured(self, body, filters, assign=None):
        """A body whose text goes through filters, then to a target, or to the output."""

        def execute(scope, out):
            inner = scope.child({})
            value, signal = inner.written(body)
            if signal is not None:
                return signal
            for apply in filters:
                value = apply(inner, value)
            if assign is not None:
                return assign(scope, value)
            return _writing(lambda _scope: value)(scope, out)

        return execute

    def _filter_block(self, word):
        filters = self._filter_chain([self.filter()])
        return self._captured(self._closed_body("endfilter"), filters)

    def _filter_chain(self, filters):
        while self.accept("|"):
            filters.append(self.filter())
        return filters

    def _block(self, word):
        name = self.expect_kind("name").value if word.value == "block" else None
        self.accept("scoped")
        body = self._closed_body(f"end{word.value}")
        self.accept(name)
        return self._scoped([], body)

    def _with(self, word):
        bindings = []
        while self.token.kind != "end_tag" and not self.at(":"):
            if bindings:
                self.expect(",")
            assign = self._single_target()
            self.expect("=")
            bindings.append((assign, self.expression()))
        return self._scoped(bindings, self._closed_body("endwith"))

    def _scoped(self, bindings, body):
        """A scope of its own, with names bound to values of the outer scope."""

        def execute(scope, out):
            inner = scope.child({})
            for assign, node in bindings:
                assign(inner, node(scope))
            return body(inner, out)

        return execute

    def _print(self, word):
        nodes = [self.expression()]
        while self.accept(","):
            nodes.append(self.expression())
        return _writing(
            lambda scope: fold(scope.budget, "", "~" * len(nodes), [node(scope) for node in nodes])
        )

    def _macro(self, word):
        name = self.expect_kind("name").value
        num_names = len(self.names)
        parameters = self._parameters()
        outer_loops, self._num_loops = self._num_loops, 0
        body = self._closed_body("endmacro")
        self._num_loops = outer_loops
        members = {"name": name, "arguments": tuple(parameter for parameter, _ in parameters)}
        extras = {"varargs", "kwargs"}.intersection(self.names[num_names:])

        def execute(scope, out):
            def call(budget, /, *args, **kwargs):
                inner = scope.child({})
                budget.enter_call()
                bind(name, parameters, extras, inner, args, kwargs)
                text, _ = inner.written(body)
                budget.call_depth -= 1
                return text

            scope.names[name] = Function(call, members=members)

        return execute

    def _parameters(self):
        """(name, default node or None) pairs."""
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

        def assign(scope, value):
            values = listing(scope.budget, value)
            if len(values) != len(targets):
                raise Fault(f"cannot unpack {len(values)} values into {len(targets)} names")
            for target, part in zip(targets, values, strict=True):
                target(scope, part)

        return assign if is_tuple else targets[0]

    def _single_target(self, with_namespace=False):
        if self.accept("("):
            self.deepen()
            target = self._target(stop=")", with_namespace=with_namespace)
            self.rise()
            self.expect(")")
            return target
        token = self.expect_kind("name")
        name = token.value
        if name in CONSTANTS:
            self.fail(f"cannot assign to {name!r}", token.line)
        if not (with_namespace and self.accept(".")):
            return lambda scope, value: scope.names.__setitem__(name, value)
        member = self.expect_kind("name").value

        def assign(scope, value):
            namespace = scope.find(name)
            if not isinstance(namespace, Namespace):
                raise Fault(f"cannot set {member!r} of {name!r}: it is not a namespace")
            namespace.set(member, value)

        return assign
