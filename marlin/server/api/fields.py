"""The fields of a JSON request: their refusals are the API's 422, with `param` naming the field.

Knows no endpoint and no particular field; the checks themselves are files/fields.py.
"""

import re
import sys
from typing import Any, NoReturn

from marlin.errors import MalformedRequestError, MissingFieldError, RequestError
from marlin.files.fields import Fields, shown, type_name
from marlin.files.strict_json import JsonError
from marlin.files.strict_json import parse_json as parse_strict_json

_NOT_COUNTED = bytes(set(range(256)) - set(b'"[{'))


def parse_json(body: bytes, num_values: int) -> dict[str, Any]:
    """Decode a request body.

    Args:
        num_values: objects and arrays that it may have, each of which takes memory of its own
            however few bytes it is written in.

    Raises:
        MalformedRequestError: not strict JSON (files/strict_json.py), or too many values.
        RequestError: JSON, but not an object.
    """
    if len(body) > num_values and _num_values(body) > num_values:
        raise MalformedRequestError(f"request body has more than {num_values} objects and arrays")
    try:
        value = parse_strict_json(body)
    except JsonError as error:
        raise MalformedRequestError(f"request body is {error}") from None
    if not isinstance(value, dict):
        raise RequestError(f"the request body must be a JSON object, got {type_name(value)}")
    return value


def _num_values(body):
    """Objects and arrays that JSON opens before it ends or is wrong, without making any."""
    # A quotation mark that ends no string is the second byte of an escape.
    marks = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NOT_COUNTED)
    # What is within a string stays within one when two marks side by side go.
    return len(re.sub(rb'"[^"]*"?', b"", marks.replace(b'""', b"")))


def memory_bytes(value: Any) -> int:
    """What a value of JSON takes of memory, with all that is in it."""
    total, pending = 0, [value]
    while pending:
        value = pending.pop()
        total += sys.getsizeof(value)
        if type(value) is dict:
            pending.extend(value)
            pending.extend(value.values())
        elif type(value) is list:
            pending.extend(value)
    return total


def request_fields(body: dict[str, Any], place: str = "") -> Fields:
    """Fields of a request, or of an object within it whose place (`messages[2].`) errors name
    first; what is refused is a RequestError."""

    def refuse_value(name, value, expected):
        refuse(place + plain(name), f"must be {expected}, got {shown(value)}")

    return Fields(body, refuse_value)


def refuse(param: str, message: str) -> NoReturn:
    """Raise the 422 for one field; the message starts with its name."""
    raise RequestError(f"{param} {message}", param=param)


def required(body: dict[str, Any], name: str) -> Any:
    """The value of a field that must be there and not null."""
    if name not in body:
        raise MissingFieldError(f"{name} is required", param=name)
    if body[name] is None:
        refuse(name, "must not be null")
    return body[name]


def checked_text(value: Any, param: str) -> str:
    """value, if it is a string of characters that text can hold."""
    if not isinstance(value, str):
        refuse(param, f"must be a string, got {type_name(value)}")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            refuse(param, f"holds an unpaired surrogate at character {error.start}")
    return value


def plain(name: str) -> str:
    """A client's own field name as `param`: shown() without its quotes."""
    return shown(name)[1:].rstrip('"')
