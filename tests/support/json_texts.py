"""Grammars as tests use them: over a vocabulary of bytes, and whether they take a text or a value.

A value is written as constrained answers write it, its properties in whatever order the grammar
wants. Owns no expectation.
"""

from marlin.device import abi
from marlin.device.grammar import DEAD, START, Automaton, Vocabulary
from marlin.text.grammar.automaton import json_text
from marlin.text.grammar.constraint import JsonSchema, compile_grammar

END = 256
_STEPS = 20_000


class TooManyOrders(Exception):
    """A value's properties have more orders than are tried."""


def byte_vocabulary():
    """Token i is byte i; END ends a text."""
    library = abi.load_library(abi.library_path("cpu"))
    return Vocabulary(library, [*(bytes([i]) for i in range(256)), b""], [END])


def automaton_of(part, vocabulary):
    return Automaton(vocabulary, compile_grammar(part, "part"))


class Taker:
    """Asks one grammar about texts and values."""

    def __init__(self, part, vocabulary):
        self.automaton = automaton_of(part, vocabulary)
        self._orders = []
        self._listed = set()
        if isinstance(part, JsonSchema):
            self._find_orders(part.schema)

    def takes(self, text):
        """Whether a text, str or bytes, is a whole one of the grammar."""
        data = text.encode() if isinstance(text, str) else text
        return self.automaton.accepts(self.automaton.advance(START, data))

    def takes_value(self, value, is_thorough=False):
        """Whether a JSON value has a text of the grammar.

        Args:
            is_thorough: try orders of its properties that most likely lead nowhere as well.

        Raises:
            TooManyOrders: none was found among the first.
        """
        self._steps, self._is_thorough = 0, is_thorough
        return any(self.automaton.accepts(end) for end in self._ends(START, value))

    def _find_orders(self, schema):
        if isinstance(schema, dict):
            for name in ("properties", "required"):
                names = schema.get(name)
                if isinstance(names, (dict, list)):
                    self._orders.append([one for one in names if isinstance(one, str)])
                    self._listed.update(self._orders[-1])
            for name in ("dependentRequired", "dependentSchemas", "dependencies"):
                given = schema.get(name)
                for key, names in given.items() if isinstance(given, dict) else ():
                    more = names if isinstance(names, list) else ()
                    self._orders.append([key, *(one for one in more if isinstance(one, str))])
                    self._listed.update(self._orders[-1])
            schema = list(schema.values())
        for item in schema if isinstance(schema, list) else ():
            self._find_orders(item)

    def _sorted(self, names):
        """Names in the order in which some object of the schema has most of them."""
        known = [order for order in self._orders if set(order) & set(names)]
        known.sort(key=lambda order: -len(set(order) & set(names)))
        ranks: dict[str, int] = {}
        for order in known:
            for name in order:
                ranks.setdefault(name, len(ranks))
        return sorted(names, key=lambda name: ranks.get(name, len(ranks)))

    def _after(self, position, data):
        self._steps += 1
        if self._steps > _STEPS:
            raise TooManyOrders
        return self.automaton.advance(position, data)

    def _ends(self, position, value):
        """Positions after the value."""
        if isinstance(value, dict):
            begin = self._after(position, b"{")
            names = self._sorted(value)
            return self._object(begin, frozenset(names), names, value, {}) if begin else set()
        if isinstance(value, list):
            return self._array(self._after(position, b"["), value)
        texts = {json_text(value)}
        if isinstance(value, float):
            texts |= {repr(value).encode(), format(value, "f").encode()}
        return {self._after(position, text) for text in texts} - {DEAD}

    def _array(self, begin, items):
        positions = {begin} - {DEAD}
        for index, item in enumerate(items):
            before = {self._after(p, b", ") if index else p for p in positions} - {DEAD}
            positions = {end for p in before for end in self._ends(p, item)}
        return {self._after(p, b"]") for p in positions} - {DEAD}

    def _object(self, position, left, names, value, known):
        if (position, left) in known:
            return known[position, left]
        found = set()
        if not left:
            found = {self._after(position, b"}")} - {DEAD}
        elif before := self._after(position, b", ") if len(left) < len(names) else position:
            begins = self._begins(before, [name for name in names if name in left])
            for name, begin in begins.items():
                ends = self._ends(begin, value[name])
                ends = {end for end in ends if not self._comes_too_late(end, begins, name)}
                for end in ends:
                    found |= self._object(end, left - {name}, names, value, known)
                if found or ends == {position}:
                    break
        known[position, left] = found
        return found

    def _begins(self, before, names):
        """{name: position} of those that may come now. Of names that no schema lists, the order
        does not matter: the first stands for them."""
        found, has_other = {}, False
        for name in names:
            is_other = name not in self._listed and not self._is_thorough
            if is_other and has_other:
                continue
            begin = self._after(before, json_text(name) + b": ")
            if begin != DEAD:
                found[name] = begin
                has_other = has_other or is_other
        return found

    def _comes_too_late(self, end, begins, taken):
        """Whether a listed name might have come before, and may not any more."""
        if self._is_thorough:
            return False
        after = self._after(end, b", ")
        later = [name for name in begins if name != taken and name in self._listed]
        if not later or after == DEAD:
            return bool(later)
        return any(self._after(after, json_text(name) + b": ") == DEAD for name in later)
