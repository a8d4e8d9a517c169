"""Checks on the fields of a JSON request: type, range, and a refusal that names the field.

Works on decoded JSON. Knows no endpoint and no particular field.
"""

import json
import math

from marlin.errors import MalformedRequestError, RequestError

_SHOWN_CHARACTERS = 80  # of a wrong value in a message: enough to recognise it
_TYPE_NAMES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    type(None): "null",
}


def parse_json(body):
    """Decode a request body, stricter than `json.loads`.

    Args:
        body: bytes.

    Returns:
        dict.

    Raises:
        MalformedRequestError: not UTF-8, not JSON, nested too deeply, a repeated key, NaN, Infinity
            or a number past the range of a double.
        RequestError: JSON, but not an object.
    """
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except UnicodeDecodeError as error:
        raise MalformedRequestError(
            f"request body is not UTF-8 at byte {error.start}", code="invalid_json"
        ) from None
    except RecursionError:
        raise MalformedRequestError(
            "request body is nested too deeply", code="invalid_json"
        ) from None
    except ValueError as error:
        raise MalformedRequestError(
            f"request body is not valid JSON: {error}", code="invalid_json"
        ) from None
    if not isinstance(value, dict):
        raise RequestError(f"the request body must be a JSON object, got {type_name(value)}")
    return value


def _object(pairs):
    value = dict(pairs)
    if len(value) != len(pairs):
        seen = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"repeated key {shown(repeated)}")
    return value


def _refuse_constant(name):
    raise ValueError(f"{name} is not a JSON number")


def _finite_float(text):
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"number out of range: {text[:_SHOWN_CHARACTERS]}")
    return value


def type_name(value):
    """The JSON type of a decoded value, with its article."""
    return _TYPE_NAMES[type(value)]


def shown(value):
    """A value as it may stand in an error message: ASCII JSON, shortened."""
    if isinstance(value, (dict, list)):
        return type_name(value)
    if isinstance(value, str):
        value = value[: _SHOWN_CHARACTERS + 1]
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def refuse(param, message):
    """Raise the 422 for one field; the message starts with its name."""
    raise RequestError(f"{param} {message}", param=param)


def required(body, name):
    """The value of a field that must be there and not null."""
    if name not in body:
        raise RequestError(f"{name} is required", param=name, code="missing_required_parameter")
    if body[name] is None:
        refuse(name, "must not be null")
    return body[name]


def checked_text(value, param):
    """value, if it is a string of characters that text can hold."""
    if not isinstance(value, str):
        refuse(param, f"must be a string, got {type_name(value)}")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            refuse(param, f"holds an unpaired surrogate at character {error.start}")
    return value


def number(body, name, default, low, high, *, above_low=False):
    """An optional number in [low, high], or (low, high] with above_low; null means the default."""
    value = body.get(name)
    if value is None:
        return default
    if type(value) not in (int, float):
        refuse(name, f"must be a number, got {type_name(value)}")
    if not (low < value if above_low else low <= value) or value > high:
        bounds = f"more than {low:g} and at most {high:g}" if above_low else f"{low:g} to {high:g}"
        refuse(name, f"must be {bounds}, got {shown(value)}")
    return float(value)


def integer(body, name, default, low, high=None):
    """An optional integer in [low, high]; null means the default."""
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int:
        refuse(name, f"must be an integer, got {type_name(value)}")
    if value < low:
        refuse(name, f"must be at least {low}, got {shown(value)}")
    if high is not None and value > high:
        refuse(name, f"must be at most {high}, got {shown(value)}")
    return value


def boolean(body, name, default=False):
    """An optional boolean; null means the default."""
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not bool:
        refuse(name, f"must be a boolean, got {type_name(value)}")
    return value


def optional(body, name, kind):
    """An optional field of one JSON type (str, dict, list, bool); None when absent or null."""
    value = body.get(name)
    if value is not None and type(value) is not kind:
        refuse(name, f"must be {_TYPE_NAMES[kind]}, got {type_name(value)}")
    return value
