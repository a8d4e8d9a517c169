"""Template source to tokens, with the white-space rules of trim_blocks and lstrip_blocks, and how a
parser walks them.

Owns delimiters, literals, comments, raw blocks and line numbers. It does not know what a tag or an
expression means. The rules are those of https://jinja.palletsprojects.com/en/stable/templates/
(White Space Control).
"""

import re
from typing import NamedTuple, NoReturn

from marlin.text.template.limits import (
    DIGITS,
    MAX_NAME_CHARS,
    MAX_NESTING,
    MAX_SOURCE_CHARS,
    located,
)


class Token(NamedTuple):
    """One token.

    Attributes:
        kind: "data", "begin_print", "end_print", "begin_tag", "end_tag", "name", "string",
            "number", "operator" or "end".
        value: text of data, names, operators and (unescaped) strings; int or float of a number.
        line: 1-based line of its first character.
    """

    kind: str
    value: object
    line: int


_OPENER = re.compile(r"\{([%{#])([-+]?)")
_RAW = re.compile(r"\{%[-+]?\s*raw\s*(?:-%\}\s*|%\})")
_END_RAW = re.compile(r"\{%([-+]?)\s*endraw\s*(?:\+%\}|-%\}\s*|%\}\n?)")
_COMMENT_CLOSER = re.compile(r"\+#\}|-#\}\s*|#\}\n?")
_CLOSERS = {"%": re.compile(r"\+%\}|-%\}\s*|%\}\n?"), "{": re.compile(r"-\}\}\s*|\}\}")}
_KINDS = {"%": ("begin_tag", "end_tag"), "{": ("begin_print", "end_print")}
_DIGITS = r"[0-9](?:_?[0-9])*"
_TOKEN = re.compile(
    rf"""(?P<space>\s+)
    |(?P<float>(?<!\.){_DIGITS}(?:(?:\.{_DIGITS})?[eE][+-]?{_DIGITS}|\.{_DIGITS}))
    |(?P<integer>0[bB](?:_?[01])+|0[oO](?:_?[0-7])+|0[xX](?:_?[0-9a-fA-F])+
        |[1-9](?:_?[0-9])*|0(?:_?0)*)
    |(?P<name>\w+)
    |(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    |(?P<operator>//|\*\*|==|!=|>=|<=|[-+/*%~\[\](){{}}><=.:|,;])""",
    re.X | re.S,
)
_ESCAPE = re.compile(
    r"""\\(?:[0-7]{1,3}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}"""
    r"""|N\{[^}]+\}|[\n\\'"abfnrtvxuUN])"""
)
_PAIRS = {")": "(", "]": "[", "}": "{"}


def tokenize(source):
    """Split template source into tokens.

    Returns:
        list of Token, the last of kind "end".

    Raises:
        TemplateError: source too long; an unclosed tag, comment, raw block or string; or a stray
            character.
    """
    if len(source) > MAX_SOURCE_CHARS:
        raise located(1, f"source limit: the template has more than {MAX_SOURCE_CHARS} characters")
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    return _Lexer(source.removesuffix("\n")).run()


def _unescape(body):
    def decode(match):
        return match.group().encode("ascii").decode("unicode_escape")

    return _ESCAPE.sub(decode, body) if "\\" in body else body


