"""Reads an answer while it arrives: a family's reader asks for what comes next, and waits in it.

Owns text that is not decided yet, the Parts read, and what every format shares: text up to a
marker, JSON passed on as it is written. Refuses to know any family's markers.
"""

import json
import re
from collections.abc import Callable, Generator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from marlin.files.strict_json import JsonError, parse_json

T = TypeVar("T")
Reading = Generator[None, None, T]  # waits for text wherever it yields
Sink = Callable[[str], object]


class Part(NamedTuple):
    """The next of an answer.

    Attributes:
        kind: "content", "reasoning", "arguments": text that follows what came before of the kind;
            "call": a call begins, and "called": it is complete.
        text: of a "call", the tool's name.
        call: index of the call that it belongs to.
        id: that the model gave a "call", where its format has one.
    """

    kind: str
    text: str
    call: int = -1
    id: str | None = None


class Scanner:
    """The text of one answer, and what was read of it.

    Args:
        tools: {name: JSON schema of its arguments} of the tools that may be called.

    Attributes:
        parts: read so far; whoever takes them clears the list.
        thinking: what is read now is a thought.
        is_cut: the answer ended in the middle: what it ends with is not decided and never will be.
        num_called: calls that are complete.
    """

    def __init__(self, tools: Mapping[str, Any]):
        self.tools = tools
        self.parts: list[Part] = []
        self.thinking = False
        self.is_cut = False
        self.num_called = 0
        self._text, self._at = "", 0
        self._mark: int | None = None
        self._has_ended = False
        self._held_space, self._strips_space = "", False
        self._num_begun, self._has_arguments = 0, False

    # Text in.

    def feed(self, text: str) -> None:
        """Add text."""
        self._text += text

    def end(self, is_cut: bool) -> None:
        """No more text comes."""
        self._has_ended, self.is_cut = True, is_cut

    def _more(self) -> Reading[bool]:
        """Wait for text; whether any came."""
        if self._has_ended:
            return False
        if self._mark is None:
            self._text, self._at = self._text[self._at :], 0
        yield
        return not self._has_ended

    # Text read. Each returns once it is decided, however the text was cut.

    def until(
        self, markers: tuple[str, ...], sink: Sink, *, keep: bool = False
    ) -> Reading[str | None]:
        """Pass text on up to the first of some markers, and read that unless it is to be kept;
        None at the end."""
        pattern = _up_to(markers)
        while True:
            found = pattern.search(self._text, self._at)
            end = found.start() if found else len(self._text)
            if end > self._at:
                sink(self._text[self._at : end])
                self._at = end
            if found and found["whole"]:
                self._at = found.start() if keep else found.end()
                return found["whole"]
            if not (yield from self._more()):
                rest, self._at = self._text[self._at :], len(self._text)
                if rest and not self.is_cut:
                    sink(rest)
                return None

    def take(self, *literals: str) -> Reading[str | None]:
        """Read blanks and the first of some literals that the answer goes on with, if it does;
        else nothing."""
        for literal in literals:
            while True:
                rest = self._text[self._at :].lstrip()
                if rest.startswith(literal):
                    self._at = len(self._text) - len(rest) + len(literal)
                    return literal
                if not literal.startswith(rest):
                    break
                if not (yield from self._more()):
                    if self.is_cut:
                        self._at = len(self._text)
                    break
        return None

    def char(self) -> Reading[str]:
        """Read a character, whatever it is; "" at the end."""
        while self._at == len(self._text):
            if not (yield from self._more()):
                return ""
        self._at += 1
        return self._text[self._at - 1]

    def text(self, *markers: str, keep: bool = False) -> Reading[str | None]:
        """What is up to a marker; None if none comes."""
        read: list[str] = []
        found = yield from self.until(markers, read.append, keep=keep)
        return "".join(read) if found else None

    def peek(self) -> Reading[str]:
        """Skip blanks; the character after them, "" at the end."""
        while True:
            self._at = len(self._text) - len(self._text[self._at :].lstrip())
            if self._at < len(self._text):
                return self._text[self._at]
            if not (yield from self._more()):
                return ""

    def mark(self) -> None:
        """Keep what is read from here on, for rewind()."""
        self._mark = self._at

    def rewind(self) -> None:
        """Unread what was read since mark()."""
        assert self._mark is not None
        self._at, self._mark = self._mark, None

    def keep(self) -> None:
        """What was read since mark() stays read."""
        self._mark = None

    def value(self, sink: Sink) -> Reading[bool]:
        """Pass a JSON value on as it is written, with control characters within its strings
        escaped, which models forget. Whether it was complete."""
        yield from self.peek()
        state = _JsonState()
        while True:
            done, at = False, self._at
            while at < len(self._text) and not done:
                done = state.step(self._text[at])
                at += state.took
            if state.out:
                sink("".join(state.out))
                state.out.clear()
            self._at = at
            if done:
                return state.is_complete
            if not (yield from self._more()):
                return False

    def string(self) -> Reading[str | None]:
        """A JSON string's text, or None where there is none."""
        if (yield from self.peek()) != '"':
            return None
        written: list[str] = []
        if not (yield from self.value(written.append)):
            return None
        return decoded("".join(written), "")

    # What was read.

    def content(self, *markers: str) -> Reading[str | None]:
        """Content up to a marker, which is returned, or to the end. Blanks before a marker, and
        those after a call or a thought, are none."""
        marker = yield from self.until(markers, self.show)
        if marker is None and not self.is_cut and self._held_space:
            self._emit("content", self._held_space)
        self._held_space = ""
        return marker

    def show(self, text: str) -> None:
        """Content; blanks at its end wait for more of it."""
        self._pass("content", text)

    def think(self, text: str) -> None:
        """A thought; blanks around it are no part of it."""
        self._pass("reasoning", text)

    def _pass(self, kind, text):
        if self._strips_space:
            text = text.lstrip()
            self._strips_space = not text
        text = self._held_space + text
        shown = text.rstrip()
        self._held_space = text[len(shown) :]
        self._emit(kind, shown)

    def turn(self, thinking: bool = False) -> None:
        """A thought, or what follows one or a call, begins."""
        self.thinking = thinking
        self._held_space, self._strips_space = "", True

    def begin_call(self, name: str, id: str | None = None) -> None:
        self.parts.append(Part("call", name, self._num_begun, id))
        self._num_begun += 1
        self._has_arguments = False

    def arguments(self, text: str) -> None:
        """The next of the arguments' JSON."""
        self._has_arguments |= bool(text)
        self._emit("arguments", text, self._num_begun - 1)

    def end_call(self) -> None:
        """The call is whole; one without arguments has an empty object."""
        if not self._has_arguments:
            self.arguments("{}")
        self.parts.append(Part("called", "", self._num_begun - 1))
        self.num_called += 1
        self.turn()

    def _emit(self, kind, text, call=-1):
        if not text:
            return
        last = self.parts[-1] if self.parts else None
        if last is not None and (last.kind, last.call) == (kind, call):
            self.parts[-1] = last._replace(text=last.text + text)
        else:
            self.parts.append(Part(kind, text, call))


