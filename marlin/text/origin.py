"""Where each character of a prompt comes from: the model's template, or whoever asked.

A template puts a client's texts beside tokens that steer the model, and a text that spells such a
token would be one: a user could end his turn and begin another's. So the characters with which
tokens begin and end are rendered a second time as characters of a private plane wherever a client
wrote them. What then still reads as a token, the template has written, whatever it did to the texts
in between. Knows neither templates nor tokenizers.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

# Plane 15 is private: nobody's text means anything by it. A character has one twin there, so that
# lengths and places stay what they are.
_PLANE = 0xF0000
_TWINS = re.compile("[\U000f0000-\U000fffff]")


def plain(text: str) -> str:
    """A text as its client wrote it, without marks."""
    if text.isascii():
        return text
    return _TWINS.sub(lambda twin: chr(ord(twin[0]) - _PLANE), text)


class Control(NamedTuple):
    """A token that steers the model, where a template wrote it: characters [start, end)."""

    start: int
    end: int
    text: str


class Origins:
    """Marks of one vocabulary.

    Args:
        controls: texts of the tokens that steer the model.
    """

    def __init__(self, controls: Iterable[str]):
        self._controls = frozenset(filter(None, controls))
        edges = {text[at] for text in self._controls for at in (0, -1)}
        self._first = "".join(sorted({text[0] for text in self._controls}))
        self._lengths = sorted({len(text) for text in self._controls}, reverse=True)
        # Letters and digits stay what they are, in names as in words; a token of letters alone has
        # its edges marked where a text spells all of it.
        marked = {edge for edge in edges if not edge.isalnum() and ord(edge) < 0x10000}
        self._table = {ord(edge): _PLANE + ord(edge) for edge in marked}
        self._edges = re.compile(f"[{re.escape(''.join(sorted(marked)))}]") if marked else None
        words = [t for t in self._controls if t[0].isalnum() or t[-1].isalnum()]
        longest_first = sorted(words, key=len, reverse=True)
        self._words = re.compile("|".join(map(re.escape, longest_first))) if words else None

    def marked(self, value: Any) -> Any:
        """A value of JSON with the edges of tokens marked in all of its texts; the same object
        where there is none, so that `is` tells."""
        if isinstance(value, str):
            return self._marked_text(value)
        if isinstance(value, (list, tuple)):
            items = [self.marked(item) for item in value]
            is_same = all(new is old for new, old in zip(items, value, strict=True))
            return value if is_same else items
        if isinstance(value, Mapping):
            entries = {self.marked(name): self.marked(item) for name, item in value.items()}
            pairs = zip(entries.items(), value.items(), strict=True)
            is_same = all(new[0] is old[0] and new[1] is old[1] for new, old in pairs)
            return value if is_same else entries
        return value

    def _marked_text(self, text):
        if self._words is not None and self._words.search(text):
            text = self._words.sub(lambda word: _twin(word[0][0]) + word[0][1:], text)
        if self._edges is None or not self._edges.search(text):
            return text
        return text.translate(self._table)

    def spells_any(self, value: Any) -> bool:
        """Whether a text of a value of JSON spells one of the tokens."""
        if isinstance(value, str):
            return bool(self.controls(value))
        if isinstance(value, Mapping):
            return any(map(self.spells_any, (*value, *value.values())))
        return isinstance(value, (list, tuple)) and any(map(self.spells_any, value))

    def controls(self, marked: str) -> list[Control]:
        """The tokens that a rendered text with marks spells, the longest of each place."""
        if not self._controls:
            return []
        found, end = [], 0
        for place in re.finditer(f"[{re.escape(self._first)}]", marked):
            start = place.start()
            if start < end:
                continue
            for length in self._lengths:
                text = marked[start : start + length]
                if text in self._controls:
                    end = start + len(text)
                    found.append(Control(start, end, text))
                    break
        return found


def _twin(character):
    return chr(_PLANE + ord(character)) if ord(character) < 0x10000 else "\ufffd"
