"""How a family's calls look, as parts of a grammar: what `tool_choice` and `strict` come to.

The way back is a family's reader. Knows no family.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from marlin.errors import RequestError
from marlin.files.fields import shown
from marlin.text.grammar.constraint import (
    AllOf,
    AnyText,
    Constraint,
    Either,
    InOrder,
    JsonSchema,
    Part,
    Regex,
    Repeated,
    Text,
    Until,
    Without,
    marker,
)
from marlin.text.grammar.formats import ANY_STRING, STRING_FORMATS
from marlin.text.tool_calls.tagged import resolved

# What is said of strings; what is kept to only elsewhere.
_BOUNDS = {"pattern", "format", "minLength", "maxLength"}
_MORE = {"enum", "const", "allOf", "anyOf", "oneOf", "not", "if", "$ref"}
_ANY_ARGUMENTS = {"type": "object"}
Write = Callable[[str], Part]  # text of a family as a part, its markers as such
# A call of a tool by its name and the schema of its arguments.
CallShape = Callable[[str, Any, Write], Part]


@dataclass(frozen=True, slots=True)
class Shape:
    """What calls are and what is around them.

    Attributes:
        call: raises RequestError where the format cannot hold what a schema asks for.
        opening, closing: before the first call and after the last one.
        between: two calls; None where an answer has one at most.
        content: before the words of an answer that is no call.
        thoughts: that may come before either, where a family's own reader knows them.
    """

    call: CallShape
    opening: str = ""
    closing: str = ""
    between: str | None = ""
    content: str = ""
    thoughts: Part | None = None

    def calls(
        self,
        tools: Mapping[str, Any],
        max_calls: int | None,
        markers: Sequence[str],
        begun: str = "",
    ) -> Part:
        """At least one call of these tools, {name: schema}.

        Args:
            markers: of the family.
            begun: what of the first call is there already.
        """

        def write(text: str) -> Part:
            return _written(text, markers)

        def begin(text: str) -> Part:
            return write(text.removeprefix(begun))

        first = _any_call(self.call, tools, write if self.opening else begin)
        more: list[Part] = []
        if self.between is not None and max_calls != 1:
            following = _any_call(self.call, tools, write)
            more = [Repeated(InOrder([write(self.between), following]))]
        return InOrder([begin(self.opening), first, *more, write(self.closing)])

    def holding(self, part: Part, markers: Sequence[str]) -> Part:
        """An answer that is no call, and whose words are a part."""
        return InOrder([_written(self.content, markers), part]) if self.content else part

    def freely(
        self, tools: Mapping[str, Any], max_calls: int | None, markers: Sequence[str]
    ) -> Part:
        """Any answer whose calls are such calls."""
        if self.content:
            words = self.holding(AnyText(), markers)
            return Either([self.calls(tools, max_calls, markers), words])
        if self.between is None:  # an answer is a call by its first character
            words = InOrder([Regex(r"\s*[^\s{]"), AnyText()])
            return Either([self.calls(tools, max_calls, markers), words, InOrder([Text("")])])
        begins = markers[0]
        calls = self.calls(tools, max_calls, markers, begins)
        return Either([Without(begins), InOrder([Text(""), Until(begins), calls])])


@dataclass(frozen=True, slots=True)
class ToolGrammar:
    """What a conversation asks of an answer's calls.

    Attributes:
        tools: {name: JSON schema of its arguments} of those that may be called.
        is_forced: at least one must be.
        is_strict: arguments must be as the schemas say.
    """

    shape: Shape
    markers: Sequence[str]
    tools: Mapping[str, Any]
    max_calls: int | None
    is_forced: bool
    is_strict: bool

    def constraint(self, asked: Constraint | None) -> Constraint | None:
        """What the answer must be; asked: what it must be where it is no call."""
        given = self.tools, self.max_calls, self.markers
        if self.is_forced:
            return Constraint(self.shape.calls(*given), "tools")
        if asked is not None:
            words = self.shape.holding(asked.part, self.markers)
            return Constraint(Either([self.shape.calls(*given), words]), asked.place)
        return Constraint(self.shape.freely(*given), "tools") if self.is_strict else None


def _any_call(call, tools, write):
    return Either([call(name, schema or _ANY_ARGUMENTS, write) for name, schema in tools.items()])


def _written(text, markers):
    pieces = re.split("(" + "|".join(map(re.escape, markers)) + ")", text)
    parts = [marker(piece) if piece in markers else Text(piece) for piece in pieces if piece]
    return InOrder(parts or [Text("")])


def json_object(before: str = "", after: str = "", arguments: str = "arguments") -> CallShape:
    """A JSON object with the name and the arguments, between two texts."""

    def call(name: str, schema: Any, write: Write) -> Part:
        head = write(f'{before}{{"name": {json.dumps(name)}, "{arguments}": ')
        return InOrder([head, JsonSchema(schema), write("}" + after)])

    return call


def named_json(before: str, middle: str, after: str = "") -> CallShape:
    """A name and its arguments in JSON, with texts around either."""

    def call(name: str, schema: Any, write: Write) -> Part:
        return InOrder([write(before + name + middle), JsonSchema(schema), write(after)])

    return call


def in_tags(
    begins: Callable[[str], str], key: Callable[[str, bool], str], value_end: str, call_end: str
) -> CallShape:
    """A text for each argument, between tags.

    Args:
        begins: what a call begins with, from its name.
        key: what is before a value, from its name and whether it is any string.
        value_end, call_end: after each value, and after the last one.
    """

    def call(name: str, schema: Any, write: Write) -> Part:
        written: list[Part] = [write(begins(name))]
        for prop, value, is_required in properties(schema):
            text = text_value(prop, value, value_end)
            rest = InOrder([value, write(value_end)]) if text is None else text
            parameter = InOrder([write(key(prop, text is not None)), rest])
            written.append(parameter if is_required else Repeated(parameter, 0, 1))
        return InOrder([*written, write(call_end)])

    return call


def listed(
    begins: Callable[[str], str],
    argument: Callable[[str, JsonSchema, Write], Part],
    call_end: str,
) -> CallShape:
    """Arguments with commas between them; argument: from its name and schema. The first of a tool
    that requires none is required."""

    def call(name: str, schema: Any, write: Write) -> Part:
        given = sorted(properties(schema), key=lambda each: not each[2])
        written = [write(begins(name))]
        for index, (prop, value, is_required) in enumerate(given):
            part = argument(prop, value, write)
            if index:
                part = InOrder([Text(","), part])
            written.append(part if is_required or not index else Repeated(part, 0, 1))
        return InOrder([*written, write(call_end)])

    return call


def properties(schema: Any) -> list[tuple[str, JsonSchema, bool]]:
    """(name, its schema, whether it is required) of each argument, in the schema's order."""
    given = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(given, dict):
        return []
    required = schema.get("required", ())
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    return [
        (name, JsonSchema(shared | resolved(schema, value)), name in required)
        for name, value in given.items()
    ]