def drop(_text: str) -> None:
    """The sink of text that nobody is shown."""


def decoded(text: str, default: Any) -> Any:
    """A JSON value, or the default where it is none."""
    try:
        return parse_json(text)
    except JsonError:
        return default


class _JsonState:
    """Where in a JSON value its text is.

    Attributes:
        took: 1 if the character of the last step() belongs to the value, else 0.
        out: what is to be passed on.
        is_complete: after the last step: whether it was one.
    """

    def __init__(self):
        self.took, self.out, self.is_complete = 1, [], False
        self._depth, self._in_string, self._escapes, self._begun = 0, False, False, False

    def step(self, char):
        """Whether the value has ended."""
        if self._in_string:
            self._in_string_step(char)
        elif char == "<" or (self._depth == 0 and char in ",}] \t\r\n"):
            # A bare number or word ends at what follows it; "<" is of no JSON.
            self.took, self.is_complete = 0, self._begun and char != "<"
            return True
        else:
            self._depth += (char in "{[") - (char in "}]")
            self._in_string = char == '"'
            self.out.append(char)
        closes = char in '}]"' and self._begun
        self._begun = True
        self.is_complete = closes and self._depth <= 0 and not self._in_string
        return self.is_complete

    def _in_string_step(self, char):
        if self._escapes:
            self._escapes = False
        elif char == "\\":
            self._escapes = True
        else:
            self._in_string = char != '"'
        self.out.append(json.dumps(char)[1:-1] if char < " " else char)


@lru_cache(maxsize=256)
def _up_to(markers):
    """Finds the first of some markers, or at the end of a text what may become one."""
    if not markers:
        return re.compile(r"(?P<whole>(?!))")
    beginnings = {marker[:size] for marker in markers for size in range(1, len(marker))}
    whole, partial = ("|".join(map(re.escape, texts)) for texts in (markers, beginnings))
    return re.compile(rf"(?P<whole>{whole})|(?:{partial or '(?!)'})\Z")