class _Lexer:
    def __init__(self, source):
        self.source = source
        self.pos = 0
        self.line = 1
        self.tokens = []

    def run(self):
        while opener := _OPENER.search(self.source, self.pos):
            mark, sign = opener.groups()
            self._data(opener.start(), sign, trim_line=mark != "{")
            if raw := _RAW.match(self.source, self.pos):
                end = self._closer(_END_RAW, raw.end(), "raw block")
                self._skip_to(raw.end())
                self._data(end.start(), end.group(1), trim_line=True)
                self._skip_to(end.end())
            elif mark == "#":
                self._skip_to(self._closer(_COMMENT_CLOSER, self.pos + 2, "comment").end())
            else:
                self._tag(mark, opener)
        self._data(len(self.source))
        self._add("end", "")
        return self.tokens

    def _add(self, kind, value):
        self.tokens.append(Token(kind, value, self.line))

    def _skip_to(self, end):
        self.line += self.source.count("\n", self.pos, end)
        self.pos = end

    def _data(self, end, sign="+", trim_line=False):
        """The text up to `end`, where a tag with that sign begins."""
        kept = text = self.source[self.pos : end]
        if sign == "-":
            kept = text.rstrip()
        elif not sign and trim_line:
            head = text.rfind("\n") + 1
            is_whole_line = head or self.source[self.pos - 1 : self.pos] in ("", "\n")
            if is_whole_line and not text[head:].strip():
                kept = text[:head]
        if kept:
            self._add("data", kept)
        self._skip_to(end)

    def _closer(self, pattern, start, what):
        closer = pattern.search(self.source, start)
        if closer is None:
            raise located(self.line, f"missing end of {what}")
        return closer

    def _tag(self, mark, opener):
        begin, end = _KINDS[mark]
        start_line = self.line
        self._add(begin, "")
        self._skip_to(opener.end())
        brackets = []
        while brackets or not (closer := _CLOSERS[mark].match(self.source, self.pos)):
            match = _TOKEN.match(self.source, self.pos)
            if match is None and self.pos >= len(self.source):
                raise located(start_line, "this tag is never closed")
            if match is None:
                raise located(self.line, f"unexpected {self.source[self.pos]!r}")
            self._token(match.lastgroup, match.group(), brackets)
            self._skip_to(match.end())
        self._add(end, "")
        self._skip_to(closer.end())

    def _token(self, kind, text, brackets):
        if kind == "operator":
            self._balance(text, brackets)
            self._add(kind, text)
        elif kind == "name":
            if len(text) > MAX_NAME_CHARS:
                raise located(self.line, f"name of more than {MAX_NAME_CHARS} characters")
            if not text.isidentifier():
                raise located(self.line, f"{text!r} is not a name")
            self._add(kind, text)
        elif kind != "space":
            self._add("string" if kind == "string" else "number", self._literal(kind, text))

    def _literal(self, kind, text):
        if kind != "string" and len(text) > DIGITS.most:
            raise located(self.line, DIGITS.message.format(DIGITS.most))
        try:
            if kind == "string":
                return _unescape(text[1:-1])
            digits = text.replace("_", "")
            return float(digits) if kind == "float" else int(digits, 0)
        except ValueError as error:
            raise located(self.line, f"bad {kind}: {error}") from error

    def _balance(self, text, brackets):
        if text in "([{":
            brackets.append(text)
        elif text in _PAIRS and (not brackets or brackets.pop() != _PAIRS[text]):
            raise located(self.line, f"unexpected {text!r}")


_CLOSING = ("end_print", "end_tag", "end")


class TokenReader:
    """Walks a token list.

    Attributes:
        tokens: all of them.
        position: of the current one.
        token: the current one.
    """

    def __init__(self, tokens):
        self.tokens = tokens
        self.position = 0
        self.token = tokens[0]
        self._depth = 0

    def advance(self):
        """The current token, stepping past it."""
        token = self.token
        self.position = min(self.position + 1, len(self.tokens) - 1)
        self.token = self.tokens[self.position]
        return token

    def is_ahead(self, kind, value):
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
        if self.at_end():
            return self.token.kind.replace("_", " of ")
        return repr(self.token.value)[:60]

    def at_end(self):
        """Whether the current token ends a tag, a print or the template."""
        return self.token.kind in _CLOSING

    def deepen(self):
        """One more bracket or block is open; rise() when it is closed."""
        self._depth += 1
        if self._depth > MAX_NESTING:
            self.fail(f"nesting limit: brackets or blocks more than {MAX_NESTING} deep")

    def rise(self):
        self._depth -= 1
