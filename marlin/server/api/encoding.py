"""How an answer's values become bytes: JSON, and server-sent events of it."""

import json
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

JSON_TYPE = "application/json"
SSE_TYPE = "text/event-stream; charset=utf-8"
# Stands for what is encoded already; nobody's text can be it.
_MARK = os.urandom(16).hex()
_held = threading.local()


@dataclass(frozen=True, slots=True)
class Encoded:
    """A value that is JSON already, so that it need not be held as objects, which take seven times
    the memory."""

    data: bytes


def _hold(value):
    if not isinstance(value, Encoded):
        raise TypeError(f"{type(value).__name__} is no JSON")
    _held.values.append(value.data)
    return _MARK


# ASCII only, so that no text that a model emits can make the bytes invalid UTF-8.
_ENCODER = json.JSONEncoder(separators=(",", ":"), default=_hold)


def encode(value: Any) -> bytes:
    """JSON."""
    _held.values = values = []
    data = _ENCODER.encode(value).encode("ascii")
    if not values:
        return data
    around = data.split(_ENCODER.encode(_MARK).encode("ascii"))
    return b"".join(part for pair in zip_longest(around, values, fillvalue=b"") for part in pair)


def joined(objects: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One object of many that have the same fields: lists follow one another, each encoded before
    the next is made; of others the last is taken."""
    found: dict[str, Any] = {}
    for fields in objects:
        for name, value in fields.items():
            if isinstance(value, list):
                found.setdefault(name, []).append(encode(value)[1:-1])
            else:
                found[name] = value
    return {
        name: Encoded(b"[%b]" % b",".join(value)) if isinstance(value, list) else value
        for name, value in found.items()
    }


def event(value: Any) -> bytes:
    """One server-sent event that holds value as JSON."""
    return b"data: " + encode(value) + b"\n\n"
