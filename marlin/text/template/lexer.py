"""Template source to tokens, with the white-space rules of trim_blocks and lstrip_blocks.

Owns delimiters, literals, comments, raw blocks and line numbers. It does not know what a tag or an
expression means. The rules are those of https://jinja.palletsprojects.com/en/stable/templates/
(White Space Control).
"""

import re
from typing import NamedTuple

from marlin.text.template.limits import MAX_NAME_CHARS, MAX_NUMBER_CHARS, MAX_SOURCE_CHARS, located


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
    return _Lexer(source).run()


def _unescape(body):
    def decode(match):
        return match.group().encode("ascii").decode("unicode_escape")

    return _ESCAPE.sub(decode, body) if "\\" in body else body


class _Lexer:
    def __init__(self, source):
        source = source.replace("\r\n", "\n").replace("\r", "\n")
        self.source = source[:-1] if source.endswith("\n") else source
        self.pos = 0
        self.line = 1
        self.at_line_start = True
        self.tokens = []

    def run(self):
        while self.pos < len(self.source):
            opener = _OPENER.search(self.source, self.pos)
            if opener is None:
                self._data(self.source[self.pos :])
                self.pos = len(self.source)
                break
            mark, sign = opener.groups()
            self._data(self.source[self.pos : opener.start()], sign, trim_line=mark != "{")
            self.pos = opener.start()
            raw = _RAW.match(self.source, self.pos)
            if raw:
                self._raw(raw)
            elif mark == "#":
                self._comment(opener)
            else:
                self._tag(mark, opener)
        self.tokens.append(Token("end", "", self.line))
        return self.tokens

    def _data(self, text, sign="+", trim_line=False):
        kept = text
        if sign == "-":
            kept = text.rstrip()
        elif not sign and trim_line:
            head = text.rfind("\n") + 1
            if (head or self.at_line_start) and not text[head:].strip():
                kept = text[:head]
        if kept:
            self.tokens.append(Token("data", kept, self.line))
        self.line += text.count("\n")

    def _skip_to(self, end):
        text = self.source[self.pos : end]
        self.line += text.count("\n")
        self.at_line_start = text.endswith("\n")
        self.pos = end

    def _raw(self, raw):
        line = self.line
        self._skip_to(raw.end())
        end = _END_RAW.search(self.source, self.pos)
        if end is None:
            raise located(line, "missing end of raw block")
        self._data(self.source[self.pos : end.start()], end.group(1), trim_line=True)
        self.pos = end.start()
        self._skip_to(end.end())

    def _comment(self, opener):
        closer = _COMMENT_CLOSER.search(self.source, opener.start() + 2)
        if closer is None:
            raise located(self.line, "missing end of comment")
        self._skip_to(closer.end())

    def _tag(self, mark, opener):
        begin, end = _KINDS[mark]
        start_line = self.line
        self.tokens.append(Token(begin, "", start_line))
        self.pos = opener.end()
        brackets = []
        while True:
            closer = None if brackets else _CLOSERS[mark].match(self.source, self.pos)
            if closer:
                self.tokens.append(Token(end, "", self.line))
                self._skip_to(closer.end())
                return
            match = _TOKEN.match(self.source, self.pos)
            if match is None:
                if self.pos >= len(self.source):
                    raise located(start_line, "this tag is never closed")
                raise located(self.line, f"unexpected {self.source[self.pos]!r}")
            self._token(match, brackets)
            self._skip_to(match.end())

    def _token(self, match, brackets):
        kind, text = match.lastgroup, match.group()
        if kind == "space":
            return
        value = text
        if kind == "operator":
            self._balance(text, brackets)
        elif kind == "name" and len(text) > MAX_NAME_CHARS:
            raise located(self.line, f"name of more than {MAX_NAME_CHARS} characters")
        elif kind == "name" and not text.isidentifier():
            raise located(self.line, f"{text!r} is not a name")
        elif kind != "name":
            value, kind = self._literal(kind, text)
        self.tokens.append(Token(kind, value, self.line))

    def _literal(self, kind, text):
        try:
            if kind == "string":
                return _unescape(text[1:-1]), "string"
            if len(text) > MAX_NUMBER_CHARS:
                raise located(self.line, f"number of more than {MAX_NUMBER_CHARS} characters")
            digits = text.replace("_", "")
            return (float(digits) if kind == "float" else int(digits, 0)), "number"
        except ValueError as error:
            raise located(self.line, f"bad {kind}: {error}") from error

    def _balance(self, text, brackets):
        if text in "([{":
            brackets.append(text)
        elif text in _PAIRS and (not brackets or brackets.pop() != _PAIRS[text]):
            raise located(self.line, f"unexpected {text!r}")
