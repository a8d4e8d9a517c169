"""Regular expressions of ECMA 262: `pattern` of JSON Schema, and structured_outputs.regex.

Owns the syntax and what of it is a regular language; look-around, back-references and word
boundaries are refused by name. Knows no JSON: whoever builds says how a character is spelled.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from marlin.errors import RequestError
from marlin.text.grammar.automaton import ANYTHING, Automaton, Ranges, inverted, normal

MAX_CHARACTERS = 4096
MAX_DEPTH = 64
MAX_REPEATS = 100_000

# A tree's node is a tuple: its kind, then what it holds.
Node = tuple[Any, ...]
NOTHING: Node = ("cat", ())
BEGIN: Node = ("begin",)
END: Node = ("end",)

_DIGITS: Ranges = ((0x30, 0x39),)
_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE: Ranges = normal(
    (code, code)
    for code in (*range(9, 14), 0x20, 0xA0, 0x1680, *range(0x2000, 0x200B))
    + (0x2028, 0x2029, 0x202F, 0x205F, 0x3000, 0xFEFF)
)
_LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_CLASSES = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_COUNT = re.compile(r"\{(\d{1,6})(?:(,)(\d{1,6})?)?\}")
_HEX = {"x": re.compile(r"[0-9A-Fa-f]{2}"), "u": re.compile(r"[0-9A-Fa-f]{4}")}
_GROUP_NAME = re.compile(r"\?P?<[A-Za-z_][A-Za-z0-9_]*>|\?:")
_CATEGORY = re.compile(r"\{(\^?[A-Za-z_=]{1,30})\}")


@dataclass(slots=True)
class _Reader:
    text: str
    at: int = 0
    depth: int = -1  # of groups

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self, expected: str = "") -> str:
        char = self.peek()
        if not char or (expected and char != expected):
            self.refuse(f"lacks {expected!r}" if expected else "ends too soon")
        self.at += 1
        return char

    def match(self, pattern):
        found = pattern.match(self.text, self.at)
        if found:
            self.at = found.end()
        return found

    def refuse(self, why: str):
        raise RequestError(f"the regular expression {why} at character {self.at}")


def parse(text: str) -> Node:
    """The tree of an expression. Raises RequestError, which says at which character."""
    if len(text) > MAX_CHARACTERS:
        raise RequestError(f"a regular expression may have {MAX_CHARACTERS} characters")
    reader = _Reader(text)
    node = _alternation(reader)
    if reader.peek():
        reader.refuse("has a ) without its (")
    return node


def _alternation(reader):
    reader.depth += 1
    if reader.depth > MAX_DEPTH:
        reader.refuse(f"has groups more than {MAX_DEPTH} deep")
    branches = [_sequence(reader)]
    while reader.peek() == "|":
        reader.take()
        branches.append(_sequence(reader))
    reader.depth -= 1
    return branches[0] if len(branches) == 1 else ("alt", tuple(branches))


def _sequence(reader):
    items = []
    while reader.peek() not in ("", "|", ")"):
        items.append(_repeated(reader, _atom(reader)))
    return items[0] if len(items) == 1 else ("cat", tuple(items))


def _repeated(reader, node):
    while True:
        char = reader.peek()
        if char and char in "*+?":
            reader.take()
            low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        elif count := reader.match(_COUNT):
            low = int(count[1])
            high = low if not count[2] else int(count[3]) if count[3] else None
        else:
            return node
        if (high is not None and (high < low or high > MAX_REPEATS)) or low > MAX_REPEATS:
            reader.refuse(f"repeats more than {MAX_REPEATS} times, or the wrong way round")
        if reader.peek() == "?":  # lazy: the same texts
            reader.take()
        elif reader.peek() == "+":
            reader.refuse("has a possessive quantifier, which is not supported,")
        if node in (BEGIN, END):
            reader.refuse("repeats an anchor")
        node = ("rep", node, low, high)


def _atom(reader):
    char = reader.take()
    if char == "(":
        if reader.peek() == "?" and not reader.match(_GROUP_NAME):
            reader.refuse("has a look-around, a flag or an atomic group, which is not supported,")
        node = _alternation(reader)
        reader.take(")")
        return node
    if char == "[":
        return ("set", _bracket(reader))
    if char == ".":
        return ("set", inverted(_LINE_ENDS))
    if char == "^":
        return BEGIN
    if char == "$":
        return END
    if char == "\\":
        return _escaped_atom(reader)
    if char in "*+?":
        reader.refuse(f"has a {char} that repeats nothing")
    return ("set", ((ord(char), ord(char)),))


def _escaped_atom(reader):
    char = reader.peek()
    if char in ("b", "B"):
        reader.refuse("has a word boundary, which is not supported,")
    if char in ("A", "Z", "z"):
        reader.take()
        return BEGIN if char == "A" else END
    if (char.isdigit() and char != "0") or char == "k":
        reader.refuse("has a back-reference, which is not supported,")
    return ("set", _escape(reader))


def _escape(reader) -> Ranges:
    """What stands after a backslash, in a class or not."""
    char = reader.take()
    if char.lower() in _CLASSES and char.isalpha():
        ranges = _CLASSES[char.lower()]
        return ranges if char.islower() else inverted(ranges)
    if char in _CONTROLS:
        code = _CONTROLS[char]
    elif char in _HEX and (digits := reader.match(_HEX[char])):
        code = int(digits[0], 16)
    elif char == "c" and reader.peek().isalpha() and reader.peek().isascii():
        code = ord(reader.take()) % 32
    elif char in "pP" and (name := reader.match(_CATEGORY)):
        return _category(reader, name[1], char == "P")
    elif char.isalnum():
        reader.refuse(f"has \\{char}, which is not supported,")
    else:
        code = ord(char)
    return ((code, code),)


def _category(reader, name, is_not) -> Ranges:
    """A Unicode category, of ASCII and Latin-1 exactly and of letters beyond them all."""
    from_table = {
        "L": ((0x41, 0x5A), (0x61, 0x7A), (0xAA, 0xAA), (0xB5, 0xB5), (0xBA, 0xBA))
        + ((0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x24F)),
        "Lu": ((0x41, 0x5A), (0xC0, 0xD6), (0xD8, 0xDE)),
        "Ll": ((0x61, 0x7A), (0xDF, 0xF6), (0xF8, 0xFF)),
        "N": _DIGITS,
        "Nd": _DIGITS,
    }
    names = {"Letter": "L", "Alphabetic": "L", "Uppercase_Letter": "Lu", "digit": "Nd"}
    key = names.get(name, name)
    if is_not or key not in from_table:
        reader.refuse(f"has \\p{{{name}}}, which is not supported,")
    return from_table[key]


def _bracket(reader) -> Ranges:
    is_not = reader.peek() == "^"
    if is_not:
        reader.take()
    ranges: list[tuple[int, int]] = []
    while reader.peek() != "]":
        low = _member(reader)
        if reader.peek() == "-" and reader.text[reader.at + 1 : reader.at + 2] not in ("]", ""):
            reader.take()
            high = _member(reader)
            if not _is_one(low) or not _is_one(high):  # [\w-.]: a hyphen as it stands
                ranges += [*low, *high, (0x2D, 0x2D)]
                continue
            if low[0][0] > high[0][0]:
                reader.refuse("has a range the wrong way round")
            ranges.append((low[0][0], high[0][0]))
        else:
            ranges += low
    reader.take("]")
    return inverted(ranges) if is_not else normal(ranges)


def _is_one(ranges):
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]


def _member(reader) -> Ranges:
    char = reader.take()
    if char == "\\":
        if reader.peek() == "b":
            reader.take()
            return ((8, 8),)
        return _escape(reader)
    return ((ord(char), ord(char)),)


# ---- anchors ----


def searched(node: Node) -> Node:
    """The tree of the whole texts in which an expression is found somewhere."""
    around: Node = ("rep", ("set", ANYTHING), 0, None)
    parts = []
    for begins, inner, ends in _anchored(node):
        items = [*([] if begins else [around]), inner, *([] if ends else [around])]
        parts.append(items[0] if len(items) == 1 else ("cat", tuple(items)))
    return parts[0] if len(parts) == 1 else ("alt", tuple(parts))


def whole(node: Node) -> Node:
    """The tree of the texts that an expression is; anchors at its ends change nothing."""
    parts = tuple(inner for _, inner, _ in _anchored(node))
    return parts[0] if len(parts) == 1 else ("alt", parts)


def _anchored(node):
    """[(whether it is at the text's beginning, tree without anchors, whether at the end)]."""
    if not _has_anchor(node):
        return [(False, node, False)]
    if node == BEGIN:
        return [(True, NOTHING, False)]
    if node == END:
        return [(False, NOTHING, True)]
    if node[0] == "alt":
        return [part for branch in node[1] for part in _anchored(branch)]
    if node[0] != "cat":
        raise RequestError("the regular expression repeats an anchor, which is not supported")
    parts = [(False, (), False)]
    for item in node[1]:
        if not _has_anchor(item):
            parts = [_joined(part, (False, item, False)) for part in parts]
            continue
        parts = [_joined(part, other) for part in parts for other in _anchored(item)]
        if len(parts) > 64:
            raise RequestError("the regular expression has too many anchors")
    return [(begins, ("cat", items), ends) for begins, items, ends in parts]


def _joined(part, other):
    begins, items, ends = part
    if (other[0] and items) or (ends and other[1] != NOTHING):
        raise RequestError("the regular expression has an anchor in the middle of a text")
    added = () if other[1] == NOTHING else (other[1],)
    return begins or other[0], (*items, *added), ends or other[2]


def _has_anchor(node):
    if node[0] in ("cat", "alt"):
        return any(map(_has_anchor, node[1]))
    return node in (BEGIN, END) or (node[0] == "rep" and _has_anchor(node[1]))


# ---- from a tree to edges ----


def is_nullable(node: Node) -> bool:
    """Whether nothing at all matches; a reference to a rule counts as something."""
    if node[0] == "cat":
        return all(map(is_nullable, node[1]))
    if node[0] == "alt":
        return any(map(is_nullable, node[1]))
    return node[0] == "rep" and (node[2] == 0 or is_nullable(node[1]))


def build(
    automaton: Automaton,
    node: Node,
    source: int,
    target: int,
    spell: Callable[[int, Ranges, int], None],
) -> None:
    """Add the edges of a tree without anchors.

    Args:
        spell: adds a character of a class; also given trees of kinds that are not known here.
    """
    kind = node[0]
    if kind == "set":
        spell(source, node[1], target)
    elif kind == "alt":
        for branch in node[1]:
            build(automaton, branch, source, target, spell)
    elif kind == "cat":
        for item in node[1][:-1]:
            state = automaton.state()
            build(automaton, item, source, state, spell)
            source = state
        if node[1]:
            build(automaton, node[1][-1], source, target, spell)
        else:
            automaton.empty(source, target)
    elif kind == "rep":
        automaton.check_size()
        _build_repeated(automaton, node, source, target, spell)
    else:
        automaton.call(source, node[1], target)


def _build_repeated(automaton, node, source, target, spell):
    _, inner, low, high = node
    if (low, high) == (0, 1):
        automaton.empty(source, target)
        build(automaton, inner, source, target, spell)
    elif high is None and low <= 1:
        before, after = automaton.state(), automaton.state()
        automaton.empty(source, before)
        build(automaton, inner, before, after, spell)
        automaton.empty(after, before)
        automaton.empty(after, target)
        if low == 0:
            automaton.empty(source, target)
    else:
        if is_nullable(inner):
            low = 0
        rule = automaton.new_rule()
        build(automaton, inner, rule[0], rule[1], spell)
        automaton.call(source, rule, target, low, high)
