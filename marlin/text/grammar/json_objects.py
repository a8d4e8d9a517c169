"""Objects of a JSON Schema: properties in its order, then others by the patterns of their names."""

from itertools import product
from typing import TYPE_CHECKING

from marlin.text.grammar.automaton import COLON, Rule, json_text
from marlin.text.grammar.keywords import escaped, limits, refuse_excluded

if TYPE_CHECKING:
    from marlin.text.grammar.json_rules import JsonRules

# Patterns of names that one object may have: each doubles the kinds of its properties.
MAX_NAME_PATTERNS = 4
# States of an object that counts its properties.
MAX_COUNTED = 10_000


def add_object(rules: "JsonRules", parts, source, target):
    refuse_excluded(parts, dict)
    automaton = rules.automaton
    low, high = limits(parts, "minProperties", "maxProperties")
    required = {name: None for part in parts for name in part.keywords.get("required", ())}
    names = {name: None for part in parts for name in part.keywords.get("properties", {})}
    listed = [*names, *(name for name in required if name not in names)]
    others = _others(rules, parts, listed)
    if low > len(required) and low > 1 and others is not None:
        part = next(part for part in parts if part.keywords.get("minProperties") == low)
        part.refuse("minProperties", "above 1 is not supported with names that are not listed")
    is_counted = high is not None or low > len(required)
    most = max(low, high or 0, 1) if is_counted else 1
    if len(listed) * most > MAX_COUNTED or most > MAX_COUNTED:
        parts[0].refuse("maxProperties", "counts too many properties")
    last = max((listed.index(name) for name in required), default=-1)
    begin = automaton.state()
    automaton.byte(source, ord("{"), ord("{"), begin)
    chain = _Chain(automaton, rules.separated, begin, most, high if is_counted else None)
    for place, name in enumerate(listed):
        chain.close(target, low, place > last)
        chain.take(lambda at, to, name=name: _listed(rules, parts, name, at, to), name in required)
    if others is not None:
        chain.repeat(others)
    chain.close(target, low, True, is_end=True)


def _listed(rules, parts, name, source, target):
    """The property of a name."""
    text = json_text(name)
    if not any({"patternProperties", "propertyNames"} & part.keywords.keys() for part in parts):
        schemas = _property(parts, name, ())
        if not _is_impossible(schemas):
            after = rules.automaton.state()
            rules.automaton.text(source, text, after)
            rules.value(schemas, rules.spaced(after, COLON), target)
        return
    _entries(rules, parts, name, rules.text_rule([text]), (), source, target)


def _others(rules, parts, listed) -> Rule | None:
    """Properties of other names than those listed; None: there are none."""
    has_patterns = any("patternProperties" in part.keywords for part in parts)
    if not has_patterns and _is_impossible(_property(parts, None, ())):
        return None
    rule = rules.automaton.new_rule()
    without = [rules.text_rule([json_text(name) for name in listed])] if listed else []
    _entries(rules, parts, None, rules.raw_string(), without, *rule)
    return rule


def _entries(rules, parts, name, key, without, source, target):
    """Properties whose names a rule takes, by which of the patterns they match."""
    patterns = [
        (part, text) for part in parts for text in part.keywords.get("patternProperties", {})
    ]
    if len(patterns) > MAX_NAME_PATTERNS:
        patterns[-1][0].refuse(
            "patternProperties", f"is supported for up to {MAX_NAME_PATTERNS} patterns"
        )
    matching = [rules.pattern(part, "patternProperties", text) for part, text in patterns]
    keys = [key]
    for part in parts:
        if "propertyNames" in part.keywords:
            schema = (part.keywords["propertyNames"], f"{part.pointer}/propertyNames")
            keys.append(rules.rule([schema, ({"type": "string"}, schema[1])]))
    for matches in product((False, True), repeat=len(patterns)):
        chosen = [pattern for pattern, is_match in zip(patterns, matches, strict=True) if is_match]
        schemas = _property(parts, name, chosen)
        if _is_impossible(schemas):
            continue
        inside = [*keys, *(r for r, is_match in zip(matching, matches, strict=True) if is_match)]
        outside = [*without, *(r for r, m in zip(matching, matches, strict=True) if not m)]
        after = rules.automaton.state()
        if not outside and len(inside) == 1 and name is None:
            rules.quoted(rules.automaton.any_text(), source, after)
        else:
            rules.automaton.call(source, rules.combined(inside, outside), after)
        rules.value(schemas, rules.spaced(after, COLON), target)


class _Chain:
    """The properties of an object one after another; states by how many there have been.

    Args:
        begin: before the first.
        most: counts from here on are the same.
        high: properties at most; None is no limit.
    """

    def __init__(self, automaton, separated, begin, most, high):
        self._automaton = automaton
        self._separated = separated
        self._most = most
        self._high = high
        self._states = {0: begin}  # after so many, with no comma yet
        self._commas: dict[int, int] = {}  # after so many and a comma

    def _before(self, count):
        """Where the next property begins after so many."""
        if count == 0:
            return self._states[0]
        if count not in self._commas:
            self._commas[count] = self._automaton.state()
        if count in self._states:
            self._automaton.empty(self._separated(self._states.pop(count)), self._commas[count])
        return self._commas[count]

    def close(self, target, low, may_end, is_end=False):
        for count, state in self._states.items():
            if may_end and count >= low and (count or is_end):
                self._automaton.byte(state, ord("}"), ord("}"), target)

    def take(self, add, is_required):
        self._automaton.check_size()
        before = {count: self._before(count) for count in {*self._states, *self._commas}}
        self._states, self._commas = {}, {}
        for count, state in before.items():
            if self._high is None or count < self._high:
                following = min(count + 1, self._most)
                if following not in self._states:
                    self._states[following] = self._automaton.state()
                add(state, self._states[following])
            if not is_required:
                skipped = self._states if count == 0 else self._commas
                skipped[count] = self._automaton.state()
                self._automaton.empty(state, skipped[count])

    def repeat(self, rule):
        """Properties of one rule, as many as there may be."""
        for count in range(self._most + 1):
            if count not in self._states and count not in self._commas:
                continue
            if self._high is not None and count >= self._high:
                continue
            following = min(count + 1, self._most)
            kept = self._states.get(count)
            before = self._before(count)
            if kept is not None:
                self._states[count] = kept
            if following not in self._states:
                self._states[following] = self._automaton.state()
                if following in self._commas and following == count:
                    after = self._separated(self._states[following])
                    self._automaton.empty(after, self._commas[following])
            self._automaton.call(before, rule, self._states[following])


def _property(parts, name, patterns):
    """What the property of a name must satisfy.

    Args:
        name: None for one that no part lists.
        patterns: the (part, pattern) that it matches.
    """
    out = []
    evaluated = bool(patterns)
    for part in parts:
        listed = part.keywords.get("properties", {})
        own = []
        if name in listed:
            own.append((listed[name], f"{part.pointer}/properties/{escaped(name)}"))
        own += [
            (part.keywords["patternProperties"][text], f"{part.pointer}/patternProperties")
            for owner, text in patterns
            if owner is part
        ]
        if not own and "additionalProperties" in part.keywords:
            schema = part.keywords["additionalProperties"]
            own.append((schema, f"{part.pointer}/additionalProperties"))
        evaluated = evaluated or bool(own)
        out += own
    for part in parts:
        if "unevaluatedProperties" in part.keywords and not evaluated:
            schema = part.keywords["unevaluatedProperties"]
            out.append((schema, f"{part.pointer}/unevaluatedProperties"))
    return out


def _is_impossible(schemas):
    return any(schema is False for schema, _ in schemas)
