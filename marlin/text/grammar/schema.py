"""What a JSON Schema asks for, as alternatives of keyword lists without applicators.

Owns references, `anyOf` and its relatives. Knows no automaton: what a type's keywords mean is
json_rules.py's.
"""

import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from marlin.files.fields import shown, type_name
from marlin.text.grammar.keywords import (
    ANNOTATIONS,
    DEPENDENCIES,
    SIMPLE,
    TYPES,
    Part,
    Schema,
    branches,
    checked_part,
    draft_of,
    escaped,
    refuse,
    values_of,
)
from marlin.text.grammar.negation import negations

# Schemas that one schema may come to, those that it makes of its own included.
MAX_SCHEMAS = 10_000
# Looks at them: a schema is looked at wherever one refers to it.
MAX_VISITS = 50_000
# Alternatives of one value, after all that multiplies them.
MAX_ALTERNATIVES = 256
MAX_DEPTH = 64

# Keyword lists that hold at once.
Alternative = tuple["Part", ...]


class Schemas:
    """The schemas of one document.

    Args:
        root: the document, an object or a boolean.
    """

    def __init__(self, root: Schema | bool):
        self._root = root
        self._draft = draft_of(root)
        self._names: dict[str, tuple[Any, str] | None] = {}  # when one is first asked for
        self._checked: dict[int, Part | None] = {}
        self._made: list[Any] = []  # keeps every id() that is a key
        self._depth = 0  # of negations
        self._evaluating = 0  # schemas whose unevaluatedProperties asks what holds
        self._visits = 0

    def alternatives(self, schemas: list[tuple[Any, str]]) -> list[Alternative]:
        """What a value may be that satisfies all of these (schema, pointer) at once."""
        found = self._all_of(schemas, ())
        whole = self._whole_of(schemas)
        for part in {part for parts in found for part in parts}:
            # It looks at what is within its own schema, and parts do not tell that from the rest.
            if "unevaluatedProperties" in part.keywords and part is not whole:
                part.refuse("unevaluatedProperties", "is not supported within another schema")
        return found

    def _whole_of(self, schemas):
        """The part of the one schema that all others are within, None where there are several."""
        if len(schemas) != 1:
            return None
        schema, pointer = schemas[0]
        for _ in range(8):
            if type(schema) is not dict or set(schema) - ANNOTATIONS != {"$ref"}:
                break
            schema, pointer = self._resolve(schema["$ref"], pointer)
        return self._checked.get(id(schema))

    def _all_of(self, schemas, path):
        found: list[Alternative] = [()]
        for schema, pointer in schemas:
            more = self._alternatives(schema, pointer, path)
            found = [_joined(one, other) for one in found for other in more]
            if len(found) > MAX_ALTERNATIVES:
                refuse(pointer, f"comes to more than {MAX_ALTERNATIVES} alternatives")
        return found

    def _alternatives(self, schema, pointer, path):
        if schema is True:
            return [()]
        if schema is False:
            return []
        self._visits += 1
        if self._visits > MAX_VISITS:
            refuse(pointer, f"is looked at after {MAX_VISITS} others, too many")
        if id(schema) in path or len(path) > MAX_DEPTH:
            refuse(pointer, "refers to itself without anything between, or is nested too deeply")
        path = (*path, id(schema))
        if self._draft <= 7 and type(schema) is dict and type(schema.get("$ref")) is str:
            # Nothing that stands beside a reference holds in these drafts.
            target, place = self._resolve(schema["$ref"], pointer)
            return self._alternatives(target, place, path)
        part = self._part(schema, pointer)
        found: list[Alternative] = [(part,) if part.keywords else ()]
        self._evaluating += "unevaluatedProperties" in schema
        for more in self._applied(schema, pointer, path):
            found = [_joined(one, other) for one in found for other in more]
            if len(found) > MAX_ALTERNATIVES:
                refuse(pointer, f"comes to more than {MAX_ALTERNATIVES} alternatives")
        self._evaluating -= "unevaluatedProperties" in schema
        return found

    def _part(self, schema, pointer) -> Part:
        """The schema's own keywords, after a look at each."""
        if (found := self._checked.get(id(schema))) is not None:
            return found
        if len(self._checked) > MAX_SCHEMAS:
            refuse(pointer, f"is one of more than {MAX_SCHEMAS} schemas")
        if type(schema) is not dict:
            refuse(pointer, f"must be an object or a boolean, got {type_name(schema)}")
        self._made.append(schema)
        part = self._checked[id(schema)] = checked_part(schema, pointer, self._draft)
        return part

    def _applied(self, schema, pointer, path) -> Iterator[list[Alternative]]:
        """For each applicator of a schema the alternatives that it leaves."""
        if "$ref" in schema:
            target, place = self._resolve(schema["$ref"], pointer)
            yield self._alternatives(target, place, path)
        for name in ("allOf", "anyOf", "oneOf"):
            if name not in schema:
                continue
            found = branches(schema[name], f"{pointer}/{name}")
            if name == "allOf":
                yield self._all_of(found, path)
                continue
            if name == "oneOf":
                found = self._exclusive(schema, found, path)
            yield [a for branch, at in found for a in self._alternatives(branch, at, path)]
        if "not" in schema:
            negated, place = self._negated(schema["not"], f"{pointer}/not")
            yield self._alternatives(negated, place, path)
        if "if" in schema:
            test, place = schema["if"], f"{pointer}/if"
            yes = [(test, place), (schema.get("then", True), f"{pointer}/then")]
            no = [self._negated(test, place), (schema.get("else", True), f"{pointer}/else")]
            yield [*self._all_of(yes, path), *self._all_of(no, path)]
        for name in DEPENDENCIES:
            yield from self._dependencies(schema.get(name, {}), f"{pointer}/{name}", path)

    def _dependencies(self, value, pointer, path):
        if type(value) is not dict:
            refuse(pointer, f"must be an object, got {type_name(value)}")
        for name, then in value.items():
            place = f"{pointer}/{escaped(name)}"
            if type(then) is list:
                then = {"required": then}
            absent = {"properties": {name: False}}
            present = [({"required": [name]}, place), (then, place)]
            yield [*self._alternatives(self._keep(absent), place, path)] + self._all_of(
                [(self._keep(schema), at) for schema, at in present], path
            )

    def _enter(self, pointer):
        self._depth += 1
        self._visits += 1
        if self._depth > MAX_DEPTH or self._visits > MAX_VISITS:
            refuse(pointer, "refers to itself where it must not hold, or comes to too much")

    def _keep(self, schema):
        self._made.append(schema)
        return schema

    # ---- references ----

    def _resolve(self, reference, pointer):
        """(schema, its pointer) of a reference into this document."""
        if type(reference) is not str:
            refuse(f"{pointer}/$ref", f"must be a string, got {type_name(reference)}")
        if not self._names:
            self._names[""] = (self._root, "#")
            self._name(self._root, "#", 0)
        base, _, fragment = reference.partition("#")
        found = self._names.get(base.rsplit("/", 1)[-1] if base not in self._names else base)
        if fragment and not fragment.startswith("/"):
            found = self._names.get("#" + fragment)
        if found is None:
            refuse(
                f"{pointer}/$ref",
                f"names {shown(reference)}, which is not in this schema, or twice",
            )
        schema, place = found
        parts = [_unquoted(part) for part in fragment.split("/")[1:]] if "/" in fragment[:1] else []
        for part in parts:
            name = part.replace("~1", "/").replace("~0", "~")
            if type(schema) is list and name.isdecimal() and int(name[:9]) < len(schema):
                schema = schema[int(name)]
            elif type(schema) is dict and name in schema:
                schema = schema[name]
            else:
                refuse(f"{pointer}/$ref", f"names {shown(reference)}, which is not there")
            place = f"{place}/{escaped(name)}"
        return schema, place

    def _note(self, name, schema, pointer):
        """A name that two schemas have, in places that only their bases tell apart, is none."""
        known = self._names.setdefault(name, (schema, pointer))
        if known is not None and known[0] is not schema:
            self._names[name] = None

    def _name(self, value, pointer, depth):
        """Note which schemas have names of their own."""
        if depth > 2 * MAX_DEPTH:
            refuse(pointer, "is nested too deeply")
        if type(value) is list:
            for index, item in enumerate(value):
                self._name(item, f"{pointer}/{index}", depth + 1)
        if type(value) is not dict:
            return
        for keyword in ("$id", "id"):
            name = value.get(keyword)
            if type(name) is str and name:
                plain = name.removesuffix("#")
                self._note(plain, value, pointer)
                if not plain.startswith("#"):
                    self._note(plain.rsplit("/", 1)[-1], value, pointer)
        if type(value.get("$anchor")) is str:
            self._note("#" + value["$anchor"], value, pointer)
        for name, item in value.items():
            if name not in ("enum", "const", "default", "examples"):
                self._name(item, f"{pointer}/{escaped(name)}", depth + 1)

    # ---- what is left where one of two may hold, and not both ----

    def _exclusive(self, schema, given, path):
        """oneOf's branches, each without what others hold where they are not apart anyway."""
        found = [self._alternatives(branch, at, path) for branch, at in given]
        own = self._part(schema, "").keywords
        allowed = self._part(schema, "").types()
        overlaps: dict[int, list[int]] = {}
        for i, j in combinations(range(len(given)), 2):
            apart = all(
                self._apart(one, other, allowed, own) for one in found[i] for other in found[j]
            )
            if not apart:
                overlaps.setdefault(i, []).append(j)
                overlaps.setdefault(j, []).append(i)
        out = []
        for index, (branch, pointer) in enumerate(given):
            others = [self._negated(*given[j]) for j in overlaps.get(index, ())]
            if not others:
                out.append((branch, pointer))
                continue
            joined = self._keep({"allOf": [branch, *(other for other, _ in others)]})
            out.append((joined, pointer))
        return out

    def _apart(self, one: Alternative, other: Alternative, allowed, own) -> bool:
        """Whether no value satisfies both, as far as their types, values and names tell."""
        parts = [*one, *other]
        types = set(allowed)
        for part in parts:
            types &= part.types()
        values = [values_of(part.keywords) for part in parts]
        given = [set(value) for value in values if value is not None]
        if given and not set.intersection(*given):
            return True
        if types - {"object"}:
            return False
        if not types:
            return True
        required = {*own.get("required", ())}
        for part in parts:
            required |= set(part.keywords.get("required", ()))
        return any(self._name_apart(parts, name) for name in required)

    def _name_apart(self, parts, name):
        """Whether a property that must be there cannot satisfy all that is said of it."""
        types, given = set(TYPES), []
        for part in parts:
            keywords = part.keywords
            schema = keywords.get("properties", {}).get(name)
            if schema is None:
                closed = keywords.get("additionalProperties") is False
                if closed and not keywords.get("patternProperties"):
                    return True
                continue
            if schema is False:
                return True
            if schema is True:
                continue
            place = f"{part.pointer}/properties/{escaped(name)}"
            for _ in range(8):
                if "$ref" not in schema:
                    break
                schema, place = self._resolve(schema["$ref"], place)
                if type(schema) is not dict:
                    return False
            own = self._part(schema, place)
            types &= own.types()
            if (values := values_of(own.keywords)) is not None:
                given.append(set(values))
        return not types or (bool(given) and not set.intersection(*given))

    def _negated(self, schema, pointer) -> tuple[Any, str]:
        """The schema of what does not satisfy one, where that can be said."""
        if type(schema) is bool:
            return not schema, pointer
        if self._evaluating:
            refuse(pointer, "is not supported where unevaluatedProperties asks what holds")
        for _ in range(8):
            if set(schema) - ANNOTATIONS != {"$ref"}:
                break
            schema, pointer = self._resolve(schema["$ref"], pointer)
        part = self._part(schema, pointer)
        own = {name: value for name, value in schema.items() if name not in SIMPLE}
        self._enter(pointer)
        found = [
            negation
            for name, value in (own | part.keywords).items()
            for negation in negations(part, name, value, self._negated)
        ]
        self._depth -= 1
        return self._keep({"anyOf": found} if found else False), pointer


def _joined(one: Alternative, other: Alternative) -> Alternative:
    return one + tuple(part for part in other if part not in one)


def _unquoted(text):
    """A part of a reference without its percent signs."""
    data = re.sub(rb"%([0-9A-Fa-f]{2})", lambda m: bytes([int(m[1], 16)]), text.encode())
    return data.decode("utf-8", "replace")
