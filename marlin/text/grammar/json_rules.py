"""From a JSON Schema to an automaton over the JSON text of what satisfies it.

Owns how constrained answers look: properties in the schema's order, then others; one space or none
after `:` and `,`, no other. A schema is one rule however often it is referred to, so recursion
costs nothing; rules are built one after another, so depth neither.
"""

from collections.abc import Callable, Sequence
from typing import Any

from marlin.errors import RequestError
from marlin.text.grammar import numbers, regex
from marlin.text.grammar.automaton import COMMA, QUOTE, SPACE, Automaton, Rule, json_text
from marlin.text.grammar.formats import ANY_NUMBER, ANY_STRING, INTEGER_FORMATS, STRING_FORMATS
from marlin.text.grammar.json_arrays import add_array
from marlin.text.grammar.json_objects import add_object
from marlin.text.grammar.keywords import (
    NOT_PATTERN,
    TYPES,
    Part,
    excluded,
    limits,
)
from marlin.text.grammar.schema import Alternative, Schemas

Schemata = list[tuple[Any, str]]  # (schema, its pointer) that hold at once
_VALUE_TYPES = {
    bool: "boolean", int: "integer", float: "number", str: "string",
    list: "array", dict: "object", type(None): "null",
}  # fmt: skip


class JsonRules:
    """Adds the values of one schema document to an automaton."""

    def __init__(self, automaton: Automaton, root: Any):
        self.automaton = automaton
        self.schemas = Schemas(root)
        self._rules: dict[Any, Rule] = {}
        self._pending: list[Callable[[], None]] = []

    def add(self, schemas: Schemata, source: int, target: int) -> None:
        """The values that satisfy all of these."""
        self.value(schemas, source, target)
        while self._pending:
            self.automaton.check_size()
            self._pending.pop()()

    def value(self, schemas, source, target):
        self.automaton.call(source, self.rule(schemas), target)

    def rule(self, schemas):
        # Schemas live as long as their document, and True is one object.
        key = frozenset(id(schema) for schema, _ in schemas if schema is not True)
        if key not in self._rules:
            rule = self._rules[key] = self.automaton.new_rule()
            self._pending.append(lambda: self._build(schemas, *rule))
        return self._rules[key]

    def _build(self, schemas, start, end):
        for alternative in self.schemas.alternatives(schemas):
            self._alternative(alternative, start, end)

    def _alternative(self, parts: Alternative, source: int, target: int) -> None:
        types = set(TYPES)
        for part in parts:
            types &= part.types()
        given = [part for part in parts if {"enum", "const"} & part.keywords.keys()]
        if given:
            return self._literals(parts, given, types, source, target)
        if "number" in types:
            types.discard("integer")
        for name in TYPES:
            if name in types:
                _BUILDERS[name](self, parts, source, target)

    # ---- values that are written out ----

    def _literals(self, parts, given, types, source, target):
        texts: dict[bytes, None] | None = None
        for part in given:
            lists = [part.keywords["enum"]] if "enum" in part.keywords else []
            lists += [[part.keywords["const"]]] if "const" in part.keywords else []
            for values in lists:
                own = {json_text(v): None for v in values if self._has_type(v, types)}
                texts = own if texts is None else {text: None for text in texts if text in own}
        rest = tuple(_without_values(part) for part in parts)
        rest = tuple(part for part in rest if part.keywords)
        if not texts:
            return
        if not rest:
            return self.automaton.texts(source, texts, target)
        literals, others = self.automaton.new_rule(), self.automaton.new_rule()
        self.automaton.texts(literals[0], texts, literals[1])
        self._alternative(rest, *others)
        self.automaton.both(source, literals, others, target)

    def _has_type(self, value, types):
        name = _VALUE_TYPES[type(value)]
        if name == "number" and value.is_integer():
            name = "integer"
        return name in types

    def _null(self, parts, source, target):
        self._words(parts, [None], source, target)

    def _boolean(self, parts, source, target):
        self._words(parts, [True, False], source, target)

    def _words(self, parts, values, source, target):
        ruled_out = {json_text(value) for value in excluded(parts)}
        for text in map(json_text, values):
            if text not in ruled_out:
                self.automaton.text(source, text, target)

    # ---- strings ----

    def _string(self, parts, source, target):
        automaton = self.automaton
        low, high = limits(parts, "minLength", "maxLength")
        rules, without = [], []
        for part in parts:
            if "pattern" in part.keywords:
                rules.append(self.pattern(part, "pattern", part.keywords["pattern"]))
            if NOT_PATTERN in part.keywords:
                without.append(self.pattern(part, "not", part.keywords[NOT_PATTERN]))
            text = self._format(part)
            if text is not None:
                rules.append(self.pattern(part, "format", text))
        ruled_out = [json_text(value) for value in excluded(parts) if type(value) is str]
        if ruled_out:
            without.append(self.text_rule(ruled_out))
        is_free = (low, high) == (0, None)
        if not rules and not without:
            return self.quoted(automaton.any_text(), source, target, low, high)
        if not rules or not is_free:
            rules.append(self.raw_string(low, high))
        automaton.call(source, self.combined(rules, without), target)

    def raw_string(self, low=0, high=None):
        raw = self.automaton.raw_text()
        return self.automaton.rule(
            ("raw string", low, high), lambda start, end: self.quoted(raw, start, end, low, high)
        )

    def text_rule(self, texts):
        rule = self.automaton.new_rule()
        self.automaton.texts(rule[0], texts, rule[1])
        return rule

    def combined(self, rules: Sequence[Rule], without: Sequence[Rule]) -> Rule:
        """What all rules take, and none of the others."""
        found = rules[0]
        steps = [*((rule, False) for rule in rules[1:]), *((rule, True) for rule in without)]
        for other, is_without in steps:
            if other == found and not is_without:
                continue
            rule = self.automaton.new_rule()
            self.automaton.both(rule[0], found, other, rule[1], is_without)
            found = rule
        return found

    def quoted(self, rule, source, target, low=0, high=None):
        automaton = self.automaton
        begin, end = automaton.state(), automaton.state()
        automaton.byte(source, QUOTE, QUOTE, begin)
        automaton.call(begin, rule, end, low, high)
        automaton.byte(end, QUOTE, QUOTE, target)

    def pattern(self, part: Part, keyword: str, text: str) -> Rule:
        """The strings in which an expression is found, or which are one of a format."""
        automaton = self.automaton

        def build(start, end):
            try:
                node = regex.parse(text)
                node = regex.whole(node) if keyword == "format" else regex.searched(node)
            except RequestError as error:
                part.refuse(keyword, f"is {text[:100]!r}: {error.message}")
            begin, last = automaton.state(), automaton.state()
            automaton.byte(start, QUOTE, QUOTE, begin)
            regex.build(automaton, node, begin, last, automaton.json_characters)
            automaton.byte(last, QUOTE, QUOTE, end)

        return automaton.rule((keyword == "format", text), build)

    def _format(self, part):
        name = part.keywords.get("format")
        if name is None or name in ANY_STRING or name in ANY_NUMBER or name in INTEGER_FORMATS:
            return None
        if name not in STRING_FORMATS:
            part.refuse("format", f"is {name[:100]!r}, which is not supported")
        return STRING_FORMATS[name]

    # ---- numbers ----

    def _integer(self, parts, source, target):
        self._number(parts, source, target, is_integer=True)

    def _number(self, parts, source, target, is_integer=False):
        low = high = None
        rules = []
        for part in parts:
            low, high = self._bounds(part, low, high, is_integer)
            if "multipleOf" in part.keywords:
                rules.append(self._multiple(part))
        ruled_out = [json_text(v) for v in excluded(parts) if type(v) in (int, float)]
        if ruled_out:  # a fraction has many spellings
            is_integer = True
        if low is not None or high is not None:
            rules.append(numbers.bounded(self.automaton, low, high, is_integer))
        elif is_integer or not rules:
            kind = numbers.integer if is_integer else numbers.number
            rules.append(kind(self.automaton))
        if b"0" in ruled_out:
            ruled_out.append(b"-0")
        without = [self.text_rule(ruled_out)] if ruled_out else []
        self.automaton.call(source, self.combined(rules, without), target)

    def _bounds(self, part, low, high, is_integer):
        keywords = part.keywords
        for name in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
            if name not in keywords:
                continue
            try:
                value = numbers.decimal(keywords[name])
            except RequestError as error:
                part.refuse(name, error.message)
            bound = numbers.Bound(value, name.startswith("exclusive"))
            if name.endswith("inimum"):
                low = bound if low is None or _key(bound) > _key(low) else low
            elif high is None or (bound.value, not bound.is_open) < (high.value, not high.is_open):
                high = bound
        self._format(part)
        bits = INTEGER_FORMATS.get(keywords.get("format", ""))
        if bits is not None and is_integer:
            bound = numbers.Bound(numbers.decimal(-(2**bits)))
            low = bound if low is None or _key(bound) > _key(low) else low
            bound = numbers.Bound(numbers.decimal(2**bits - 1))
            high = bound if high is None or bound.value < high.value else high
        return low, high

    def _multiple(self, part):
        try:
            of = numbers.decimal(part.keywords["multipleOf"])
            if of <= 0:
                part.refuse("multipleOf", "must be above 0")
            return numbers.multiple(self.automaton, of)
        except RequestError as error:
            if error.param:
                raise
            part.refuse("multipleOf", error.message)

    def separated(self, source):
        """The state after a comma."""
        return self.spaced(source, COMMA)

    def spaced(self, source, sign):
        automaton = self.automaton
        after, end = automaton.state(), automaton.state()
        automaton.byte(source, sign, sign, after)
        automaton.byte(after, SPACE, SPACE, end)
        automaton.empty(after, end)
        return end


_BUILDERS = {
    "null": JsonRules._null,
    "boolean": JsonRules._boolean,
    "integer": JsonRules._integer,
    "number": JsonRules._number,
    "string": JsonRules._string,
    "array": add_array,
    "object": add_object,
}


def _key(bound):
    return bound.value, bound.is_open


def _without_values(part):
    """A part without enum and const, and without the type that they have been compared with."""
    kept = {k: v for k, v in part.keywords.items() if k not in ("enum", "const", "type")}
    return Part(kept, part.pointer)
