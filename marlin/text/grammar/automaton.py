"""An automaton over bytes, edge by edge: what native code (metal_shim/common) walks.

Owns the edges, the spelling of characters as bytes of UTF-8 and of JSON strings, and how large an
automaton may get. Knows no language: what is built from it is its callers' business. States are
numbers; a rule is a (start, end) pair of them, and 0 is the start of the whole.
"""

import json
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from marlin.errors import RequestError

# Each takes 24 bytes and a microsecond to make.
MAX_EDGES = 200_000
# How long edges are made before other threads have their turn, and how long that is: a step that
# waits for the interpreter's lock would wait 5 ms for it.
AT_ONCE_S, TURN_S = 0.0005, 0.00005

BYTE, EMPTY, REPEAT, TEXT, BOTH, RETURN = range(6)
NO_END = -1
QUOTE, COMMA, COLON, SPACE = b'",: '

Ranges = tuple[tuple[int, int], ...]
Rule = tuple[int, int]
ANYTHING: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))
_NOT_ASCII: Ranges = ((0x80, 0xD7FF), (0xE000, 0x10FFFF))
_ESCAPES = {0x22: '"', 0x5C: "\\", 0x08: "b", 0x0C: "f", 0x0A: "n", 0x0D: "r", 0x09: "t"}
# What a JSON string may hold as it stands.
_PLAIN: Ranges = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7F))


@dataclass(frozen=True, eq=False)
class Grammar:
    """A finished automaton: int32 edges [any, 6] (source, kind, a, b, c, target)."""

    edges: array = field(repr=False)
    num_states: int

    @property
    def num_edges(self) -> int:
        return len(self.edges) // 6


