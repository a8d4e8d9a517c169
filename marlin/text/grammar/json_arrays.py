"""Arrays of a JSON Schema: items by their places, counts, and each value once."""

from typing import TYPE_CHECKING

from marlin.text.grammar.automaton import json_text
from marlin.text.grammar.keywords import limits, refuse_excluded

if TYPE_CHECKING:
    from marlin.text.grammar.json_rules import JsonRules

# Values of which an array may hold each once: all orders of them are states.
MAX_UNIQUE = 8


def add_array(rules: "JsonRules", parts, source, target):
    refuse_excluded(parts, list)
    automaton = rules.automaton
    low, high = limits(parts, "minItems", "maxItems")
    if high is not None and low > high:
        return
    count = max((len(_prefix(part)) for part in parts), default=0)
    schemas = [_items_at(parts, place) for place in range(count + 1)]
    if any(schema is False for schema, _ in schemas[count]):
        high = count if high is None else min(high, count)
    begin = automaton.state()
    automaton.byte(source, ord("["), ord("["), begin)
    unique = next((p for p in parts if p.keywords.get("uniqueItems")), None)
    if unique is not None and (high is None or high > 1):
        return _unique(rules, unique, schemas, low, high, begin, target)
    at = begin
    for place in range(count if high is None else min(count, high)):
        if place >= low:
            automaton.byte(at, ord("]"), ord("]"), target)
        after = automaton.state()
        rules.value(schemas[place], rules.separated(at) if place else at, after)
        at = after
    if high is None or high > count:
        at = _rest(rules, schemas[-1], at, count, low, high, target)
    if low <= count or high is None or high > count:
        automaton.byte(at, ord("]"), ord("]"), target)


def _rest(rules, schemas, at, count, low, high, target):
    """Items after the first `count`, which are all alike; returns the state after the last."""
    automaton = rules.automaton
    if count == 0:
        if low == 0:
            automaton.byte(at, ord("]"), ord("]"), target)
        after, count = automaton.state(), 1
        rules.value(schemas, at, after)
        at = after
    item, after = automaton.new_rule(), automaton.state()
    rules.value(schemas, rules.separated(item[0]), item[1])
    automaton.call(at, item, after, max(0, low - count), None if high is None else high - count)
    return after


def _unique(rules, part, schemas, low, high, begin, target):
    """An array of written-out values, each at most once: a state for each set of them."""
    texts: list[bytes] = []
    for alternative in rules.schemas.alternatives(schemas[0]):
        found = _written_out(alternative)
        if len(schemas) > 1 or found is None:
            part.refuse("uniqueItems", "is supported for items of enum, const or boolean alone")
        texts += [text for text in found if text not in texts]
    if len(texts) > MAX_UNIQUE:
        part.refuse("uniqueItems", f"is supported for up to {MAX_UNIQUE} values, not {len(texts)}")
    automaton = rules.automaton
    states = {0: begin}
    for used in range(1 << len(texts)):
        if used not in states:
            continue
        size = bin(used).count("1")
        if size >= low and (high is None or size <= high):
            automaton.byte(states[used], ord("]"), ord("]"), target)
        if size == high:
            continue
        before = rules.separated(states[used]) if used else begin
        for place, text in enumerate(texts):
            if not used >> place & 1:
                following = used | 1 << place
                if following not in states:
                    states[following] = automaton.state()
                automaton.text(before, text, states[following])


def _written_out(alternative):
    """The texts of an alternative that lists its values, or None."""
    names = {name for part in alternative for name in part.keywords}
    if names == {"type"} and all(part.types() == {"boolean"} for part in alternative):
        return [b"true", b"false"]
    if len(alternative) != 1 or not names <= {"type", "enum", "const"} or names == {"type"}:
        return None
    keywords, types = alternative[0].keywords, alternative[0].types()
    values = [keywords["const"]] if "const" in keywords else keywords.get("enum", [])
    if not all(type(value) is str for value in values) or "string" not in types:
        return None
    return [json_text(value) for value in values]


def _prefix(part):
    items = part.keywords.get("items")
    return part.keywords.get("prefixItems", items if type(items) is list else [])


def _items_at(parts, place):
    """What an array's item at a place must satisfy; past the prefixes, what all others must."""
    out = []
    for part in parts:
        prefix, keyword = _prefix(part), "items"
        if type(part.keywords.get("items")) is list:
            keyword = "additionalItems"
        if place < len(prefix):
            name = "prefixItems" if "prefixItems" in part.keywords else "items"
            out.append((prefix[place], f"{part.pointer}/{name}/{place}"))
        elif keyword in part.keywords and (keyword == "items" or prefix):
            out.append((part.keywords[keyword], f"{part.pointer}/{keyword}"))
    return out
