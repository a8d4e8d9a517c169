"""Strict JSON: one meaning only, and a bounded cost.

For everything that comes from outside: requests, config.json, tokenizer.json, headers of
safetensors files. Refuses what `json` would let pass: a key twice, NaN and Infinity, numbers past
a double's range, integers of absurd length, deep nesting, encodings other than UTF-8. Knows nothing
of what the JSON says.
"""

import json
import math
from typing import Any

from marlin.errors import ModelFileError
from marlin.files.regular import read_regular

# Objects and arrays within each other; serde_json, which reads tokenizer.json a second time, takes
# 127. What walks a value afterwards may so recurse.
MAX_DEPTH = 127
# What newer Pythons' int() takes at most; its time grows with the square of the digits.
MAX_INTEGER_DIGITS = 4300
# tokenizer.json, the largest JSON read from a model folder, is 5 to 35 MB.
MAX_FILE_BYTES = 256 << 20
_SHOWN_CHARACTERS = 80  # of a wrong key or number in a message


class JsonError(ValueError):
    """Text that is not strict JSON; its message says why, without naming where it came from."""


def parse_json(data: bytes | str) -> Any:
    """Decode one JSON value.

    Args:
        data: UTF-8 bytes, or text.

    Raises:
        JsonError: not UTF-8, not JSON, or one of the things refused above.
    """
    try:
        # json would guess UTF-16 and UTF-32 as well; what is read here is all UTF-8.
        text = data if isinstance(data, str) else data.decode()
        if text.startswith("\ufeff"):
            raise ValueError("Unexpected UTF-8 BOM")
        value = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        raise JsonError(f"not valid JSON: not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise JsonError("nested too deeply") from None
    except ValueError as error:
        raise JsonError(f"not valid JSON: {error}") from None
    if _is_deeper(value, MAX_DEPTH):
        raise JsonError("nested too deeply")
    return value


def parse_json_object(path: str, data: bytes | str) -> dict[str, Any]:
    """Decode one JSON object of a model file.

    Args:
        path: named in errors.
        data: as parse_json's.

    Raises:
        ModelFileError: not strict JSON, or not an object.
    """
    try:
        value = parse_json(data)
    except JsonError as error:
        raise ModelFileError(path, str(error)) from None
    if not isinstance(value, dict):
        raise ModelFileError(path, f"a JSON object was expected, not {type(value).__name__}")
    return value


def read_json_object(path: str, *default: dict[str, Any]) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        default: what a file that is not there means; without it, that is an error.

    Raises:
        ModelFileError: as parse_json_object's, or the file cannot be read, is not a regular one or
            has more than MAX_FILE_BYTES.
    """
    data = read_regular(path, MAX_FILE_BYTES, *([None] if default else []))
    return default[0] if data is None else parse_json_object(path, data)


def _unique_keys(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {key[:_SHOWN_CHARACTERS]!r} appears twice in one object")
            seen.add(key)
    return found


def _bounded_integer(digits):
    if len(digits) > MAX_INTEGER_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _finite_float(text):
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"number out of range: {text[:_SHOWN_CHARACTERS]}")
    return value


def _refuse_constant(name):
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys,
    parse_int=_bounded_integer,
    parse_float=_finite_float,
    parse_constant=_refuse_constant,
)


def _is_deeper(value, depth):
    """Whether value has more than `depth` levels of objects and arrays."""
    level = [value] if type(value) in (dict, list) else []
    for _ in range(depth):
        level = [
            item
            for outer in level
            for item in (outer.values() if type(outer) is dict else outer)
            if type(item) in (dict, list)
        ]
        if not level:
            return False
    return True
