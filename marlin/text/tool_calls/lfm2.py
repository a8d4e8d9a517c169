"""LFM2: a list of Python calls."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from marlin.text.grammar.constraint import InOrder, Text
from marlin.text.tool_calls.family import Family
from marlin.text.tool_calls.pythonic import python_arguments
from marlin.text.tool_calls.scanner import Reading, Scanner, drop
from marlin.text.tool_calls.shape import Shape, listed

OPENING, CLOSING = "<|tool_call_start|>", "<|tool_call_end|>"


def read(scan: Scanner) -> Reading[None]:
    while (yield from scan.content(OPENING)):
        yield from scan.take("[")
        while (name := (yield from scan.text("(", CLOSING, keep=True))) is not None:
            if not name.strip() or not (yield from scan.take("(")):
                break
            scan.begin_call(name.strip())
            if not (yield from python_arguments(scan)):
                break
            scan.end_call()
            if not (yield from scan.take(",")):
                break
        yield from scan.until((CLOSING,), drop)


def show(calls: Sequence[Mapping[str, Any]]) -> str:
    """Calls as the model writes them, which its template leaves to whoever renders it."""
    written = []
    for call in calls:
        arguments = call["function"]["arguments"]
        given = arguments.items() if isinstance(arguments, dict) else ()
        texts = [f"{key}={_python(value)}" for key, value in given]
        written.append(f"{call['function']['name']}({', '.join(texts)})")
    return f"{OPENING}[{', '.join(written)}]{CLOSING}"


def _python(value):
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _argument(key, value, write):
    """JSON, whose words are read like Python's."""
    return InOrder([Text(f"{key}="), value])


_MARKERS = OPENING, CLOSING
_CALL = listed(lambda name: f"{name}(", _argument, ")")
_SHAPE = Shape(_CALL, f"{OPENING}[", f"]{CLOSING}", ", ")
FAMILY = Family("lfm2", (OPENING,), read, _MARKERS, _SHAPE)
# Some of its templates list the tools, and say nothing of calls.
LISTED = Family("lfm2 listed", ("List of tools: ",), read, _MARKERS, _SHAPE, show=show)
