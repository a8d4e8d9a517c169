"""How an answer's values become bytes: JSON, and server-sent events of it."""

import json
from typing import Any

JSON_TYPE = "application/json"
SSE_TYPE = "text/event-stream; charset=utf-8"
# ASCII only, so that no text that a model emits can make the bytes invalid UTF-8.
_ENCODER = json.JSONEncoder(separators=(",", ":"))


def encode(value: Any) -> bytes:
    """JSON."""
    return _ENCODER.encode(value).encode("ascii")


def event(value: Any) -> bytes:
    """One server-sent event that holds value as JSON."""
    return b"data: " + encode(value) + b"\n\n"
