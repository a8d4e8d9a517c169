"""Mistral: an array of JSON objects, or in newer models a name and its arguments."""

from marlin.text.tool_calls.family import Family, json_arguments, json_calls
from marlin.text.tool_calls.scanner import Reading, Scanner

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


FAMILY = Family("mistral", (CALLS,), read, (CALLS, ID, ARGUMENTS))
