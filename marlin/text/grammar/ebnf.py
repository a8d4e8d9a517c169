"""Grammars in GBNF, the notation of llama.cpp that vLLM's `structured_outputs.grammar` takes, too:

    root ::= "yes" | list
    list ::= "[" [0-9]+ ("," [0-9]{1,3})* "]"   # a comment

Owns the notation. A rule goes on over the lines that begin no other one.
"""

import re

from marlin.errors import RequestError
from marlin.files.fields import shown
from marlin.text.grammar import regex
from marlin.text.grammar.automaton import ANYTHING, Automaton, Rule, inverted, normal

MAX_CHARACTERS = 64 * 1024
MAX_DEPTH = 64

_TOKEN = re.compile(
    r"\s+|#[^\n]*|(?P<define>(?P<name>[A-Za-z_][\w-]*)\s*::=)|(?P<use>[A-Za-z_][\w-]*)"
    r'|(?P<text>"(?:[^"\\\n]|\\.)*")|(?P<set>\[(?:[^\]\\\n]|\\.)+\])'
    r"|(?P<count>\{\d{1,6}(?:,(?:\d{1,6})?)?\})|(?P<sign>[|()*+?.])"
)
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))")
_NAMED = {"n": "\n", "r": "\r", "t": "\t"}


def build(automaton: Automaton, source: str, start: int, target: int) -> None:
    """Add a grammar's edges. Raises RequestError, which names the line or the rule."""
    if len(source) > MAX_CHARACTERS:
        raise RequestError(f"a grammar may have {MAX_CHARACTERS} characters, got {len(source)}")
    trees = _Parser(source).rules()
    if "root" not in trees:
        raise RequestError("the grammar has no rule root")
    rules = {name: automaton.new_rule() for name in trees}
    for name, tree in trees.items():
        automaton.check_size()
        regex.build(automaton, _linked(tree, rules, name), *rules[name], automaton.characters)
    automaton.call(start, rules["root"], target)


def _linked(tree, rules: dict[str, Rule], name):
    """A tree with rules in the place of their names."""
    kind = tree[0]
    if kind == "name":
        if tree[1] not in rules:
            raise RequestError(f"the grammar has no rule {shown(tree[1])}, which {name} uses")
        return ("rule", rules[tree[1]])
    if kind in ("cat", "alt"):
        return (kind, tuple(_linked(item, rules, name) for item in tree[1]))
    if kind == "rep":
        return (kind, _linked(tree[1], rules, name), *tree[2:])
    return tree


class _Parser:
    def __init__(self, source):
        self._tokens = []  # (kind, text, line)
        at = line = 0
        while at < len(source):
            found = _TOKEN.match(source, at)
            if found is None:
                where = shown(source[at : at + 20])
                raise RequestError(f"line {line + 1} of the grammar cannot be read at {where}")
            if found.lastgroup:
                kind = "define" if found["define"] else found.lastgroup
                self._tokens.append((kind, found["name"] or found[0], line + 1))
            line += found[0].count("\n")
            at = found.end()
        self._tokens.append(("end", "its end", line + 1))
        self._at, self._depth = 0, -1

    def _peek(self):
        return self._tokens[self._at]

    def _take(self):
        self._at += 1
        return self._tokens[self._at - 1]

    def _refuse(self):
        _, text, line = self._peek()
        raise RequestError(f"line {line} of the grammar has {shown(text)} where it cannot be")

    def rules(self):
        out = {}
        while self._peek()[0] != "end":
            kind, name, line = self._peek()
            if kind != "define":
                self._refuse()
            if name in out:
                raise RequestError(f"line {line} of the grammar has rule {shown(name)} again")
            self._take()
            out[name] = self._alternatives()
        return out

    def _alternatives(self):
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise RequestError(f"the grammar has groups more than {MAX_DEPTH} deep")
        branches = [self._sequence()]
        while self._peek()[1] == "|" and self._peek()[0] == "sign":
            self._take()
            branches.append(self._sequence())
        self._depth -= 1
        return ("alt", tuple(branches))

    def _sequence(self):
        items = []
        while (item := self._item()) is not None:
            items.append(self._repeated(item))
        return ("cat", tuple(items))

    def _item(self):
        kind, text, _ = self._peek()
        if kind in ("end", "define") or (kind == "sign" and text in "|)"):
            return None
        if kind == "use":
            self._take()
            return ("name", text)
        if kind == "text":
            self._take()
            characters = [((ord(char), ord(char)),) for char in self._plain(text[1:-1])]
            return ("cat", tuple(("set", ranges) for ranges in characters))
        if kind == "set":
            self._take()
            return ("set", self._set(text[1:-1]))
        if text == ".":
            self._take()
            return ("set", ANYTHING)
        if text != "(":
            self._refuse()
        self._take()
        inner = self._alternatives()
        if self._peek()[1] != ")":
            self._refuse()
        self._take()
        return inner

    def _repeated(self, item):
        while True:
            kind, text, _ = self._peek()
            if kind == "sign" and text in "*+?":
                bounds = {"*": (0, None), "+": (1, None), "?": (0, 1)}[text]
            elif kind == "count":
                low, _, high = text[1:-1].partition(",")
                bounds = (int(low), int(high) if high else None if "," in text else int(low))
            else:
                return item
            if bounds[1] is not None and bounds[1] < bounds[0]:
                self._refuse()
            self._take()
            item = ("rep", item, *bounds)

    def _set(self, text):
        is_not = text.startswith("^")
        codes = [(ord(char), char == "-") for char in self._plain(text[is_not:])]
        ranges, at = [], 0
        while at < len(codes):
            low = high = codes[at][0]
            if at + 2 < len(codes) and codes[at + 1][1]:
                high = codes[at + 2][0]
                at += 2
            if high < low:
                raise RequestError(f"the grammar has a range the wrong way round in [{text[:50]}]")
            ranges.append((low, high))
            at += 1
        return inverted(ranges) if is_not else normal(ranges)

    def _plain(self, text):
        def replace(found):
            digits = found[1] or found[2] or found[3]
            if digits is None:
                return _NAMED.get(found[4], found[4])
            if int(digits, 16) > 0x10FFFF:
                raise RequestError(f"the grammar has {found[0]}, which is no character")
            return chr(int(digits, 16))

        return _ESCAPE.sub(replace, text)
