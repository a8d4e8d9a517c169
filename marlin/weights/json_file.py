"""Strict JSON of model files: one meaning only, and a bounded cost.

Refuses what `json` would let pass: a key twice, NaN and Infinity, integers of absurd length, deep
nesting. Knows nothing of what the JSON says.
"""

import json
import os
import stat

from marlin.errors import ModelFileError

# Integers in model files are sizes and ids; 2^64 has 20 digits. Long ones cost quadratic time.
MAX_INTEGER_DIGITS = 20
# tokenizer.json, the largest JSON read from a model folder, is 5 to 35 MB.
MAX_JSON_BYTES = 256 << 20


def parse_json_object(path, text):
    """Parse one JSON object.

    Args:
        path: named in errors.
        text: str or UTF-8 bytes.

    Raises:
        ModelFileError: not JSON, not an object, or one of the things refused above.
    """
    try:
        # json would guess UTF-16 and UTF-32 as well; the formats here are all UTF-8.
        value = json.loads(
            text if isinstance(text, str) else text.decode(),
            object_pairs_hook=_unique_keys,
            parse_int=_bounded_integer,
            parse_constant=_refuse_constant,
        )
    except RecursionError as error:
        raise ModelFileError(path, "JSON nested too deeply") from error
    except ValueError as error:
        raise ModelFileError(path, f"not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(path, f"a JSON object was expected, not {type(value).__name__}")
    return value


def read_json_object(path):
    """Read and parse a file that holds one JSON object; errors as in parse_json_object."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(path, "not a regular file")
        if status.st_size > MAX_JSON_BYTES:
            message = f"{status.st_size} bytes; at most {MAX_JSON_BYTES} of JSON are read"
            raise ModelFileError(path, message)
        with open(path, "rb") as file:
            text = file.read()
    except OSError as error:
        raise ModelFileError(path, f"cannot be opened: {error.strerror}") from error
    return parse_json_object(path, text)


def _unique_keys(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {repeated!r} appears twice in one object")
    return found


def _bounded_integer(digits):
    if len(digits) > MAX_INTEGER_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _refuse_constant(name):
    raise ValueError(f"{name} is not JSON")