def text_value(name: str, value: JsonSchema, end: str) -> Part | None:
    """A string that stands without quotes, and the text after it; None of a schema that has none.
    Where only some strings may stand there, no other value may.

    Raises:
        RequestError: which strings may stand there is more than can be told.
    """
    schema = value.schema
    options = [schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())]
    strings = [option for option in options if _may_be_text(option)]
    if not strings:
        return None
    texts = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if texts is not None and all(isinstance(text, str) for text in texts):
        return InOrder([Either([Text(text) for text in texts]), Text(end)])
    around = set() if schema in strings else _BOUNDS & set(schema)
    more = around.union(*(_MORE & set(option) for option in strings))
    if more:
        words = f"argument {name!r:.80} of a tool: {min(more)} of a string cannot be kept to"
        raise RequestError(f"{words} in the way that this model writes calls", param="tools")
    if not any(_BOUNDS & set(option) for option in strings):
        return Until(end)
    return InOrder([Either([_bounded(option, end) for option in strings]), marker(end)])


def _bounded(schema, end):
    """The strings of a schema, without the text that comes after one."""
    said: list[Part] = [Without(end.strip() or end)]
    if "pattern" in schema:
        said.append(Regex(schema["pattern"], is_searched=True))
    if schema.get("format", "password") not in ANY_STRING:
        if schema["format"] not in STRING_FORMATS:
            named = f"format {shown(schema['format'])} of a tool is not supported"
            raise RequestError(named, param="tools")
        said.append(Regex(STRING_FORMATS[schema["format"]]))
    low, high = schema.get("minLength", 0), schema.get("maxLength", "")
    if (low, high) != (0, ""):
        said.append(Regex(f"[^]{{{low},{high}}}"))
    return AllOf(said)


def _may_be_text(schema):
    if not isinstance(schema, dict):
        return False
    said = schema.get("type")
    values = schema.get("enum", [schema.get("const")])
    return (
        said == "string"
        or (isinstance(said, list) and "string" in said)
        or (said is None and isinstance(values, list) and any(isinstance(v, str) for v in values))
    )
