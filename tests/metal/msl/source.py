"""A .metal file as tokens: preprocessing, the tokeniser, brackets, attributes, diagnostics.

Owns the text and nothing of its meaning: what a declaration is, which rules Metal has and how the
text is rewritten live in declarations.py, kernels.py, bodies.py and lexical.py. A rewrite replaces
the `out` of single tokens and never moves a line, so a compiler's diagnostics point at the .metal
file through the line markers that preprocessing leaves.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

MSL_FOLDER = Path(__file__).resolve().parent
INCLUDE_FOLDER = MSL_FOLDER / "include"
# The repository's own headers (params.h, common.h, ...), found wherever a .metal file lies.
SHADER_FOLDER = MSL_FOLDER.parents[2] / "shaders"

# Metal 3.1, which macOS 14 brings: the oldest language version with bfloat.
METAL_VERSION = 310
ADDRESS_SPACES = {"device", "constant", "threadgroup", "thread"}

# Alternatives in the order of the tokens' frequency; whitespace is kept, so the text can be
# written back unchanged.
TOKEN_PATTERN = re.compile(
    r"""(?P<space>[ \t\r\f\v]+)
      | (?P<newline>\n)
      | (?P<name>[A-Za-z_$][\w$]*)
      | (?P<number>\.?\d(?:[eEpP][+-]|[\w.'])*)
      | (?P<string>(?:u8|[uUL])?"(?:\\.|[^"\\\n])*")
      | (?P<character>'(?:\\.|[^'\\\n])+')
      | (?P<punctuation><<=|>>=|\.\.\.|->\*|::|->|\+\+|--|<<|<=|>=|==|!=|&&|\|\|
            |[-+*/%&|^]=|[{}()\[\];,<>=+\-*/%&|^!~?:.\#@\\])""",
    re.VERBOSE,
)
LINE_MARKER = re.compile(r'#\s*(?:line\s+)?(\d+)\s+"((?:\\.|[^"])*)"((?:\s+\d)*)')
INCLUDED_HEADER = "#pragma msl_include"
# The preprocessor expands no macros in a pragma: such a hint is left out.
UNREADABLE_PRAGMA = re.compile(r"#\s*pragma\s+unroll\b.*\w\s*\(")
OPENING = {"(": ")", "[": "]", "{": "}"}
CLOSING = set(OPENING.values())


class SourceError(Exception):
    """Source that cannot be read; its text is compiler-style lines, `file:line: error: ...`."""


class Diagnostic(NamedTuple):
    """One finding. Severities: error; style (legal Metal that this repository refuses);
    unchecked (legal Metal that this tool cannot judge); warning."""

    file: str
    line: int
    severity: str
    message: str

    def __str__(self):
        return f"{self.file}:{self.line}: {self.severity}: {self.message}"


@dataclass(slots=True, eq=False)
class Token:
    kind: str
    text: str
    line: int
    file: str
    in_user_file: bool
    out: str


def preprocess(path, compiler, includes=(), defines=()):
    """The text of `path` with macros and includes resolved, as Apple's preprocessor would.

    Only the standard library's header names that include/stage1 lists exist, and they are empty.

    Raises:
        SourceError: the preprocessor refused the file.
    """
    command = [compiler, "-E", "-x", "c++", "-std=c++17", "-nostdinc", "-nostdinc++", "-w"]
    command += ["-fno-caret-diagnostics", "-isystem", str(INCLUDE_FOLDER / "stage1")]
    command += ["-D__METAL__=1", f"-D__METAL_VERSION__={METAL_VERSION}", "-D__METAL_MACOS__=1"]
    command += ["-D__HAVE_BFLOAT__=1", "-U__clang__"]
    command += [f"-I{folder}" for folder in (*includes, SHADER_FOLDER)]
    command += [f"-D{define}" for define in defines]
    result = subprocess.run([*command, str(path)], capture_output=True, text=True)
    if result.returncode != 0:
        raise SourceError(result.stderr)
    return result.stdout


def tokenize(text):
    """The tokens of preprocessed text, line markers and whitespace included."""
    tokens, line, file, in_user_file, position = [], 1, "", True, 0
    at_line_start = True
    while position < len(text):
        if at_line_start and text[position] == "#":
            end = text.find("\n", position)
            end = len(text) if end < 0 else end
            directive = text[position:end]
            tokens.append(Token("marker", directive, line, file, in_user_file, directive))
            marker = LINE_MARKER.match(directive)
            if marker:
                line, file = int(marker[1]) - 1, marker[2]
                in_user_file = "3" not in marker[3].split()  # 3: from a system header
            position, at_line_start = end, False
            continue
        match = TOKEN_PATTERN.match(text, position)
        if not match:
            raise SourceError(f"{file}:{line}: error: stray character {text[position]!r}")
        tokens.append(Token(match.lastgroup, match[0], line, file, in_user_file, match[0]))
        if match.lastgroup == "newline":
            line += 1
        at_line_start = match.lastgroup == "newline" or (at_line_start and match[0].isspace())
        position = match.end()
    return tokens


class Attribute(NamedTuple):
    """One [[name(arguments)]]; `arguments` is a token range, None without parentheses."""

    name: str
    arguments: tuple | None
    token: Token


class SourceText:
    """The significant tokens of one translation unit, their brackets and what was found."""

    def __init__(self, text):
        self.all_tokens = tokenize(text)
        skipped = ("space", "newline", "marker")
        self.tokens = [token for token in self.all_tokens if token.kind not in skipped]
        self.partner = self._pair_brackets()
        self.diagnostics = []

    def __len__(self):
        return len(self.tokens)

    def text(self, index):
        """The text of token `index`, "" past either end."""
        return self.tokens[index].text if 0 <= index < len(self.tokens) else ""

    def report(self, token, message, severity="error"):
        self.diagnostics.append(Diagnostic(token.file, token.line, severity, message))

    def erase(self, low, high):
        for token in self.tokens[low:high]:
            token.out = ""

    def _pair_brackets(self):
        partner, open_brackets = {}, []
        for index, token in enumerate(self.tokens):
            if token.text in OPENING:
                open_brackets.append(index)
            elif token.text in CLOSING:
                opening = open_brackets.pop() if open_brackets else None
                if opening is None or OPENING[self.tokens[opening].text] != token.text:
                    where = f"{token.file}:{token.line}"
                    raise SourceError(f"{where}: error: expected the partner of {token.text!r}")
                partner[index], partner[opening] = opening, index
        if open_brackets:
            token = self.tokens[open_brackets[-1]]
            raise SourceError(f"{token.file}:{token.line}: error: expected a closing bracket")
        return partner

    def joined(self, low, high):
        """Tokens [low, high) as text, with the spaces that C++ needs."""
        out = ""
        for token in self.tokens[low:high]:
            if out and re.match(r"\w", out[-1]) and re.match(r"\w", token.text):
                out += " "
            out += token.text
        return out

    def is_attribute(self, index):
        """Does [[...]] open at `index`?"""
        if self.text(index) != "[" or self.text(index + 1) != "[":
            return False
        return self.partner[index] == self.partner[index + 1] + 1

    def angle_end(self, index):
        """The `>` (or `>>`) that closes the `<` at `index`, None where `<` is a comparison."""
        depth = 0
        while index < len(self.tokens):
            text = self.tokens[index].text
            if text in OPENING:
                index = self.partner[index]
            elif text == "<":
                depth += 1
            elif text in (">", ">>"):
                depth -= len(text)
                if depth <= 0:
                    return index
            elif text in (";", "}"):
                return None
            index += 1
        return None

    def angle_start(self, index):
        """The `<` that the `>` (or `>>`) at `index` closes."""
        depth = 0
        while True:
            text = self.tokens[index].text
            if text in CLOSING:
                index = self.partner[index]
            elif text in (">", ">>"):
                depth += len(text)
            elif text == "<":
                depth -= 1
                if depth <= 0:
                    return index
            index -= 1

    def split_at_commas(self, low, high):
        """Token ranges between the top-level commas of [low, high); "void" and nothing are none."""
        ranges, start, index = [], low, low
        while index < high:
            text = self.tokens[index].text
            if text in OPENING:
                index = self.partner[index]
            elif text == "<" and self.tokens[index - 1].kind == "name":
                end = self.angle_end(index)
                index = end if end is not None and end < high else index
            elif text == ",":
                ranges.append((start, index))
                start = index + 1
            index += 1
        ranges.append((start, high))
        return [span for span in ranges if span[1] > span[0] and self.joined(*span) != "void"]

    def attributes(self, low, high):
        """Every attribute in [low, high)."""
        found, index = [], low
        while index < high:
            if self.is_attribute(index):
                found += self._attribute_list(index + 2, self.partner[index + 1])
                index = self.partner[index]
            index += 1
        return found

    def _attribute_list(self, index, end):
        while index < end:
            token, name = self.tokens[index], self.tokens[index].text
            index += 1
            while self.text(index) == "::":
                name += "::" + self.text(index + 1)
                index += 2
            arguments = None
            if index < end and self.text(index) == "(":
                arguments = (index + 1, self.partner[index])
                index = self.partner[index] + 1
            yield Attribute(name, arguments, token)
            if self.text(index) == ",":
                index += 1

    def without_attributes(self, low, high):
        """The token indices of [low, high) that lie in no [[...]]."""
        kept, index = [], low
        while index < high:
            if self.is_attribute(index):
                index = self.partner[index] + 1
                continue
            kept.append(index)
            index += 1
        return kept

    def includes_a_header(self):
        return any(
            token.kind == "marker" and token.text.startswith(INCLUDED_HEADER)
            for token in self.all_tokens
        )

    def written(self):
        """The source after the rewrites, with line markers that a compiler follows."""
        parts = []
        for token in self.all_tokens:
            if token.kind == "marker" and self._is_left_out(token.text):
                continue
            marker = token.kind == "marker" and LINE_MARKER.match(token.text)
            parts.append(f'# {marker[1]} "{marker[2]}"' if marker else token.out)
        return "".join(parts)

    @staticmethod
    def _is_left_out(directive):
        return directive.startswith(INCLUDED_HEADER) or UNREADABLE_PRAGMA.match(directive)