def json_text(value: Any) -> bytes:
    """A value as constrained answers spell it: a space after `:` and `,`, characters as they are,
    whole numbers without a point."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, list):
        return b"[" + b", ".join(map(json_text, value)) + b"]"
    if isinstance(value, dict):
        pairs = (json_text(name) + b": " + json_text(item) for name, item in value.items())
        return b"{" + b", ".join(pairs) + b"}"
    return json.dumps(value, ensure_ascii=False).encode()


class Automaton:
    """Takes edges until finish()."""

    def __init__(self) -> None:
        self._edges = array("i")
        self._num_states = 0
        self._rules: dict[Any, Rule] = {}
        self._turn_ends = time.monotonic() + AT_ONCE_S
        self.start = self.state()

    def state(self) -> int:
        self._num_states += 1
        return self._num_states - 1

    def _edge(self, *edge: int) -> None:
        self._edges.extend(edge)

    def check_size(self) -> None:
        """Refuse to grow past MAX_EDGES, and let other threads have their turn; whoever adds many
        edges asks now and then."""
        if len(self._edges) > 6 * MAX_EDGES:
            raise RequestError(f"it needs an automaton of more than {MAX_EDGES} edges")
        if time.monotonic() > self._turn_ends:
            time.sleep(TURN_S)
            self._turn_ends = time.monotonic() + AT_ONCE_S

    def byte(self, source: int, low: int, high: int, target: int) -> None:
        self._edge(source, BYTE, low, high, 0, target)

    def empty(self, source: int, target: int) -> None:
        self._edge(source, EMPTY, 0, 0, 0, target)

    def call(
        self, source: int, rule: Rule, target: int, low: int = 1, high: int | None = 1
    ) -> None:
        """A rule, low to high times; None: without end. Nothing where high is below low."""
        if high is not None and high < low:
            return
        kind = TEXT if rule in (self._rules.get("text"), self._rules.get("raw")) else REPEAT
        self._edge(source, kind, rule[0], low, NO_END if high is None else high, target)

    def both(self, source: int, rule: Rule, other: Rule, target: int, without: bool = False):
        """What both rules take; without: what `rule` takes and `other` does not."""
        self._edge(source, BOTH, rule[0], other[0], int(without), target)

    def new_rule(self) -> Rule:
        start, end = self.state(), self.state()
        self._edge(end, RETURN, 0, 0, 0, end)
        return start, end

    def rule(self, key: Any, build: Callable[[int, int], None]) -> Rule:
        """The rule of a key, built from its start to its end when it is first asked for."""
        if (found := self._rules.get(key)) is None:
            self.check_size()
            found = self._rules[key] = self.new_rule()
            build(*found)
        return found

    def finish(self) -> Grammar:
        self.check_size()
        return Grammar(self._edges, self._num_states)

    # ---- texts and characters ----

    def text(self, source: int, data: bytes, target: int) -> None:
        """These bytes."""
        if not data:
            return self.empty(source, target)
        for byte in data[:-1]:
            state = self.state()
            self._edge(source, BYTE, byte, byte, 0, state)
            source = state
        self._edge(source, BYTE, data[-1], data[-1], 0, target)

    def texts(self, source: int, choices: Iterable[bytes], target: int) -> None:
        """One of many texts, which share their beginnings."""
        self.check_size()
        ordered = sorted(set(choices))
        path, before = [source], b""
        for data in ordered:
            same = next(
                (i for i, pair in enumerate(zip(data, before, strict=False)) if pair[0] != pair[1]),
                min(len(data), len(before)),
            )
            same = min(same, len(path) - 1)
            del path[same + 1 :]
            for byte in data[same:-1]:
                path.append(self.state())
                self._edge(path[-2], BYTE, byte, byte, 0, path[-1])
            # A text's last byte leads to the target alone; one that goes on has a byte beside it.
            self.text(path[-1], data[-1:], target)
            before = data[:-1]

    def characters(self, source: int, ranges: Ranges, target: int) -> None:
        """A character of these, in UTF-8."""
        for low, high in ranges:
            if low < 0x80:
                self.byte(source, low, min(high, 0x7F), target)
        beyond = tuple((max(low, 0x80), high) for low, high in ranges if high >= 0x80)
        if beyond:
            rule = self.rule(beyond, lambda start, end: self._beyond(start, beyond, end))
            self.call(source, rule, target)

    def _beyond(self, source, ranges, target):
        for low, high in ranges:
            for parts in _utf8_ranges(low, high):
                at = source
                for part in parts[:-1]:
                    state = self.state()
                    self.byte(at, part[0], part[1], state)
                    at = state
                self.byte(at, parts[-1][0], parts[-1][1], target)

    def json_characters(self, source: int, ranges: Ranges, target: int) -> None:
        """A character of these as a JSON string spells it: as it stands, or with its short escape;
        control characters that have none are left out."""
        self.characters(source, intersect(ranges, _PLAIN + _NOT_ASCII), target)
        escaped = [name for code, name in _ESCAPES.items() if contains(ranges, code)]
        if escaped:
            state = self.state()
            self.byte(source, 0x5C, 0x5C, state)
            for name in escaped:
                self.byte(state, ord(name), ord(name), target)

    def raw_text(self) -> Rule:
        """A character of a JSON string in its one spelling."""
        return self.rule("raw", lambda start, end: self.json_characters(start, ANYTHING, end))

    def any_text(self) -> Rule:
        """A character of a JSON string in any spelling."""

        def build(start, end):
            self.json_characters(start, ANYTHING, end)
            escape, unicode = self.state(), self.state()
            self.byte(start, 0x5C, 0x5C, escape)
            self.byte(escape, 0x2F, 0x2F, end)
            self.byte(escape, 0x75, 0x75, unicode)
            last, two = [self.state() for _ in range(4)], self.state()
            for low, high in ("09", "ac", "AC", "ef", "EF"):
                self.byte(unicode, ord(low), ord(high), last[0])
            for letter in b"dD":
                self.byte(unicode, letter, letter, two)
            self.byte(two, 0x30, 0x37, last[1])
            pair, low_part = self.state(), [self.state() for _ in range(4)]
            for low, high in ("89", "ab", "AB"):
                self.byte(two, ord(low), ord(high), last[2])
            self._hex(last[0], last[1])
            middle = self.state()
            self._hex(last[1], middle)
            self._hex(middle, end)
            self._hex(last[2], last[3])
            self._hex(last[3], pair)
            self.text(pair, b"\\u", low_part[0])
            for letter in b"dD":
                self.byte(low_part[0], letter, letter, low_part[1])
            for low, high in ("cf", "CF"):
                self.byte(low_part[1], ord(low), ord(high), low_part[2])
            self._hex(low_part[2], low_part[3])
            self._hex(low_part[3], end)

        return self.rule("text", build)

    def _hex(self, source, target):
        for low, high in ("09", "af", "AF"):
            self.byte(source, ord(low), ord(high), target)


def contains(ranges: Ranges, code: int) -> bool:
    return any(low <= code <= high for low, high in ranges)


def normal(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges in order, none touching the next."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return tuple(out)


def intersect(ranges: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> Ranges:
    pairs = ((max(a, c), min(b, d)) for a, b in ranges for c, d in others)
    return normal((low, high) for low, high in pairs if low <= high)


def inverted(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """All other characters."""
    out, begin = [], 0
    for low, high in normal(ranges):
        out.append((begin, low - 1))
        begin = high + 1
    out.append((begin, 0x10FFFF))
    return intersect([(low, high) for low, high in out if low <= high], ANYTHING)


def _utf8_ranges(low, high):
    """The characters of a range as sequences of ranges of bytes, which hold no others."""
    for most in (0x7F, 0x7FF, 0xFFFF):
        if low <= most < high:
            yield from _utf8_ranges(low, most)
            yield from _utf8_ranges(most + 1, high)
            return
    size = len(chr(low).encode())
    for i in range(1, size):
        mask = (1 << 6 * i) - 1
        if low & ~mask == high & ~mask:
            continue
        if low & mask:
            yield from _utf8_ranges(low, low | mask)
            yield from _utf8_ranges((low | mask) + 1, high)
            return
        if high & mask != mask:
            yield from _utf8_ranges(low, (high & ~mask) - 1)
            yield from _utf8_ranges(high & ~mask, high)
            return
    yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))
