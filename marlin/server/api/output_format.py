"""What a request says its answer must be: `response_format` and vLLM's `structured_outputs`.

No I/O and no model: a part of text/grammar comes out, which is compiled when the model is known.
"""

from typing import Any

from marlin.files.fields import type_name
from marlin.files.strict_json import JsonError, parse_json
from marlin.server.api.fields import checked_text, refuse, request_fields
from marlin.text.grammar.constraint import (
    Constraint,
    Ebnf,
    Either,
    JsonSchema,
    Part,
    Regex,
    Text,
)

MAX_CHOICES = 1024
_KINDS = ("json", "json_object", "regex", "choice", "grammar")


def parse_output(body: dict[str, Any]) -> Constraint | None:
    """The constraint of an OpenAI request's body; None where there is none.

    Raises:
        RequestError: with `param` naming the field.
    """
    formatted = response_format(body.get("response_format"), "response_format")
    structured = _structured(body)
    if formatted and structured:
        refuse("structured_outputs", "and response_format both say what the answer is")
    return formatted or structured


def response_format(value: Any, place: str, is_flat: bool = False) -> Constraint | None:
    """Of an object {"type": "json_schema", "json_schema": {"schema": {...}}}.

    Args:
        is_flat: what is in json_schema stands beside the type, as in the Responses API.
    """
    if value is None:
        return None
    if type(value) is not dict:
        refuse(place, f"must be an object, got {type_name(value)}")
    fields = request_fields(value, f"{place}.")
    kind = fields.choice("type", ("text", "json_object", "json_schema"))
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint(JsonSchema({"type": "object"}), place)
    if not is_flat:
        value, place = fields.object("json_schema").values, f"{place}.json_schema"
    # Strict or not, it is kept to.
    request_fields(value, f"{place}.").flag("strict", None)
    request_fields(value, f"{place}.").text("name", None)
    place = f"{place}.schema"
    return Constraint(JsonSchema(_schema(value.get("schema"), place)), place)


def _schema(value, place):
    if type(value) not in (dict, bool):
        refuse(place, f"must be a schema, an object, got {type_name(value)}")
    return value


def _structured(body):
    given = request_fields(body).section("structured_outputs")
    if given is None:
        return None
    asked = [kind for kind in _KINDS if given.values.get(kind) not in (None, False)]
    if len(asked) != 1:
        refuse("structured_outputs", f"must have one of {', '.join(_KINDS)}, got {len(asked)}")
    place = f"structured_outputs.{asked[0]}"
    return Constraint(_part(asked[0], given.values[asked[0]], place), place)


def _part(kind: str, value: Any, place: str) -> Part:
    if kind == "json":
        if type(value) is str:
            try:
                value = parse_json(checked_text(value, place).encode())
            except JsonError as error:
                refuse(place, f"is {error}")
        return JsonSchema(_schema(value, place))
    if kind == "json_object":
        if value is not True:
            refuse(place, f"must be true or false, got {type_name(value)}")
        return JsonSchema({"type": "object"})
    if kind == "choice":
        if type(value) is not list or not 1 <= len(value) <= MAX_CHOICES:
            refuse(place, f"must be an array of 1 to {MAX_CHOICES} strings")
        texts = [checked_text(item, f"{place}[{index}]") for index, item in enumerate(value)]
        return Either(tuple(map(Text, texts)))
    return (Regex if kind == "regex" else Ebnf)(checked_text(value, place))
