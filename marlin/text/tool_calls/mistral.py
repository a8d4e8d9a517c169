"""Mistral: an array of JSON objects, or in newer models a name and its arguments."""

from marlin.text.tool_calls.family import Family, json_arguments, json_calls
from marlin.text.tool_calls.scanner import Reading, Scanner
from marlin.text.tool_calls.shape import Shape, json_object, named_json

CALLS, ID, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"


def read(scan: Scanner) -> Reading[None]:
    while (yield from scan.content(CALLS)):
        if (yield from scan.peek()) == "[":
            yield from json_calls(scan)
        else:
            yield from _named_call(scan)


def _named_call(scan):
    name: list[str] = []
    id = None
    marker = yield from scan.until((ID, ARGUMENTS), name.append)
    if marker == ID:
        id = yield from scan.text(ARGUMENTS)
    if marker is None or (marker == ID and id is None):
        return
    scan.begin_call("".join(name).strip(), id)
    if (yield from json_arguments(scan, scan.arguments)):
        scan.end_call()


_MARKERS = CALLS, ID, ARGUMENTS
_NAMED, _ARRAY = Shape(named_json(CALLS, ARGUMENTS)), Shape(json_object(), f"{CALLS}[", "]", ", ")
FAMILY = Family("mistral", (CALLS, ARGUMENTS), read, _MARKERS, _NAMED)
ARRAY = Family("mistral array", (CALLS,), read, _MARKERS, _ARRAY)
